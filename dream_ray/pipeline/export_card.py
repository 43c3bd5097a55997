"""What stands beside an exported data set: its card, and the file by which LLaMA-Factory finds it.

Contract: pure. The card holds counts, names, licences and how to load the rows, never a prompt or an answer.
"""

import json
from collections.abc import Mapping
from typing import Any

from dream_ray.chat.factory import chat_name
from dream_ray.config import Config, VllmConfig
from dream_ray.pipeline.export_rows import DEMONSTRATIONS, FEATURES, PREFERENCES
from dream_ray.sources.format import source_name
from dream_ray.sources.registry import FORMATS

_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def dataset_info(name: str, rows: Mapping[str, int]) -> bytes:
    """LLaMA-Factory's dataset_info.json: each configuration under <run>_<configuration>, in the sharegpt form
    (https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md)."""
    entries: dict[str, Any] = {}
    for kind in rows:
        columns = {"messages": "dialogue", "images": "images"}
        entry: dict[str, Any] = {"file_name": kind, "formatting": "sharegpt", "columns": columns, "tags": _TAGS}
        if kind == PREFERENCES:
            columns |= {"chosen": "chosen_answer", "rejected": "rejected_answer"}
            entry["ranking"] = True
        entries[f"{name}_{kind}"] = entry
    return (json.dumps(entries, indent=2) + "\n").encode()


def data_card(config: Config, rows: Mapping[str, int], skipped: Mapping[str, int], sources: Mapping[str, int]) -> str:
    """The data set's card, with the head by which the datasets library finds its files."""
    head = "\n".join(
        f"- config_name: {kind}\n  data_files: {kind}/*.parquet" + ("\n  default: true" if index == 0 else "")
        for index, kind in enumerate(rows)
    )
    counts = "\n".join(f"| {kind} | {count} | {', '.join(FEATURES[kind])} |" for kind, count in rows.items())
    left_out = "".join(f"\n{count} rows were left out: {reason}." for reason, count in skipped.items())
    loads = "\n".join(f'load_dataset("PATH", "{kind}", split="train")   # {_USES[kind]}' for kind in rows)
    names = " or ".join(f"{config.name}_{kind}" for kind in rows)
    return f"""---
configs:
{head}
tags: [safety, alignment, multimodal, dream, dream_ray]
---
# What the run {config.name} learnt from

Answers to image-text prompts, made by [dream_ray](https://arxiv.org/abs/2504.18053). **Some prompts ask for harmful things,
and rejected answers may comply.** Only prompts of the training split are here.

| configuration | rows | columns |
|---|---|---|
{counts}
{left_out}
Demonstrations are the answers of the teacher, {_model(config.teacher.chat)}; preference pairs are answers of the run's policies
to the same prompt, the better one chosen by the judge, {_model(config.judge.chat)}. Nobody has checked them by hand.

| prompts of | rows | read as | licence of that set |
|---|---|---|---|
{_sources(config, sources)}

Whoever passes this on has to keep to those licences.

## Loading

```python
from datasets import load_dataset
{loads}
```

LLaMA-Factory: `dataset_dir: PATH` and `dataset: {names}`.
It reads `dialogue`, in which a literal `<image>` of a text is written `< image >`.
"""


_USES = {DEMONSTRATIONS: "for TRL's SFTTrainer", PREFERENCES: "for TRL's DPOTrainer"}


def _model(chat: Any) -> str:
    """A chat model's name; weights of an own engine by their folder's name, as nobody else knows the place."""
    if isinstance(chat, VllmConfig):
        return f"`{chat.model.rstrip('/').rsplit('/', 1)[-1]}`"
    return f"`{chat_name(chat)}`"


def _sources(config: Config, rows: Mapping[str, int]) -> str:
    formats = {source_name(source): source.format for source in config.sources}
    lines = []
    for name, count in sorted(rows.items()):
        form = formats.get(name, "")
        licence = FORMATS[form].licence if form else ""
        lines.append(f"| {name.replace('|', ' ')} | {count} | {form or '?'} | {licence or 'not known'} |")
    return "\n".join(lines)
