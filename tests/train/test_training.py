"""SFT and DPO on a tiny random multimodal model, in this process and under Ray Train."""

import math
import signal
from pathlib import Path

import pytest

from dream_ray import files
from dream_ray.config import ClusterConfig, ConfigError, DpoConfig, ImageConfig, LoraConfig, SftConfig, StudentConfig
from dream_ray.student import StudentReader
from dream_ray.train import ray_adapter
from dream_ray.train.data import preference_dataset
from dream_ray.train.dpo import train_dpo
from dream_ray.train.policy import Policy, merge_adapter
from dream_ray.train.reference import read_stored, reference_key
from dream_ray.train.sft import build_trainer as build_sft
from dream_ray.train.sft import new_adapter, train_sft

pytestmark = [pytest.mark.slow, pytest.mark.longest]

LORA = LoraConfig(rank=4, alpha=8)
SFT = SftConfig(learning_rate=1e-2, epochs=2, batch_size=4, micro_batch_size=2, num_workers=0)
DPO = DpoConfig(learning_rate=1e-2, epochs=2, batch_size=4, micro_batch_size=2, num_workers=0, sft_weight=0.2)


def sft_once(model: Path, run_files: dict[str, str], output: Path, config: SftConfig = SFT, seed: int = 0):
    output.mkdir()
    return train_sft(
        prompts=[run_files["prompts"]],
        demonstrations=[run_files["demonstrations"]],
        student=StudentConfig(model=str(model)),
        lora=LORA,
        sft=config,
        images=ImageConfig(),
        seed=seed,
        output=str(output),
    )


def dpo_once(model: Path, run_files, output: Path, start: Policy, reference: Policy, config=DPO, **more):
    output.mkdir()
    return train_dpo(
        prompts=[run_files["prompts"]],
        pairs=[run_files["pairs"]],
        start=start,
        reference=reference,
        student=StudentConfig(model=str(model)),
        lora=LORA,
        dpo=config,
        images=ImageConfig(),
        seed=0,
        output=str(output),
        **more,
    )


def adapter_weights(uri: str):
    from peft import load_peft_weights

    return load_peft_weights(str(files.as_path(uri)), device="cpu")


def load(model: Path, adapter: str | None = None):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    return (PeftModel.from_pretrained(base, str(files.as_path(adapter))) if adapter else base).eval()


