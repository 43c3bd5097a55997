"""An exported data set trains with TRL as it is, and an exported policy answers as its adapter does."""

import math
from pathlib import Path
from typing import Any

import pytest

from dream_ray.pipeline.export import export_data, export_policy
from dream_ray.train.policy import Policy
from tests.pipeline.run_dirs import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run = RunDir(tmp_path / "run").whole(rounds=1)
    return export_data(run.store.uri, str(tmp_path / "data")).uri


def arguments(folder: Path) -> dict[str, Any]:
    """Of one step on a CPU."""
    return {
        "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 2, "logging_steps": 1, "bf16": False,
        "use_cpu": True, "report_to": "none", "max_length": None, "learning_rate": 1e-2,
    }  # fmt: skip


def test_one_plain_step_of_sft(tiny_model: Path, exported: str, tmp_path: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(tiny_model),
        args=SFTConfig(**arguments(tmp_path / "sft")),
        train_dataset=load_dataset(exported, "demonstrations", split="train"),
        processing_class=AutoProcessor.from_pretrained(tiny_model),
    )
    loss = trainer.train().training_loss
    assert trainer.state.global_step == 1
    assert math.isfinite(loss)
    assert loss > 0


def test_one_plain_step_of_dpo(tiny_model: Path, exported: str, tmp_path: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(tiny_model),
        args=DPOConfig(**arguments(tmp_path / "dpo")),
        train_dataset=load_dataset(exported, "preferences", split="train"),
        processing_class=AutoProcessor.from_pretrained(tiny_model),
    )
    loss = trainer.train().training_loss
    assert trainer.state.global_step == 1
    assert loss == pytest.approx(math.log(2), abs=1e-4)  # before the first step policy and reference are the same


def test_what_the_processor_makes_of_an_exported_row(tiny_model: Path, exported: str) -> None:
    from datasets import load_dataset
    from transformers import AutoProcessor

    from dream_ray.dialogue import rendered

    processor = AutoProcessor.from_pretrained(tiny_model)
    row = load_dataset(exported, "demonstrations", split="train")[0]
    text = row["prompt"][0]["content"][1]["text"]
    plain = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    assert rendered(processor, row["prompt"]) == rendered(processor, plain)


def test_an_exported_adapter_answers_as_before(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def load(folder: Path | str) -> Any:
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=r".*text_model.*\.(q|v)_proj", init_lora_weights=False)
    get_peft_model(load(tiny_model), settings).save_pretrained(tmp_path / "adapter")
    assert export_policy(str(tmp_path / "adapter"), str(tmp_path / "out"), str(tiny_model)) == tmp_path.name
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        base, merged = load(tiny_model), load(tmp_path / "out")
        before = base(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(input_ids=ids).logits
        after = merged(input_ids=ids).logits
    assert not torch.allclose(before, adapted, atol=1e-2)
    torch.testing.assert_close(after, adapted, atol=1e-4, rtol=1e-4)
    AutoProcessor.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_a_runs_card_goes_with_its_merged_policy(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from dream_ray.pipeline.reporting import write_policy

    run = RunDir(tmp_path / "run").whole()
    settings = LoraConfig(r=4, target_modules=r".*text_model.*\.q_proj", init_lora_weights=False)
    get_peft_model(AutoModelForImageTextToText.from_pretrained(tiny_model), settings).save_pretrained(
        tmp_path / "adapter"
    )
    write_policy(run.store, Policy("policy-1", str(tiny_model), str(tmp_path / "adapter")))
    assert export_policy(run.store.uri, str(tmp_path / "out")) == "policy-1"
    assert "`policy-1`" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "adapter_config.json").exists()
