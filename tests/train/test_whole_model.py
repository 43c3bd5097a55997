"""Training without LoRA: all weights but the vision tower's, and whole models as policy and reference."""

from pathlib import Path

import pytest

from dream_ray.config import ConfigError, DpoConfig, ImageConfig, SftConfig, StudentConfig
from dream_ray.train.dpo import train_dpo
from dream_ray.train.policy import Policy, check_model_folder
from dream_ray.train.reference import read_stored, reference_key
from dream_ray.train.sft import train_sft
from tests.train.test_training import load, reference_log_probs

pytestmark = pytest.mark.slow

SFT = SftConfig(learning_rate=3e-3, epochs=1, batch_size=4, micro_batch_size=2, num_workers=0)
DPO = DpoConfig(learning_rate=1e-3, epochs=1, batch_size=4, micro_batch_size=2, num_workers=0)


def test_whole_models_are_trained_against_whole_models(tiny_model: Path, run_files, tmp_path: Path):
    import torch

    common = {"prompts": [run_files["prompts"]], "lora": None, "images": ImageConfig()}
    models = []
    for seed in (1, 2):
        output = tmp_path / f"sft-{seed}"
        output.mkdir()
        result = train_sft(
            demonstrations=[run_files["demonstrations"]],
            student=StudentConfig(model=str(tiny_model)),
            sft=SFT,
            seed=seed,
            output=str(output),
            **common,
        )
        assert result.adapter is None
        assert result.model == str(output / "model")
        check_model_folder(result.model)
        models.append(result.model)
    base, trained = (dict(load(Path(folder)).named_parameters()) for folder in (tiny_model, models[0]))
    for name, weight in base.items():
        assert torch.equal(weight, trained[name]) == ("vision_model" in name), name

    (tmp_path / "dpo").mkdir()
    start, reference = (Policy(f"policy-{number}", folder, None) for number, folder in enumerate(models))

    def dpo(start: Policy):
        return train_dpo(
            pairs=[run_files["pairs"]],
            start=start,
            reference=reference,
            student=StudentConfig(model=str(tiny_model)),
            dpo=DPO,
            seed=0,
            output=str(tmp_path / "dpo"),
            **common,
        )

    result = dpo(start)
    stored = read_stored(str(tmp_path / "dpo" / "reference" / reference_key(reference, bf16=False)))
    from dream_ray.student import StudentReader
    from dream_ray.train.data import preference_dataset

    reader = StudentReader(tiny_model, StudentConfig(model=str(tiny_model)), ImageConfig())
    rows = preference_dataset([run_files["prompts"]], [run_files["pairs"]], reader)
    wanted = load(Path(reference.model))
    for row in rows.select([0, 5, 11]):
        values = [reference_log_probs(wanted, tiny_model, row, side) for side in ("chosen", "rejected")]
        assert stored[row["pair_id"]] == pytest.approx(values, rel=1e-5, abs=1e-3)
    after = dict(load(Path(result.model)).named_parameters())
    assert not any(torch.equal(trained[name], after[name]) for name in after if "vision_model" not in name)

    with pytest.raises(ConfigError, match=r"lora is null, .* the policy p has the adapter x"):
        dpo(Policy("p", models[0], "x"))
