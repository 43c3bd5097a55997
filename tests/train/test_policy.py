"""Model folders are checked before they are loaded, and travel between file systems."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dream_ray.config import ConfigError
from dream_ray.train.policy import (
    Policy,
    check_model_folder,
    fetch_folder,
    fetch_model,
    find_policy,
    merge_adapter,
    store_folder,
)
from tests.object_store import object_store

COMPLETE = {
    "config.json": json.dumps({"architectures": ["Idefics3ForConditionalGeneration"]}),
    "model.safetensors": "",
    "tokenizer.json": "{}",
    "processor_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
}


def write(folder: Path, content: dict[str, str]) -> str:
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    return str(folder)


def test_a_complete_folder_passes(tmp_path: Path):
    check_model_folder(write(tmp_path / "model", COMPLETE))


def test_a_template_inside_the_tokenizer_config_passes(tmp_path: Path):
    content = {name: text for name, text in COMPLETE.items() if name != "chat_template.jinja"}
    check_model_folder(write(tmp_path / "model", {**content, "tokenizer_config.json": '{"chat_template": "x"}'}))


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere.* is not a folder"):
        check_model_folder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("config.json", r"lacks config\.json"),
        ("model.safetensors", r"lacks \*\.safetensors"),
        ("tokenizer.json", r"lacks tokenizer\.json"),
        ("processor_config.json", "lacks processor_config.json or preprocessor_config.json"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_each_missing_file_is_named(tmp_path: Path, absent: str, message: str):
    content = {name: text for name, text in COMPLETE.items() if name != absent}
    with pytest.raises(ConfigError, match=message):
        check_model_folder(write(tmp_path / "model", content))


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("{}", "names no `architectures`")])
def test_a_broken_config_is_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        check_model_folder(write(tmp_path / "model", {**COMPLETE, "config.json": text}))


def test_a_local_folder_is_used_in_place(tmp_path: Path):
    folder = write(tmp_path / "model", COMPLETE)
    assert fetch_folder(folder, tmp_path / "cache") == Path(folder)
    assert not (tmp_path / "cache").exists()


def test_a_remote_folder_is_copied_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = Path(write(tmp_path / "model", COMPLETE))
    (source / "ref").mkdir()
    (source / "ref" / "inner.json").write_text("1")
    with object_store(monkeypatch):
        store_folder(source, "s3://runs/a/adapter")
        fetched = fetch_folder("s3://runs/a/adapter", tmp_path / "cache")
    assert fetched.is_relative_to(tmp_path / "cache")
    found = {file.relative_to(fetched).as_posix(): file.read_text() for file in fetched.rglob("*") if file.is_file()}
    assert found == {**COMPLETE, "ref/inner.json": "1"}


def test_a_machine_fetches_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Several that ask at once share one copy; a model that changed is fetched anew; one that nobody asks for any more goes."""
    source = Path(write(tmp_path / "model", COMPLETE))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert fetch_model(str(source)) == source
    with object_store(monkeypatch) as store:
        store.upload(source, "models/student")
        with ThreadPoolExecutor(4) as pool:
            (copy,) = set(pool.map(fetch_model, ["s3://models/student"] * 4))
        assert fetch_model("s3://models/student") == copy
        assert store.requests["GET object"] == sum(map(bool, COMPLETE.values()))  # an empty file is not asked for
        store.objects["models/student/config.json"] = b"{}  "
        changed = fetch_model("s3://models/student")
        assert (changed / "config.json").read_text() == "{}  "
        assert json.loads((copy / "config.json").read_text()) != {}
        os.utime(copy, (0, 0))
        store.objects["models/other/config.json"] = b"{}"
        fetch_model("s3://models/other")
        assert changed.exists()
        assert not copy.exists()
        with pytest.raises(FileNotFoundError, match="holds no files"):
            fetch_model("s3://models/nothing")


def test_storing_replaces_what_was_there(tmp_path: Path):
    target = tmp_path / "run" / "adapter"
    store_folder(Path(write(tmp_path / "first", {"a": "1"})), str(target))
    store_folder(Path(write(tmp_path / "second", {"b": "2"})), str(target))
    assert [file.name for file in target.iterdir()] == ["b"]
    assert [file.name for file in target.parent.iterdir()] == ["adapter"]


def test_a_policy_without_adapter_cannot_be_merged(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_adapter(Policy("base", str(tmp_path), None), str(tmp_path / "merged"))


def test_a_policy_is_found_by_what_a_user_names(tmp_path: Path):
    """A run, its policy.json, a model folder, the base model's folder, an adapter's folder."""
    base = write(tmp_path / "base", COMPLETE)
    other = write(tmp_path / "other", COMPLETE)
    adapter = tmp_path / "sft" / "0123abcd" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    run = tmp_path / "run"
    run.mkdir()
    content = {"name": "policy-2", "model": base, "adapter": str(adapter)}
    (run / "policy.json").write_text(json.dumps(content))

    assert find_policy(str(run), base) == find_policy(str(run / "policy.json"), base) == Policy(**content)
    assert find_policy(base + "/", base) == Policy("base", base + "/", None)
    assert find_policy(other, base) == Policy("other", other, None)
    assert find_policy(str(adapter), base) == Policy("0123abcd", base, str(adapter))


def test_what_is_no_policy_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="neither a run directory"):
        find_policy(str(tmp_path), "base")
    (tmp_path / "policy.json").write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match="does not describe a policy"):
        find_policy(str(tmp_path), "base")
