"""The plans of a run's stages: each one's place in the run directory, from its settings and inputs, before it runs.

Contract: the one place that says what a stage depends on. A plan needs the fingerprints of the stages before it, not their
rows, so all plans up to the first decision of a run can be made before anything ran. Reads the prompt files, the student's
config and the templates; no Ray, no torch, no network.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dream_ray.chat.factory import chat_digest, chat_name
from dream_ray.chat.protocol import Task
from dream_ray.config import ChatConfig, Config, PriceConfig, SourceConfig
from dream_ray.feedback import rubric
from dream_ray.pipeline.payments import price_of
from dream_ray.pipeline.store import RunStore, StageRef, fingerprint
from dream_ray.prompts import Templates, load_templates
from dream_ray.records import Split
from dream_ray.sources.registry import content_digest
from dream_ray.teacher import demonstrate, disentangle
from dream_ray.train.policy import Policy, model_digest, reading_digest

UNRELATED = {"report_to", "num_workers", "checkpoint_steps", "keep_checkpoints"}
"""Settings of a training that change nothing of what comes out."""

SAMPLING_VERSION = 2
"""Of every stage that samples answers, a benchmark's too: they share the engine's arguments (rollout/sampler.py)."""


@dataclass(frozen=True)
class Plan:
    """A stage with the settings and inputs that its fingerprint was made from; `chat` names its teacher or judge."""

    ref: StageRef
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    chat: str
    price: PriceConfig


@dataclass(frozen=True)
class SampleJob:
    """Answers wanted of one policy: to which splits, how many each, how sampled.

    `key` is the folder of its stages and `rollout` the name of the sampling stage in it. `trained` is the stage that made
    the policy, None for the base model. `seed` is the run's, 0 where answers are greedy and so the same for every seed;
    `round` tells the seeds of one round from those of another. `share` of the splits' parts is sampled.
    """

    key: str
    rollout: str
    policy: Policy
    trained: StageRef | None
    splits: tuple[Split, ...]
    n: int
    temperature: float
    top_p: float
    seed: int
    round: int
    share: float

    @property
    def rollout_key(self) -> str:
        """The key of the sampling stage."""
        return f"{self.key}/{self.rollout}"

    @property
    def judge_key(self) -> str:
        """The key of the judging stage."""
        return f"{self.key}/judge"

    def parts(self, all_parts: Iterable[str]) -> list[str]:
        """The parts that the job samples, of all that the run has."""
        mine = [part for part in all_parts if in_splits(part, {split.value for split in self.splits})]
        return parts_of_round(mine, self.round, self.share)


def rollout_job(config: Config, number: int, policy: Policy, trained: StageRef) -> SampleJob:
    """The rollouts of a round: K sampled answers of the policy to every training prompt."""
    how = config.rollout
    return SampleJob(
        key=f"round-{number}",
        rollout="rollout",
        policy=policy,
        trained=trained,
        splits=(Split.TRAIN,),
        n=how.k,
        temperature=how.temperature,
        top_p=how.top_p,
        seed=config.seed,
        round=number,
        share=how.share,
    )


def answers_job(config: Config, policy: Policy, trained: StageRef | None) -> SampleJob:
    """The answers that a policy is measured by: one greedy answer to every prompt of the evaluated splits."""
    return SampleJob(
        key=policy.name,
        rollout="answers",
        policy=policy,
        trained=trained,
        splits=config.evaluate.splits,
        n=1,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        round=0,
        share=1.0,
    )


def part_name(split: str, source_index: int, index: int) -> str:
    """The name of a source's index-th part of a split; all prompts of a part belong to one split and one source."""
    return f"{split}-{source_index:02d}-{index:06d}"


def in_splits(part: str, splits: Iterable[str]) -> bool:
    """True for a part whose prompts belong to one of the splits."""
    return part.split("-", 1)[0] in splits


def parts_of_round(parts: Sequence[str], number: int, share: float) -> list[str]:
    """A share of the parts, other ones in the next round, until all have had their turn; in an order that mixes them.

    The order is by hash, as neighbours in a source are often about the same matter.
    """
    mixed = sorted(parts, key=lambda part: hashlib.sha256(part.encode()).hexdigest())
    size = math.ceil(share * len(mixed))
    first = (max(number, 1) - 1) * size
    return [mixed[(first + offset) % len(mixed)] for offset in range(size)]