def logits(model, tiny_model: Path):
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_model)
    inputs = processor.tokenizer("<|im_start|>user\nName the colour.<|im_end|>\n", return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def test_sft_then_dpo_then_load(tiny_model: Path, run_files, tmp_path: Path):
    import torch

    before = {file.name: file.read_bytes() for file in tiny_model.iterdir()}
    sft = sft_once(tiny_model, run_files, tmp_path / "sft")
    assert (sft.steps, sft.examples) == (6, 12)
    losses = [entry["loss"] for entry in sft.history if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert sft.loss == losses[-1]
    assert sft.tokens > 12 * 40

    policy = Policy("policy-0", str(tiny_model), sft.adapter)
    dpo = dpo_once(tiny_model, run_files, tmp_path / "dpo", policy, policy)
    assert dpo.steps == 6
    logged = [entry for entry in dpo.history if "loss" in entry]
    for key in ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
        assert all(math.isfinite(entry[key]) for entry in logged)
    # The policy starts as its own reference: no margin before the first update, a margin after the last.
    assert logged[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert logged[-1]["rewards/margins"] > 0.01

    first, second = adapter_weights(sft.adapter), adapter_weights(dpo.adapter)
    assert first.keys() == second.keys()
    assert len(first) == 2 * 7 * 2  # A and B of 7 projections in 2 layers
    assert all("text_model" in name for name in first)
    assert all(not torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.abs().sum() > 0 for name, tensor in first.items() if "lora_B" in name)
    assert {file.name: file.read_bytes() for file in tiny_model.iterdir()} == before

    base, tuned, aligned = (load(tiny_model, adapter) for adapter in (None, sft.adapter, dpo.adapter))
    outcomes = [logits(model, tiny_model) for model in (base, tuned, aligned)]
    assert not torch.allclose(outcomes[0], outcomes[1], atol=1e-3)
    assert not torch.allclose(outcomes[1], outcomes[2], atol=1e-3)

    merged = merge_adapter(Policy("policy-1", str(tiny_model), dpo.adapter), str(tmp_path / "merged"))
    torch.testing.assert_close(logits(load(Path(merged)), tiny_model), outcomes[2], atol=1e-4, rtol=1e-4)
    # `reference: previous`: a new adapter on the merged model, which is its own reference.
    start = Policy("policy-1", merged, None)
    again = dpo_once(Path(merged), run_files, tmp_path / "again", start, start)
    assert next(entry for entry in again.history if "loss" in entry)["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_the_same_seed_gives_the_same_adapter(tiny_model: Path, run_files, tmp_path: Path):
    import torch

    one, two, other = (
        adapter_weights(sft_once(tiny_model, run_files, tmp_path / name, seed=seed).adapter)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def reader_of(model: Path) -> StudentReader:
    return StudentReader(model, StudentConfig(model=str(model)), ImageConfig())


def reference_log_probs(model, tiny_model: Path, row: dict, side: str) -> float:
    """Sum of the answer tokens' log-probabilities, computed without TRL."""
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_model)
    prompt, whole = row["prompt"], row["prompt"] + row[side]
    pictures = [row["images"]] if row["images"] else None
    length = processor(text=[prompt], images=pictures, return_tensors="pt")["input_ids"].shape[1]
    inputs = processor(text=[whole], images=pictures, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits.float().log_softmax(-1)
    targets = inputs["input_ids"][0, length:]
    return float(scores[0, length - 1 : -1].gather(1, targets[:, None]).sum())


def test_policies_that_do_not_fit_are_refused(tiny_model: Path, run_files, tmp_path: Path):
    plain = Policy("base", str(tiny_model), None)
    with pytest.raises(ConfigError, match="has no adapter but the reference"):
        dpo_once(tiny_model, run_files, tmp_path / "a", plain, Policy("policy-0", str(tiny_model), "adapter"))
    with pytest.raises(ConfigError, match="have to stand on the same base"):
        dpo_once(tiny_model, run_files, tmp_path / "b", plain, Policy("policy-0", str(tmp_path), None))


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False)
    yield
    ray.shutdown()


def losses(result) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]


def test_two_workers_train_as_one_process_does(tiny_model: Path, run_files, tmp_path: Path, cluster):
    """1 worker that accumulates 4 times, and 2 that do so twice: the same batch, so the same losses."""
    one_by_one = {"micro_batch_size": 1}
    two = {**one_by_one, "num_workers": 2, "strategy": "fsdp2"}
    alone = sft_once(tiny_model, run_files, tmp_path / "alone", SFT.model_copy(update=one_by_one))
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    spread = sft_once(tiny_model, run_files, tmp_path / "spread", SFT.model_copy(update=two))
    assert signal.getsignal(signal.SIGINT) is on_ctrl_c  # Ray Train has one of its own, which outlives the training
    assert (spread.steps, spread.examples, spread.tokens) == (alone.steps, alone.examples, alone.tokens)
    assert losses(spread) == pytest.approx(losses(alone), abs=1e-3)
    assert losses(alone)[-1] < losses(alone)[0] - 0.1
    first, second = adapter_weights(alone.adapter), adapter_weights(spread.adapter)
    assert first.keys() == second.keys()
    assert all(first[name].shape == second[name].shape for name in first)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_workers_share_the_pairs_and_the_reference(
    tiny_model: Path, run_files, tmp_path: Path, cluster, strategy: str
):
    """Their losses are those of one process, too; what they stored is the reference's, and the next training pays nothing."""
    import torch

    one_by_one = {"micro_batch_size": 1}
    two = {**one_by_one, "num_workers": 2, "strategy": strategy}
    start, other = (random_adapter(tiny_model, tmp_path / name, seed) for name, seed in (("start", 1), ("other", 2)))
    policy, reference = Policy("policy-0", str(tiny_model), start), Policy("other", str(tiny_model), other)
    dpo = dpo_once(tiny_model, run_files, tmp_path / "dpo", policy, reference, DPO.model_copy(update=two))
    assert dpo.steps == 6
    assert (tmp_path / "dpo" / "ray_train").is_dir()
    folder = tmp_path / "dpo" / "reference" / reference_key(reference, bf16=False)
    files_then = sorted(folder.iterdir())
    stored, wanted = read_stored(str(folder)), load(tiny_model, reference.adapter)
    for row in preference_dataset([run_files["prompts"]], [run_files["pairs"]], reader_of(tiny_model)):
        values = [reference_log_probs(wanted, tiny_model, row, side) for side in ("chosen", "rejected")]
        assert stored[row["pair_id"]] == pytest.approx(values, rel=1e-5, abs=1e-4)
    again = dpo_once(
        tiny_model, run_files, tmp_path / "again", policy, reference, DPO.model_copy(update=one_by_one),
        stored=str(folder.parent),
    )  # fmt: skip
    assert sorted(folder.iterdir()) == files_then
    assert not (tmp_path / "again" / "reference").exists()
    assert losses(dpo) == pytest.approx(losses(again), abs=1e-3)
    before, after = adapter_weights(start), adapter_weights(dpo.adapter)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], weight) for name, weight in after.items())


def random_adapter(model: Path, folder: Path, seed: int) -> str:
    """One of LORA's shape that changes what the model says."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(seed)
    tuned = get_peft_model(load(model), new_adapter(LORA))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    tuned.save_pretrained(folder)
    return str(folder)


STEPS_OF_TWO_CRASHES = [1, 2, 3, 4, 5, 5, 6, 7, 7, 8, 9]
"""Three epochs of three steps with a checkpoint every two: a crash in step 6 goes back to the one after step 4, the first of
the second epoch; one in step 8 to the one after step 6, at an epoch's end."""

