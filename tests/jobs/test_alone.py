"""Stages alone, on run directories whose stages are done: nothing needs Ray, so what is composed can be seen at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from dream_ray.config import Config
from dream_ray.evaluate.metrics import policy_metrics
from dream_ray.pipeline import alone
from dream_ray.pipeline.parts import write_part
from dream_ray.pipeline.plans import Plan, answers_job, rollout_job
from dream_ray.pipeline.run import Run
from dream_ray.pipeline.store import Manifest, StageRef
from dream_ray.records import Metric, Risk, Split, Verdict, to_table
from dream_ray.train.policy import Policy
from tests.pipeline.run_dirs import RunDir
from tests.train.test_policy import COMPLETE, write

BETTER, WORSE = (9, 2), (2, 9)
"""How many of the ten risky and of the ten benign prompts of a split policy 1 refuses; policy 0 refuses 7 and 3."""


class Loop:
    """A run directory with every stage of one round done, as the loop finishes them."""

    def __init__(self, folder: Path, policy_1: tuple[int, int]):
        line = {"id": "1", "turns": [{"text": "Hello."}], "split": "train", "risk": "benign"}
        (folder / "prompts.jsonl").write_text(json.dumps(line) + "\n")
        tree = {
            "name": "try",
            "rounds": 2,
            "student": {"model": write(folder / "student", COMPLETE)},
            "sources": [{"path": str(folder / "prompts.jsonl")}],
        }
        self.config = config = Config.model_validate(tree)
        self.run = Run(config, str(folder / "run"))
        self.invented = RunDir(folder / "invented").prompts
        plans = self.run.plans
        self.prompts = self.finish(plans.ingest())
        self.observed = self.finish(plans.disentangle(self.prompts))
        demonstrations = self.finish(plans.demonstrate(self.prompts, self.observed))
        self.sft = self.finish(plans.sft(self.prompts, demonstrations))
        base = Policy("base", config.student.model, None)
        self.policy_0 = Policy("policy-0", config.student.model, f"{self.sft.uri}/adapter")
        self.measured(base, None, (1, 0))
        self.measured(self.policy_0, self.sft, (7, 3))
        self.rollouts, judgements = self.sampled(1, self.policy_0, self.sft)
        pairs = self.finish(plans.pair(1, self.observed, self.rollouts, judgements))
        self.dpo = self.finish(plans.dpo(1, self.prompts, pairs, self.sft, "policy-0"))
        self.policy_1 = Policy("policy-1", config.student.model, f"{self.dpo.uri}/adapter")
        self.measured(self.policy_1, self.dpo, policy_1)

    def finish(self, plan: Plan) -> StageRef:
        self.run.store.start(plan.ref)
        self.run.store.finish(
            plan.ref, Manifest(plan.ref.key, plan.ref.fingerprint, 1, {}, {}, 0, 0, 0, {}, 0, 0, 0.0, 0.0, "", {})
        )
        return plan.ref

    def sampled(self, number: int, policy: Policy, trained: StageRef) -> tuple[StageRef, StageRef]:
        job = rollout_job(self.config, number, policy, trained)
        sampling, judging = self.run.plans.sampled(job, self.prompts, self.observed)
        return self.finish(sampling), self.finish(judging)

    def measured(self, policy: Policy, trained: StageRef | None, refused: tuple[int, int]) -> None:
        job = answers_job(self.config, policy, trained)
        sampled = [self.finish(plan) for plan in self.run.plans.sampled(job, self.prompts, self.observed)]
        limits = dict(zip(Risk, refused, strict=True))
        prompts = [prompt for prompt in self.invented if prompt.split != Split.TRAIN]
        verdicts = {
            prompt.prompt_id: Verdict.REFUSES
            if int(prompt.source_id.split("-")[-1]) < limits[prompt.risk or Risk.BENIGN]
            else Verdict.COMPLIES
            for prompt in prompts
        }
        ref = self.finish(self.run.plans.evaluate(policy.name, self.prompts, *sampled))
        write_part(ref.data_uri, "metrics", to_table(Metric, policy_metrics(policy.name, prompts, verdicts)))

    @property
    def keys(self) -> list[str]:
        return [done.ref.key for done in self.run.history]


def no_scorer() -> Any:
    raise AssertionError("every answer is judged, so the scorer need not start")


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path, BETTER)


def test_disentangle_stops_there(loop: Loop) -> None:
    assert alone.disentangle(loop.run).ref == loop.observed
    assert loop.keys == ["ingest", "disentangle"]


def test_sft_stops_there(loop: Loop) -> None:
    assert alone.sft(loop.run).ref == loop.sft
    assert loop.keys == ["ingest", "disentangle", "demonstrate", "sft"]


def test_the_first_rounds_rollouts_need_no_evaluation(loop: Loop) -> None:
    assert alone.rollout(loop.run, 1, no_scorer).rollouts.ref == loop.rollouts
    assert loop.keys[4:] == ["round-1/rollout", "round-1/judge"]


def test_dpo_stops_before_the_new_policy_is_evaluated(loop: Loop) -> None:
    assert alone.dpo(loop.run, 1, no_scorer).ref == loop.dpo
    assert loop.keys[4:] == ["round-1/rollout", "round-1/judge", "round-1/pair", "round-1/dpo"]


@pytest.mark.parametrize(("refused", "stands"), [(BETTER, "policy-1"), (WORSE, "policy-0")])
def test_a_later_round_starts_from_the_policy_that_the_loop_takes(
    tmp_path: Path, refused: tuple[int, int], stands: str
) -> None:
    loop = Loop(tmp_path, refused)
    standing, trained = {"policy-1": (loop.policy_1, loop.dpo), "policy-0": (loop.policy_0, loop.sft)}[stands]
    expected, _ = loop.sampled(2, standing, trained)
    assert alone.rollout(loop.run, 2, no_scorer).rollouts.ref == expected
