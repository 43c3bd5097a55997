"""Prompts that the student can be given whole, told from those that it cannot.

Contract: `Measure` is a Ray Data actor class between opening images and writing prompts: tables of outcomes in, the same rows
out, a prompt that is too long or unreadable for the student as an error with its length. It looks at sizes of images, not at
pixels. A prompt is never cut: a cut would go through its image tokens.
"""

from pathlib import Path

import pyarrow as pa

from dream_ray.config import ImageConfig, StudentConfig
from dream_ray.outcomes import outcome_table
from dream_ray.records import ErrorRow, Prompt, from_row
from dream_ray.scratch import ScratchFolder
from dream_ray.student import StudentReader, Unreadable
from dream_ray.train.policy import fetch_folder


class Measure:
    """See the module's contract."""

    def __init__(self, student: StudentConfig, limits: ImageConfig):
        self._room = student.max_model_len
        with ScratchFolder("measure") as scratch:
            folder = fetch_folder(student.model, Path(scratch), weights=False)
            self._reader = StudentReader(folder, student, limits)

    def __call__(self, block: pa.Table) -> pa.Table:
        outcomes: list[Prompt | ErrorRow] = []
        for row in block.to_pylist():
            bad = row["record"] is None
            outcomes.append(from_row(ErrorRow, row["error"]) if bad else self._one(from_row(Prompt, row["record"])))
        return outcome_table(Prompt, outcomes)

    def _one(self, prompt: Prompt) -> Prompt | ErrorRow:
        try:
            length = self._reader.length(prompt.turns)
        except Unreadable as error:
            return _refused(prompt, error.reason, error.detail)
        if length >= self._room:
            detail = f"{length} tokens, image tokens included; student.max_model_len is {self._room}"
            return _refused(prompt, "prompt_too_long", detail)
        return prompt


def _refused(prompt: Prompt, reason: str, detail: str) -> ErrorRow:
    return ErrorRow("ingest", f"{prompt.source}:{prompt.source_id}", reason, detail, 1)
