"""A policy: a base model and, perhaps, a LoRA adapter on it, wherever they are stored.

Contract: `check_model_folder` finds in milliseconds what would otherwise fail after a model has loaded; `fetch_folder`
gives a local path for a uri; `merge_adapter` turns base + adapter into a plain model folder. Nothing here trains.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from dream_ray import files
from dream_ray.config import ConfigError
from dream_ray.scratch import ScratchFolder
from dream_ray.train.layout import rename_for_engines

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""transformers 5 writes the first, earlier versions the second; either makes a processor."""

READING = re.compile(r"token|vocab|merges|processor|template|preprocess")
"""The files of a model folder that tell how prompts are read."""


@dataclass(frozen=True)
class Policy:
    """A model that answers. `model` and `adapter` are uris of folders; `adapter` is None for the base model alone."""

    name: str
    model: str
    adapter: str | None


def find_policy(uri: str, base: str) -> Policy:
    """The policy that a user names: a run directory or its policy.json, a model folder, or an adapter's folder, which then
    goes on the model `base`. Raises ConfigError where it is none of them."""
    record = uri if uri.endswith(".json") else files.join(uri, "policy.json")
    if files.exists(record):
        try:
            return Policy(**json.loads(files.read_bytes(record)))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{record} does not describe a policy ({error}). A run writes it; name the run again."
            ) from None
    name = _policy_name(uri)
    if files.exists(files.join(uri, "adapter_config.json")):
        return Policy(name, base, uri)
    if files.exists(files.join(uri, "config.json")):
        check_model_folder(uri)
        return Policy("base" if files.resolve(uri) == files.resolve(base) else name, uri, None)
    raise ConfigError(
        f"The policy {uri!r} is neither a run directory (policy.json) nor a model folder (config.json) nor an adapter's folder "
        "(adapter_config.json). Name one of these; a run's adapters lie in <run_dir>/stages/…/adapter."
    )


def _policy_name(uri: str) -> str:
    """The last part of a path that says something; a run's adapters all lie in folders of one name."""
    parts = [part for part in uri.rstrip("/").split("/") if part]
    while len(parts) > 1 and parts[-1] in ("adapter", "merged"):
        parts.pop()
    return parts[-1]


def check_model_folder(uri: str) -> None:
    """Raise ConfigError unless the folder holds a config, safetensors, a tokenizer, a chat template and a processor.

    Reads file names and two small files, no weights, so a wrong setting is found before anything loads.
    """
    filesystem, path = files.resolve(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        raise ConfigError(
            f"student.model = {uri!r} is not a folder. It has to be a model that transformers saved: config.json, "
            "*.safetensors, tokenizer and processor files. Download the model there first, or build the local student."
        )
    names = {file.rsplit("/", 1)[-1] for file in files.list_files(uri)}
    missing = []
    if "config.json" not in names:
        missing.append("config.json")
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    if "tokenizer.json" not in names and "tokenizer_config.json" not in names:
        missing.append("tokenizer.json")
    if not names.intersection(PROCESSOR_FILES):
        missing.append(" or ".join(PROCESSOR_FILES))
    if missing:
        raise ConfigError(
            f"student.model = {uri!r} lacks {', '.join(missing)}, so it cannot be loaded as a multimodal model. Save "
            "the model and its processor into one folder with save_pretrained, or name another folder."
        )
    if not (
        names & {"chat_template.jinja", "chat_template.json"} or "chat_template" in _json(uri, "tokenizer_config.json")
    ):
        raise ConfigError(
            f"student.model = {uri!r} has no chat template (chat_template.jinja), so prompts cannot be rendered the "
            "way the model was trained on. Take an instruction-tuned model, or add its template to the folder."
        )
    if "architectures" not in _json(uri, "config.json"):
        raise ConfigError(
            f"student.model = {uri!r}: its config.json names no `architectures`, so vLLM cannot tell which model it "
            "is. Save the model again with save_pretrained."
        )


def _json(uri: str, name: str) -> dict[str, object]:
    """A JSON file of a model folder; empty where there is none."""
    file = files.join(uri, name)
    if not files.exists(file):
        return {}
    try:
        content = json.loads(files.read_bytes(file))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}). Copy or download the model folder again.") from None
    return dict(content)


