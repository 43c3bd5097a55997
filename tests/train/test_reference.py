"""The reference's log-probabilities: those of the reference that was asked for, stored, and used in place of a second run."""

from pathlib import Path

import pytest

from dream_ray.config import DpoConfig, ImageConfig, SftConfig, StudentConfig
from dream_ray.train import ray_adapter, reference
from dream_ray.train.dpo import build_trainer
from dream_ray.train.policy import Policy, merge_adapter
from dream_ray.train.reference import StoredReferenceCollator, read_stored, reference_key
from tests.train.test_training import LORA, load, reference_log_probs, sft_once

DPO = DpoConfig(learning_rate=1e-2, epochs=1, batch_size=4, micro_batch_size=2, num_workers=0)
SFT = SftConfig(learning_rate=1e-2, epochs=1, batch_size=4, micro_batch_size=2, num_workers=0)


def folder_of(path: Path, **content: bytes) -> str:
    path.mkdir()
    for name, data in content.items():
        (path / name).write_bytes(data)
    return str(path)


def test_the_key_follows_the_weights_and_not_the_place(tmp_path: Path):
    base = folder_of(tmp_path / "base", **{"config.json": b"{}", "model.safetensors": b"base"})
    one, same, other = (
        folder_of(tmp_path / name, **{"adapter_model.safetensors": data})
        for name, data in (("one", b"weights"), ("same", b"weights"), ("other", b"changed"))
    )
    merged = folder_of(tmp_path / "merged", **{"config.json": b"{}", "model.safetensors": b"else"})
    keys = [reference_key(Policy("p", base, adapter), bf16=False) for adapter in (one, same, other, None)]
    assert keys[0] == keys[1]
    rest = [reference_key(Policy("p", merged, None), bf16=False), reference_key(Policy("p", base, one), bf16=True)]
    assert len({*keys, *rest}) == 5


def test_nothing_is_stored_where_there_is_no_folder(tmp_path: Path):
    assert read_stored(str(tmp_path / "none")) == {}


def test_what_is_stored_reads_back_from_several_files(tmp_path: Path):
    reference._store(str(tmp_path), {"a": (-1.5, -2.5), "b": (-0.25, 0.0)})
    reference._store(str(tmp_path), {"c": (-3.0, -4.0)})
    assert read_stored(str(tmp_path)) == {"a": (-1.5, -2.5), "b": (-0.25, 0.0), "c": (-3.0, -4.0)}


@pytest.mark.slow
def test_a_batch_gets_what_is_stored_of_its_pairs():
    seen = []
    collate = StoredReferenceCollator(lambda examples: seen.append(examples) or {"input_ids": "tokens"})
    rows = [{"pair_id": "b", "prompt": "?"}, {"pair_id": "a", "prompt": "!"}]
    assert collate(rows) == {"input_ids": "tokens"}
    collate.stored = {"a": (-1.0, -2.0), "b": (-3.0, -4.0)}
    batch = collate(rows)
    assert (batch["ref_chosen_logps"].tolist(), batch["ref_rejected_logps"].tolist()) == ([-3.0, -1.0], [-4.0, -2.0])
    assert seen[1] == [{"prompt": "?"}, {"prompt": "!"}]
    collate.stored = {"a": (-1.0, -2.0)}
    with pytest.raises(KeyError):
        collate(rows)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["initial", "previous"])
def test_a_training_stores_the_reference_that_was_asked_for_and_uses_it(
    tiny_model: Path, run_files, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
):
    """`initial`: TRL copies the start into its reference; with start != reference ours has to replace it."""
    from trl import DPOTrainer

    start = sft_once(tiny_model, run_files, tmp_path / "start", SFT, seed=1).adapter
    if mode == "initial":
        model, adapter = tiny_model, sft_once(tiny_model, run_files, tmp_path / "other", SFT, seed=2).adapter
    else:
        model, adapter = Path(merge_adapter(Policy("p", str(tiny_model), start), str(tmp_path / "merged"))), None
    calls: list[int] = []
    compute = DPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(
        DPOTrainer,
        "compute_ref_log_probs",
        lambda *args: calls.append(len(args[2]["input_ids"]) // 2) or compute(*args),
    )
    monkeypatch.setattr(reference, "FLUSH_BATCHES", 2)
    folder = tmp_path / "stored"

    def train(stored: bool = True):
        calls.clear()
        settings = {
            "prompts": [run_files["prompts"]],
            "pairs": [run_files["pairs"]],
            "skip": (),
            "model": str(model),
            "start_adapter": start if mode == "initial" else None,
            "reference_adapter": adapter,
            "student": StudentConfig(model=str(model)),
            "lora": LORA,
            "dpo": DPO,
            "probes": (),
            "images": ImageConfig(),
            "seed": 0,
            "stored": str(folder),
            "output": str(tmp_path),
        }
        with monkeypatch.context() as patch:
            if not stored:
                patch.setattr("dream_ray.train.dpo.use_stored_reference", lambda *args: None)
            trainer = build_trainer(settings, ray_adapter._arguments(DPO, tmp_path / "scratch") | {"logging_steps": 1})
        trainer.train()
        return trainer

    first = train()
    assert sum(calls) == 12
    found = read_stored(str(folder))
    wanted, not_wanted = load(model, adapter), load(tiny_model, start if mode == "initial" else None)
    for row in first.train_dataset:
        expected = [reference_log_probs(wanted, tiny_model, row, side) for side in ("chosen", "rejected")]
        assert found[row["pair_id"]] == pytest.approx(expected, rel=1e-5, abs=1e-4)
        wrong = [reference_log_probs(not_wanted, tiny_model, row, side) for side in ("chosen", "rejected")]
        assert found[row["pair_id"]] != pytest.approx(wrong, abs=0.1)
    trained = [name for name, parameter in first.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)

    if mode == "previous":
        return
    # Three files of four pairs: one that is lost costs its own pairs only.
    parts = sorted(folder.iterdir())
    assert len(parts) == 3
    parts[1].unlink()
    again = train()
    assert sum(calls) == 4
    for pair_id, values in read_stored(str(folder)).items():
        assert values == pytest.approx(found[pair_id], rel=1e-5, abs=1e-4)
    assert losses(again) == pytest.approx(losses(first), abs=1e-5)
    train()
    assert not calls

    # TRL's own way, which runs the reference in every step, learns the same.
    plain = train(stored=False)
    assert losses(plain) == pytest.approx(losses(first), abs=1e-5)
    # And the stored numbers are what the loss sees: another reference, another margin.
    for part in folder.iterdir():
        part.unlink()
    reference._store(str(folder), {name: (chosen - 10.0, rejected) for name, (chosen, rejected) in found.items()})
    moved = train()
    margins = [
        next(entry for entry in run.state.log_history if "loss" in entry)["rewards/margins"] for run in (first, moved)
    ]
    assert margins[1] - margins[0] == pytest.approx(10.0 * DPO.beta, abs=1e-4)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
