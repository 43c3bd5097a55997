"""Run directories as the loop leaves them, written without Ray: invented, mild rows with marks that are easy to find."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image as Pixels

from dream_ray.config import Config
from dream_ray.evaluate.benchmarks.measure import JUDGE_FAILURES
from dream_ray.evaluate.metrics import ALL, policy_metrics, share_metric
from dream_ray.evaluate.paired import Comparison, paired_bootstrap
from dream_ray.images import sha256
from dream_ray.pipeline.benchmarks import compared
from dream_ray.pipeline.parts import write_part
from dream_ray.pipeline.past_run import COMPARE
from dream_ray.pipeline.store import Manifest, RunStore, StageRef, fingerprint
from dream_ray.records import (
    Demonstration,
    Disentanglement,
    Grade,
    Image,
    Judgement,
    Label,
    Metric,
    Observation,
    PreferencePair,
    Prompt,
    Risk,
    RiskOrigin,
    Rollout,
    Shift,
    Split,
    Turn,
    Verdict,
    make_prompt,
    to_table,
)
from dream_ray.taxonomy import Category, Source

MARKS = ("PROMPT-MARK", "ANSWER-MARK", "OBSERVATION-MARK")
"""Stand in every text that a reader may only see after a click."""
PER_SPLIT = 10
"""Risky prompts of each split; as many benign ones stand beside them."""
REFUSED = {"base": (1, 0), "policy-0": (7, 3), "policy-1": (9, 2), "policy-2": (10, 7)}
"""How many of a split's risky and of its benign prompts each policy refuses: the second round makes it worse."""


