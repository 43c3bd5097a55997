"""Why a stage would run again: what differs between its plan and the result that is there.

Contract: pure; compares the settings, inputs and code version that make up a fingerprint. Digests (of templates, models,
files) are named, not shown. Holds no prompt and no answer, as settings hold none.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dream_ray.pipeline.plans import Plan
from dream_ray.pipeline.store import Manifest, StageRef

_DIGEST = re.compile(r"[0-9a-f]{12,}")
SHOWN_CHARS = 40
"""Longest value that is shown."""
_ABSENT = object()


def latest(key: str, manifests: Sequence[Manifest], history: Sequence[StageRef]) -> Manifest | None:
    """The result of a stage to compare with: the one that the latest attempt used, else the one that was finished last."""
    mine = [manifest for manifest in manifests if manifest.stage == key]
    used = {ref.fingerprint for ref in history}
    return max(mine, key=lambda manifest: (manifest.fingerprint in used, manifest.finished_at), default=None)


def why(plan: Plan, earlier: Manifest, stages: Mapping[str, str]) -> list[str]:
    """What differs, in words, the stage's own settings first. `stages` names the planned stages by fingerprint."""
    found = []
    if plan.version != earlier.version:
        found.append(f"the stage's code: version {earlier.version} -> {plan.version}")
    settings = json.loads(json.dumps(plan.settings))  # as the manifest has them
    inputs = []
    for path, before, now in _differences("", earlier.settings, settings):
        if isinstance(now, str) and now in stages:
            inputs.append(stages[now])
        else:
            found.append(_words(path, before, now))
    for name in sorted(earlier.inputs.keys() | plan.inputs.keys()):
        now = plan.inputs.get(name, "")
        if now != earlier.inputs.get(name, ""):
            inputs.append(stages.get(now, name))
    if inputs:
        found.append(f"another result of {', '.join(dict.fromkeys(inputs))}")
    return found


def _differences(path: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two trees that differ, by dotted path."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(f"{path}.{key}" if path else key, before.get(key, _ABSENT), now.get(key, _ABSENT))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(f"{path}.{index}", old, new)
    elif before != now:
        yield path, before, now


def _words(path: str, before: Any, now: Any) -> str:
    if now is _ABSENT:
        return f"{path} is gone"
    if before is _ABSENT:
        return f"{path} is new"
    shown = [json.dumps(value) if not isinstance(value, str) else value for value in (before, now)]
    if any(_DIGEST.fullmatch(text) or len(text) > SHOWN_CHARS for text in shown):
        return f"{path} changed"
    return f"{path}: {shown[0]} -> {shown[1]}"
