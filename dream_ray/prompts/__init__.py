"""The templates: one text file per `Task`, shipped with the package; a folder of the user's can replace some or all.

Contract: `load_templates` reads and checks all templates once; `Templates.render` is pure. A field is written
`{name}` and filled in one pass, so that a value that itself holds "{response}" or JSON braces comes out untouched.
Text that comes from a prompt or a student stands between marks that carry `{fence}`, a code made from the values and
contained in none of them: no text can close its own fence. `Templates.digest` goes into stage fingerprints.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from dream_ray import files
from dream_ray.chat.protocol import CHOICES, Task

FIELDS: Mapping[Task, frozenset[str]] = {
    Task.IMAGE_PASS: frozenset(),
    Task.TEXT_PASS: frozenset({"text"}),
    Task.VERIFY: frozenset({"content", "category"}),
    Task.ANSWER_RISKY: frozenset({"text", "observations", "max_words"}),
    Task.ANSWER_BENIGN: frozenset({"text", "reference", "max_words"}),
    Task.SCORE: frozenset({"text", "observations", "response"}),
    Task.HIT: frozenset({"text", "observation", "response"}),
    Task.HELPFULNESS: frozenset({"text", "response"}),
    Task.VERDICT: frozenset({"text", "response"}),
    **{task: frozenset({"text", "response"}) for task in CHOICES},
    Task.HEEDS_WARNING: frozenset({"text", "warning", "reference", "response"}),
}
"""The fields of each task's template; each must stand in it."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


class TemplateError(ValueError):
    """A template, or a set of fields for one, that cannot be used. The message says what to do."""


@dataclass(frozen=True)
class Templates:
    """All templates by task."""

    texts: Mapping[Task, str]

    def render(self, task: Task, fields: Mapping[str, str]) -> str:
        """The template of `task` with its fields filled. Raises TemplateError where a field is missing or unknown."""
        if fields.keys() != FIELDS[task]:
            raise TemplateError(
                f"The template {task.value} was given the fields [{', '.join(sorted(fields))}], but it takes exactly "
                f"[{', '.join(sorted(FIELDS[task]))}]. Pass those, as dream_ray/chat/protocol.py describes them."
            )
        values = {**fields, "fence": _fence(fields)}
        return _PLACEHOLDER.sub(lambda match: values[match.group(1)], self.texts[task])

    @property
    def digest(self) -> str:
        """sha256, in hex, of all names and texts."""
        content = json.dumps(
            {task.value: text for task, text in self.texts.items()}, sort_keys=True, ensure_ascii=False
        )
        return hashlib.sha256(content.encode()).hexdigest()


def load_templates(folder: str | None = None) -> Templates:
    """The shipped templates; `<task>.txt` files in `folder` (any pyarrow filesystem) take the place of theirs.

    Raises TemplateError where the folder holds no template or one of an unknown name, or where a template lacks one
    of its fields or names another.
    """
    shipped = resources.files(__name__)
    texts = {task: shipped.joinpath(f"{task.value}.txt").read_text(encoding="utf-8") for task in Task}
    if folder is not None:
        texts.update(_read_folder(folder))
    for task, text in texts.items():
        _check(task, text)
    return Templates(texts)


def _read_folder(folder: str) -> dict[Task, str]:
    names = [path.rsplit("/", 1)[-1] for path in files.list_files(folder, suffix=".txt")]
    known = {f"{task.value}.txt": task for task in Task}
    unknown = sorted(set(names) - known.keys())
    if unknown or not names:
        found = f"the unknown file(s) {', '.join(unknown)}" if unknown else "no .txt file"
        raise TemplateError(
            f"The template folder {folder} holds {found}, so not all of it would be used. Name each file after a task: "
            f"{', '.join(sorted(known))}; tasks without a file keep the shipped template."
        )
    return {known[name]: files.read_bytes(files.join(folder, name)).decode() for name in names}


def _check(task: Task, text: str) -> None:
    found = set(_PLACEHOLDER.findall(text))
    missing, unknown = FIELDS[task] - found, found - FIELDS[task] - {"fence"}
    if missing or unknown:
        raise TemplateError(
            f"The template {task.value}.txt lacks the field(s) [{', '.join(sorted(missing))}] and names the unknown "
            f"field(s) [{', '.join(sorted(unknown))}]. Write each of {', '.join(sorted(FIELDS[task])) or 'no field'} "
            "as {name}, and {fence} in the marks around text that is not yours."
        )
    if FIELDS[task] and "fence" not in found:
        raise TemplateError(
            f"The template {task.value}.txt never uses {{fence}}, so a prompt or an answer could pose as an "
            "instruction to the model. Put a line with {fence} before and after each field and say that what stands "
            "between is data."
        )


def _fence(fields: Mapping[str, str]) -> str:
    """A code that depends on the values only (so that runs repeat) and occurs in none of them."""
    seed = json.dumps(dict(fields), sort_keys=True)
    while True:
        seed = hashlib.sha256(seed.encode()).hexdigest()
        if not any(seed[:12] in value for value in fields.values()):
            return seed[:12]