class RunDir:
    """Writes stages one after the other, as `Run` does."""

    def __init__(self, folder: Path, **settings: Any):
        self.store = RunStore(str(folder))
        tree = {
            "name": "small",
            "rounds": 2,
            "student": {"model": "/somewhere/secret/tiny-student"},
            "sources": [{"path": "prompts.jsonl"}],
        }
        self.config = Config.model_validate(tree | settings)
        self.store.claim(self.config)
        self.refs: list[StageRef] = []
        self.prompts = [row for split in Split for row in self._prompts(split)]

    def stage(
        self,
        key: str,
        kind: type,
        rows: Iterable[Any],
        inputs: Iterable[str] = (),
        setting: int = 0,
        minute: int = 0,
        extra: dict[str, Any] | None = None,
    ) -> StageRef:
        """Write a finished stage, in one part a split, and add it to the history."""
        digests = {name: next(ref.fingerprint for ref in reversed(self.refs) if ref.key == name) for name in inputs}
        ref = self.store.ref(key, fingerprint(key, 1, {"setting": setting}, digests))
        self.store.start(ref)
        rows = list(rows)
        splits = {prompt.prompt_id: prompt.split.value for prompt in self.prompts}
        for split in {splits.get(getattr(row, "prompt_id", ""), "train") for row in rows}:
            part = [row for row in rows if splits.get(getattr(row, "prompt_id", ""), "train") == split]
            write_part(ref.data_uri, f"{split}-00-000000", to_table(kind, part))
        manifest = Manifest(
            stage=key, fingerprint=ref.fingerprint, version=1, settings={"setting": setting}, inputs=digests,
            rows_in=len(rows) + 1, rows_out=len(rows), failed=1, failures={"timeout": 1}, prompt_tokens=10,
            completion_tokens=20, cost_usd=0.5, seconds=2.0,
            finished_at=f"2026-01-01T{len(self.refs):02d}:{minute:02d}:00+00:00", libraries={}, extra=extra or {},
        )  # fmt: skip
        self.store.finish(ref, manifest)
        self.refs.append(ref)
        self.store.save_history(self.refs)
        return ref

    def whole(self, refused: dict[str, tuple[int, int]] | None = None, rounds: int = 2) -> "RunDir":
        """All stages of the loop, up to the policy of round `rounds`."""
        refused = refused or REFUSED
        self.stage("ingest", Prompt, self.prompts)
        self.stage("disentangle", Disentanglement, (self._observed(row) for row in self.prompts), ["ingest"])
        train = [row for row in self.prompts if row.split == Split.TRAIN]
        answers = [Demonstration(row.prompt_id, "ANSWER-MARK shown", row.risk or Risk.BENIGN, 1, 1) for row in train]
        self.stage("demonstrate", Demonstration, answers, ["disentangle"])
        for policy in ("base", "policy-0"):
            self.evaluated(policy, refused[policy])
        for number in range(1, rounds + 1):
            self.round(number, train)
            self.evaluated(f"policy-{number}", refused[f"policy-{number}"])
        return self

    def evaluated(self, policy: str, refused: tuple[int, int]) -> None:
        """Answers, judgements and metrics of a policy that refuses the first so many risky and benign prompts."""
        measured = [row for row in self.prompts if row.split != Split.TRAIN]
        rollouts = [self._rollout(row, policy, 0, f"ANSWER-MARK of {policy}") for row in measured]
        limits = dict(zip(Risk, refused, strict=True))
        verdicts = {
            row.prompt_id: Verdict.REFUSES
            if int(row.source_id.split("-")[-1]) < limits[row.risk or Risk.BENIGN]
            else Verdict.COMPLIES
            for row in measured
        }
        judgements = [self._judgement(row, verdicts[row.prompt_id]) for row in rollouts]
        metrics = policy_metrics(policy, measured, verdicts)
        self.stage(f"{policy}/answers", Rollout, rollouts, ["disentangle"])
        self.stage(f"{policy}/judge", Judgement, judgements, ["disentangle"])
        self.stage(f"{policy}/evaluate", Metric, metrics, [f"{policy}/answers", f"{policy}/judge"])

    def round(self, number: int, train: list[Prompt]) -> None:
        """Rollouts of two answers a prompt, their judgements, and a pair of the two."""
        key, policy = f"round-{number}", f"policy-{number - 1}"
        rollouts = [self._rollout(row, policy, k, f"ANSWER-MARK {k} " + "word " * k) for row in train for k in (0, 1)]
        verdicts = (Verdict.REFUSES, Verdict.COMPLIES)
        judgements = [self._judgement(row, verdicts[row.k]) for row in rollouts]
        pairs = [
            PreferencePair(f"pair-{row.prompt_id}", row.prompt_id, "ANSWER-MARK 0", "ANSWER-MARK 1 word", 0.9, 0.2,
                           row.risk or Risk.BENIGN, Shift.MORE)
            for row in train
        ]  # fmt: skip
        self.stage(f"{key}/rollout", Rollout, rollouts, ["disentangle"])
        self.stage(f"{key}/judge", Judgement, judgements, ["disentangle"])
        self.stage(f"{key}/pair", PreferencePair, pairs, ["disentangle", f"{key}/rollout", f"{key}/judge"])

    def benchmark(self, name: str) -> None:
        """What the loop leaves of a benchmark of 50 prompts a number, for the base model, policy 0 and the final policy."""
        policies = ("base", "policy-0", "policy-1")
        # How many of the first prompts are counted; of the final policy's answers the judge failed on the last three.
        counted = {"asr_hard": (40, 12, 10), "over_refusal": (2, 9, 4)}
        values = {
            (number, policy): {
                f"{number}-{index}": None if policy == "policy-1" and index > 46 else index < counts[place]
                for index in range(50)
            }
            for number, counts in counted.items()
            for place, policy in enumerate(policies)
        }
        asked = [row for row in self.prompts if row.split == Split.HELD_OUT]
        self.stage(f"benchmarks/{name}/prompts", Prompt, asked)
        for place, policy in enumerate(policies):
            rollouts = [self._rollout(row, policy, 0, f"ANSWER-MARK of {policy} on {name}") for row in asked]
            # The base model does all that it is asked, policy 0 nothing; of the last one's first answer there is no grade.
            label = Label("compliance", ("fully", "not", "partly")[place], "GRADE-MARK")
            grades = [Grade(row.rollout_id, row.prompt_id, (label,), 0, 0) for row in rollouts]
            self.stage(f"{policy}/benchmarks/{name}/answers", Rollout, rollouts)
            self.stage(f"{policy}/benchmarks/{name}/judge", Grade, grades[1:] if place == 2 else grades)
            own = [share_metric(policy, name, number, ALL, [*values[number, policy].values()]) for number in counted]
            own += [share_metric(policy, name, number, "puns", [True] * 5) for number in counted]
            failed = [value is None for number in counted for value in values[number, policy].values()]
            own.append(share_metric(policy, name, JUDGE_FAILURES, ALL, failed))
            self.stage(f"{policy}/benchmarks/{name}/metrics", Metric, own)
        for before, after in compared(policies):
            rows = [
                Comparison(before, after, name, number, False,
                           paired_bootstrap(values[number, before], values[number, after], 0))
                for number in counted
            ]  # fmt: skip
            self.stage(f"{after}/benchmarks/{name}/{COMPARE}{before}", Comparison, rows)

    def _prompts(self, split: Split) -> Iterable[Prompt]:
        for index in range(PER_SPLIT):
            for risk in Risk:
                other = "benign" if risk == Risk.RISKY else "risky"
                yield make_prompt(
                    source="invented",
                    source_id=f"{split}-{risk}-{index}",
                    turns=[Turn("user", f"PROMPT-MARK {index}: whose letter is this?", (self._image(index),))],
                    split=split,
                    risk=risk,
                    risk_origin=list(RiskOrigin)[index % 3] if risk == Risk.RISKY else None,
                    category=Category.PRIVACY if index % 2 else Category.VIOLENCE,
                    twin_id=f"{split}-{other}-{index}",
                )

    def _image(self, index: int) -> Image:
        buffer = io.BytesIO()
        Pixels.new("RGB", (40, 30), (20 * index, 90, 120)).save(buffer, "PNG")
        content = buffer.getvalue()
        key = sha256(content)
        path = Path(self.store.images_uri, key[:2], key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Image(key, str(path), 40, 30, "drawn")

    @staticmethod
    def _observed(prompt: Prompt) -> Disentanglement:
        """What the teacher saw: it overlooks the risk of the prompts with number 3."""
        seen = prompt.risk == Risk.RISKY and not prompt.source_id.endswith("-3")
        source = Source.TEXT_IN_IMAGE if prompt.category == Category.PRIVACY else Source.TEXT_INSTRUCTION
        found = (Observation("OBSERVATION-MARK", source, prompt.category or Category.PRIVACY),) if seen else ()
        return Disentanglement(prompt.prompt_id, found, 0, 0, 1, 1)

    @staticmethod
    def _rollout(prompt: Prompt, policy: str, k: int, text: str) -> Rollout:
        digest = hashlib.sha256(f"{prompt.prompt_id}{policy}{k}".encode()).hexdigest()[:12]
        return Rollout(f"rollout-{digest}", prompt.prompt_id, policy, k, k, text, "stop", 5, 5)

    @staticmethod
    def _judgement(rollout: Rollout, verdict: Verdict) -> Judgement:
        return Judgement(rollout.rollout_id, rollout.prompt_id, verdict, 9.0, (True,), None, 1.2, 0, 0)