PACE = "tokens_per_second"


def test_a_new_driver_and_a_new_worker_go_on_from_the_last_checkpoint(
    tiny_model: Path, run_files, tmp_path: Path, cluster, monkeypatch: pytest.MonkeyPatch
):
    """The first crash ends the driver's training, the second one a worker of the next driver. Each time with the batch that
    would have come next: what comes out is what comes out without a crash."""
    from ray.train import TrainingFailedError

    config = SFT.model_copy(update={"num_workers": 1, "epochs": 3, "checkpoint_steps": 2})
    whole = sft_once(tiny_model, run_files, tmp_path / "whole", config.model_copy(update={"num_workers": 0}))
    (tmp_path / "crash").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(ray_adapter, "MAX_FAILURES", 0)
        with pytest.raises(TrainingFailedError):
            fit_with_one_crash(tiny_model, run_files, tmp_path, config, after=5, saved=4)
    assert not (tmp_path / "crash" / "adapter").exists()
    (tmp_path / "crashed").unlink()
    crashed = fit_with_one_crash(tiny_model, run_files, tmp_path, config, after=7, saved=6)
    assert steps_done(tmp_path) == STEPS_OF_TWO_CRASHES
    assert len(list((tmp_path / "crash" / "ray_train").glob("checkpoint_2*"))) == 1
    assert (crashed.steps, crashed.examples, crashed.tokens) == (whole.steps, whole.examples, whole.tokens)
    said = [
        {(entry["step"], name): value for entry in run.history for name, value in entry.items() if name != PACE}
        for run in (whole, crashed)
    ]
    assert said[0] == pytest.approx(said[1], rel=1e-3)
    assert_same_weights(whole.adapter, crashed.adapter)


def test_preferences_go_on_from_the_last_checkpoint(
    tiny_model: Path, run_files, tmp_path: Path, cluster, monkeypatch: pytest.MonkeyPatch
):
    """Of the policy, not of the reference, which starts with the same weights."""
    config = DPO.model_copy(update={"num_workers": 1, "epochs": 3})
    policy = Policy("policy-0", str(tiny_model), random_adapter(tiny_model, tmp_path / "start", seed=1))
    whole = dpo_once(
        tiny_model, run_files, tmp_path / "whole", policy, policy, config.model_copy(update={"num_workers": 0})
    )
    after = whole.steps // 3 + 1
    fit = ray_adapter.fit
    monkeypatch.setattr(
        ray_adapter, "fit", lambda build, *rest: fit(crashing_once(build, tmp_path, after, after - 1), *rest)
    )
    crashed = dpo_once(tiny_model, run_files, tmp_path / "crash", policy, policy, config)
    assert steps_done(tmp_path) == [*range(1, after + 1), *range(after, whole.steps + 1)]
    assert_same_weights(whole.adapter, crashed.adapter)


def assert_same_weights(whole: str, crashed: str) -> None:
    import torch

    one, two = adapter_weights(whole), adapter_weights(crashed)
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def steps_done(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "steps").read_text().split()]


def fit_with_one_crash(model: Path, run_files: dict[str, str], folder: Path, config: SftConfig, after: int, saved: int):
    """Train into folder/crash; the worker dies after so many steps, the first time that it gets there, once the checkpoint
    of the step `saved` is known."""
    settings = {
        "prompts": [run_files["prompts"]],
        "demonstrations": [run_files["demonstrations"]],
        "model": str(model),
        "student": StudentConfig(model=str(model)),
        "lora": LORA,
        "images": ImageConfig(),
        "seed": 0,
        "skip": (),
    }
    build = crashing_once(build_sft, folder, after, saved)
    return ray_adapter.fit(build, settings, config, str(folder / "crash"), ClusterConfig())


def crashing_once(build_trainer, folder: Path, after: int, saved: int):
    """`build_trainer` for `fit_with_one_crash`, which writes folder/steps."""
    steps, crashed = str(folder / "steps"), str(folder / "crashed")
    registered = str(folder / "crash" / "ray_train" / "checkpoint_manager_snapshot.json")

    def build(settings, arguments):
        import os
        import re
        import time

        from transformers import TrainerCallback

        class Crash(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == after and not os.path.exists(crashed):
                    open(crashed, "w").close()
                    # The controller learns of a checkpoint a moment later.
                    while not (
                        os.path.exists(registered) and re.search(rf'"step": ?{saved}\b', Path(registered).read_text())
                    ):
                        time.sleep(0.1)
                    os._exit(1)

            def on_step_end(self, args, state, control, **kwargs):
                with open(steps, "a") as file:
                    file.write(f"{state.global_step}\n")

        trainer = build_trainer(settings, arguments)
        trainer.add_callback(Crash())
        return trainer

    return build
