"""The row that asks the sampler for answers, and how its seed comes about.

Contract: a `SampleRequest` holds all that the sampler needs, so that one pass of an engine serves several stages and
several policies of the same base weights: they differ in `adapter` only. `request_table` writes such rows, with the
checks of records.py. Pure; knows records only.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from dream_ray.records import Observation, Prompt, to_table

SEED_LIMIT = 2**31
"""Seeds stay below it. `sample_seed` leaves room for 2**16 samples above its value, as the k-th one has seed + k."""


@dataclass(frozen=True)
class SampleRequest:
    """Ask `policy` for `n` answers to `prompt`.

    `job` and `part` name the stage and the file that the answers belong to; they and `observations` come out as they
    went in. `adapter` is the uri of a LoRA adapter's folder, None for the base model. `temperature` 0 is greedy.
    `max_tokens` is the longest answer. Sample k is drawn with the seed `seed` + k.
    """

    job: str
    part: str
    policy: str
    adapter: str | None
    prompt: Prompt
    observations: tuple[Observation, ...]
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        """Raise ValueError for what the engine would refuse, before any engine has started."""
        if self.n < 1 or (self.n > 1 and self.temperature == 0):
            raise ValueError(
                f"A request of {self.job} asks for n = {self.n} answers at temperature {self.temperature}. There has "
                "to be at least one, and at temperature 0 all would be the same text: set a temperature above 0, or n "
                "= 1."
            )
        if not 0 <= self.seed <= SEED_LIMIT - self.n:
            raise ValueError(
                f"A request of {self.job} has seed {self.seed} for n = {self.n} answers, which leaves the range from "
                f"0 to {SEED_LIMIT - 1}. Take the seed from sample_seed."
            )


def sample_seed(run_seed: int, prompt_id: str, round: int) -> int:
    """The seed of a prompt's first sample in a round: a hash of the three, the same on every machine.

    Prompts and rounds get unrelated seeds, so that no two of them share their random numbers.
    """
    text = json.dumps([run_seed, prompt_id, round])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % (SEED_LIMIT - 2**16)


def request_table(requests: Iterable[SampleRequest]) -> pa.Table:
    """Requests as the table that the sampler reads. Raises ValueError where a required field is None."""
    return to_table(SampleRequest, requests)
