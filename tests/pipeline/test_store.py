"""The run directory: done means a manifest with the same fingerprint, and nothing is overwritten."""

from pathlib import Path

import pytest

from dream_ray import files
from dream_ray.config import Config, ConfigError, load_config
from dream_ray.pipeline.store import Manifest, RunStore, fingerprint


def config(tmp_path: Path, name: str) -> Config:
    path = tmp_path / f"{name}.yaml"
    path.write_text(f"name: {name}\nstudent: {{model: folder}}\nsources: [{{path: prompts.jsonl}}]\n")
    return load_config(path)


def manifest(digest: str) -> Manifest:
    return Manifest("sft", digest, 1, {}, {}, 3, 2, 1, {"bad": 1}, 0, 0, 0.0, 1.5, "now", {}, passed_with=("a",))


def test_fingerprint_follows_settings_inputs_and_version() -> None:
    base = fingerprint("sft", 1, {"a": 1}, {"prompts": "x"})
    assert base == fingerprint("sft", 1, {"a": 1}, {"prompts": "x"})
    others = [
        fingerprint("dpo", 1, {"a": 1}, {"prompts": "x"}),
        fingerprint("sft", 2, {"a": 1}, {"prompts": "x"}),
        fingerprint("sft", 1, {"a": 2}, {"prompts": "x"}),
        fingerprint("sft", 1, {"a": 1}, {"prompts": "y"}),
    ]
    assert len({base, *others}) == 5


def test_a_stage_is_done_when_its_manifest_is_there(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    ref = store.ref("round-1/rollout", fingerprint("sft", 1, {}, {}))
    store.start(ref)
    assert store.manifest(ref) is None
    store.finish(ref, manifest(ref.fingerprint))
    assert store.manifest(ref) == manifest(ref.fingerprint)
    other = store.ref("round-1/rollout", fingerprint("sft", 1, {"changed": True}, {}))
    assert store.manifest(other) is None
    assert other.uri != ref.uri


def test_start_keeps_what_is_whole_and_removes_what_is_not(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    ref = store.ref("ingest", "0" * 64)
    store.start(ref)
    files.write_atomic(files.join(ref.data_uri, "part.parquet"), b"whole")
    files.write_atomic(files.join(ref.data_uri, "other.parquet.0123.tmp"), b"half")
    store.start(ref)
    assert [Path(path).name for path in files.list_files(ref.data_uri)] == ["part.parquet"]


def test_a_torn_manifest_means_not_done(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    ref = store.ref("sft", "0" * 64)
    store.finish(ref, manifest(ref.fingerprint))
    whole = Path(ref.uri, "manifest.json").read_bytes()
    Path(ref.uri, "manifest.json").write_bytes(whole[: len(whole) // 2])
    assert store.manifest(ref) is None
    assert store.manifests() == []
    store.finish(ref, manifest(ref.fingerprint))
    assert store.manifests() == [manifest(ref.fingerprint)]


def test_a_directory_belongs_to_one_run(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    store.claim(config(tmp_path, "one"))
    store.claim(config(tmp_path, "one"))
    with pytest.raises(ConfigError, match="belongs to the run 'one'"):
        store.claim(config(tmp_path, "two"))