class Planner:
    """Plans the stages of one config on its run directory."""

    def __init__(self, config: Config, store: RunStore):
        self.config, self.store = config, store

    @cached_property
    def templates(self) -> Templates:
        """The wording of all questions."""
        return load_templates(self.config.templates)

    @cached_property
    def _student_digest(self) -> str:
        return model_digest(self.config.student.model)

    def plan(
        self,
        key: str,
        version: int,
        settings: Mapping[str, Any],
        inputs: Mapping[str, StageRef],
        chat: ChatConfig | None = None,
        tasks: Iterable[Task] = (),
    ) -> Plan:
        """The plan of a stage, which asks `chat` these tasks. `version` is raised whenever the stage's code gives other
        rows for the same input."""
        digests = {name: ref.fingerprint for name, ref in inputs.items()}
        full = dict(settings)
        if chat is not None:
            full |= {
                "chat": chat.identity(),
                "chat_digest": chat_digest(chat),
                "templates": self.templates.digests(tasks),
            }
        ref = self.store.ref(key, fingerprint(key, version, full, digests))
        return Plan(ref, version, full, digests, chat_name(chat) if chat is not None else "", price_of(chat))

    def ingest(self, key: str = "ingest", sources: Sequence[SourceConfig] = ()) -> Plan:
        """All prompts of the sources, the config's unless others are given."""
        config = self.config
        settings = {
            "sources": [
                source.model_dump(mode="json", exclude={"path"}) | {"content": content_digest(source)}
                for source in sources or config.sources
            ],
            "images": config.images.model_dump(mode="json"),
            "part_rows": config.part_rows,
            # Prompts are measured as the student reads them.
            "student": config.student.model_dump(mode="json", include={"max_model_len", "max_pixels"})
            | {"reading": reading_digest(config.student.model)},
        }
        return self.plan(key, 3, settings, {})

    def disentangle(self, prompts: StageRef) -> Plan:
        """The observations of every prompt."""
        return self.plan("disentangle", 2, {}, {"prompts": prompts}, self.config.teacher.chat, disentangle.TASKS)

    def demonstrate(self, prompts: StageRef, observed: StageRef) -> Plan:
        """The answers that SFT teaches."""
        teacher = self.config.teacher
        settings = {"max_words": teacher.max_words, "benign_ratio": teacher.benign_ratio}
        inputs = {"prompts": prompts, "observed": observed}
        return self.plan("demonstrate", 1, settings, inputs, teacher.chat, demonstrate.TASKS)

    def sft(self, prompts: StageRef, demonstrations: StageRef) -> Plan:
        """Policy 0."""
        settings = self._training() | {"sft": self.config.sft.model_dump(mode="json", exclude=UNRELATED)}
        return self.plan("sft", 3, settings, {"prompts": prompts, "demonstrations": demonstrations})

    def sampled(self, job: SampleJob, prompts: StageRef, observed: StageRef) -> tuple[Plan, Plan]:
        """A job's sampling and its judging, which depends on the sampling."""
        config = self.config
        inputs = {"prompts": prompts, "observed": observed} | ({"trained": job.trained} if job.trained else {})
        settings = {
            "model": self._student_digest,
            "policy": job.policy.name,
            # A trained policy is told by the stage that made it, one from elsewhere by where it lies.
            "adapter": None if job.trained else job.policy.adapter,
            "splits": [split.value for split in job.splits],
            "n": job.n,
            "temperature": job.temperature,
            "top_p": job.top_p,
            "max_tokens": config.rollout.max_tokens,
            "max_model_len": config.student.max_model_len,
            "max_pixels": config.student.max_pixels,
            "dtype": config.rollout.dtype,
            "seed": job.seed,
            "round": job.round,
            "share": job.share,
        }
        sampling = self.plan(job.rollout_key, SAMPLING_VERSION, settings, inputs)
        rollouts = {"rollouts": sampling.ref.fingerprint}
        judging = self.plan(job.judge_key, 2, rollouts, {"observed": observed}, config.judge.chat, rubric.TASKS)
        return sampling, judging

    def pair(self, number: int, observed: StageRef, rollouts: StageRef, judgements: StageRef) -> Plan:
        """The preference pairs of a round."""
        inputs = {"observed": observed, "rollouts": rollouts, "judgements": judgements}
        return self.plan(f"round-{number}/pair", 2, self.config.pairs.model_dump(mode="json"), inputs)

    def dpo(self, number: int, prompts: StageRef, pairs: StageRef, standing: StageRef, start: str) -> Plan:
        """Policy `number`, trained from the policy named `start`, which the stage `standing` made."""
        settings = self._training() | {"dpo": self.config.dpo.model_dump(mode="json", exclude=UNRELATED)}
        settings |= {"start": start}
        inputs = {"prompts": prompts, "pairs": pairs, "standing": standing}
        return self.plan(f"round-{number}/dpo", 3, settings, inputs)

    def evaluate(self, policy: str, prompts: StageRef, answers: StageRef, judgements: StageRef) -> Plan:
        """The metrics of a policy."""
        splits = [split.value for split in self.config.evaluate.splits]
        inputs = {"prompts": prompts, "answers": answers, "judgements": judgements}
        return self.plan(f"{policy}/evaluate", 1, {"splits": splits}, inputs)

    def _training(self) -> dict[str, Any]:
        """What every training stage depends on besides its own section."""
        config = self.config
        return {
            "student": config.student.model_dump(mode="json", exclude={"model"}) | {"content": self._student_digest},
            "lora": config.lora and config.lora.model_dump(mode="json"),
            "images": config.images.model_dump(mode="json"),
            "seed": config.seed,
        }