def model_digest(folder: str) -> str:
    """A hash of a model folder: its config's content and the name and size of every file, not gigabytes of weights."""
    filesystem, path = files.resolve(folder)
    sizes = [[info.base_name, info.size] for info in filesystem.get_file_info(pafs.FileSelector(path))]
    content = files.read_bytes(files.join(folder, "config.json"))
    return hashlib.sha256(content + json.dumps(sorted(sizes)).encode()).hexdigest()


def reading_digest(folder: str) -> str:
    """A hash of what decides how a model folder's prompts are read: tokenizer, processor and template, not the weights."""
    digest = hashlib.sha256()
    names = [path.rsplit("/", 1)[-1] for path in files.list_files(folder)] if files.exists(folder) else []
    for name in sorted(name for name in names if READING.search(name)):
        digest.update(f"{name}\n".encode() + files.read_bytes(files.join(folder, name)))
    return digest.hexdigest()


def fetch_folder(uri: str, into: Path, weights: bool = True) -> Path:
    """A local path of a folder: the folder itself where it is local, else a copy below `into`, without its safetensors where
    `weights` is False."""
    if files.is_local(uri):
        return files.as_path(uri)
    filesystem, path = files.resolve(uri)
    target = into / path.strip("/").replace("/", "--")
    target.mkdir(parents=True, exist_ok=True)
    if not weights:
        for file in files.list_files(uri):
            name = file.rsplit("/", 1)[-1]
            if not name.endswith(".safetensors"):
                (target / name).write_bytes(files.read_bytes(files.join(uri, name)))
        return target
    pafs.copy_files(path, str(target), source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())
    return target


def store_folder(folder: Path, uri: str) -> None:
    """Put a local folder at a uri, in place of what was there.

    On a local disk it appears by one rename. Object stores have none; there `adapter_config.json` or `config.json`,
    without which nothing loads, goes last.
    """
    files.delete_folder(uri)
    filesystem, path = files.resolve(uri)
    if files.is_local(uri):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        unfinished = f".{Path(path).name}.store-"
        for left in Path(path).parent.glob(f"{unfinished}*"):  # of a process that was killed here
            shutil.rmtree(left)
        temporary = Path(tempfile.mkdtemp(prefix=unfinished, dir=Path(path).parent))
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from the other workers' user
        os.replace(temporary, path)
        return
    filesystem.create_dir(path, recursive=True)
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    for name in sorted(names, key=lambda name: name in ("adapter_config.json", "config.json")):
        filesystem.create_dir(f"{path}/{name}".rsplit("/", 1)[0], recursive=True)
        pafs.copy_files(str(folder / name), f"{path}/{name}", pafs.LocalFileSystem(), filesystem)


def merge_adapter(policy: Policy, output: str, trust_remote_code: bool = False, dtype: str | None = None) -> str:
    """Write base + adapter as one model folder with its processor at the uri `output`; returns `output`.

    Merged in float32 and saved as `dtype`, the base's own unless given. Raises ValueError for a policy without an adapter.
    """
    if policy.adapter is None:
        raise ValueError(
            f"Policy {policy.name} has no adapter: there is nothing to merge; use {policy.model} as it is."
        )
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    with ScratchFolder("merge") as scratch:
        base = fetch_folder(policy.model, Path(scratch, "fetched"))
        adapter = fetch_folder(policy.adapter, Path(scratch, "fetched"))
        stored = dtype or AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code).dtype
        model = AutoModelForImageTextToText.from_pretrained(
            base, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        folder = Path(scratch, "merged")
        merged.to(getattr(torch, stored) if isinstance(stored, str) else stored).save_pretrained(folder)
        rename_for_engines(folder)
        AutoProcessor.from_pretrained(base, trust_remote_code=trust_remote_code).save_pretrained(folder)
        store_folder(folder, output)
    return output
