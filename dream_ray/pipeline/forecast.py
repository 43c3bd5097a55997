"""What a run would do before it does it: each stage's state, why it would run again, calls, tokens and cost.

Contract: `forecast` walks the loop as driver.py does, by fingerprints, without running anything; it reads the prompt files,
the headers of some images and what finished stages left. A stage after a round that is not decided yet "depends" on it, and
is counted as if the round were taken. No Ray, no torch; the network only where prompts or the run directory lie on it.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from dream_ray import files
from dream_ray.config import ChatConfig, Config
from dream_ray.evaluate.metrics import accept_round
from dream_ray.pipeline import reasons
from dream_ray.pipeline.estimate import (
    Assumptions,
    Estimate,
    Part,
    Questions,
    demonstrate_questions,
    disentangle_questions,
    estimate,
    in_total,
    judge_questions,
)
from dream_ray.pipeline.marks import marks_uri
from dream_ray.pipeline.payments import ledger_uri, paid_before
from dream_ray.pipeline.plans import Plan, Planner, SampleJob, answers_job, in_splits, part_name, rollout_job
from dream_ray.pipeline.store import Manifest, RunStore, StageRef, parquet_files, read_records
from dream_ray.records import Metric, Risk, Split
from dream_ray.sources.ingest import blocks
from dream_ray.sources.raw import BadRow, RawPrompt, Repair
from dream_ray.sources.registry import read
from dream_ray.train.policy import Policy

IMAGE_SAMPLE = 200
"""Images whose size is looked up, drawn evenly from all."""
DONE, TO_DO = "done", "to do"
"""States of a stage; the third is "depends on …"."""


@dataclass(frozen=True)
class StageForecast:
    """A stage's state and what it is expected to come to; what it came to where it is done.

    `why` says, of a stage that is to be done, what an earlier attempt left of it or how its last result differs.
    """

    key: str
    state: str
    estimate: Estimate
    fingerprint: str
    why: str = ""


@dataclass(frozen=True)
class Forecast:
    """All stages in the order of the run. `grounds` says what was assumed, with its value and where that is from."""

    stages: tuple[StageForecast, ...]
    grounds: tuple[tuple[str, str, str], ...]
    paid_usd: float
    budget_usd: float | None

    @property
    def to_pay(self) -> Estimate:
        """The sum of the stages that are not done."""
        return in_total({stage.key: stage.estimate for stage in self.stages if stage.state != DONE})


@dataclass
class _Counts:
    """What a part's prompts hold. `labelled` ones say whether they are risky, by a label or by the observations that `brought`
    prompts come with."""

    prompts: int = 0
    images: int = 0
    texts: int = 0
    chars: int = 0
    reference_chars: int = 0
    labelled: int = 0
    risky: int = 0
    brought: int = 0
    brought_risky: int = 0
    observations: int = 0


@dataclass
class _Sources:
    """The prompts of all sources by part, and the sizes of some images."""

    parts: dict[str, _Counts] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def labelled(self) -> int:
        return sum(part.labelled for part in self.parts.values())


def forecast(config: Config, store: RunStore, assumed: Assumptions | None = None) -> Forecast:
    """The run's stages with their predicted calls, tokens and cost. Raises what reading the sources raises."""
    return _Walk(config, store, assumed or Assumptions()).result()


class _Walk:
    """One walk through the loop."""

    def __init__(self, config: Config, store: RunStore, assumed: Assumptions):
        self._config, self._store = config, store
        self._plans = Planner(config, store)
        self._sources = _read_sources(config)
        self._assumed = replace(assumed, image_sizes=self._sources.sizes)
        self._risks_from = "assumed"
        self._answers_from = "rollout.max_tokens, the longest"
        self._stages: list[StageForecast] = []
        self._manifests = store.manifests()
        self._history = store.history() or []

    def result(self) -> Forecast:
        self._walk()
        paid = sum(paid_before(ledger_uri(self._store.uri)).values())
        return Forecast(tuple(self._stages), tuple(self._grounds()), paid, self._config.budget.max_cost_usd)

    def _walk(self) -> None:
        config, teacher = self._config, self._config.teacher
        prompts = self._free(self._plans.ingest())
        observing = self._plans.disentangle(prompts)
        self._parts = self._with_risks(observing.ref)
        observed = self._asked(observing, self._estimate(disentangle_questions(self._parts.values()), teacher.chat))
        training = [part for name, part in self._parts.items() if in_splits(name, (Split.TRAIN,))]
        answering = self._estimate(demonstrate_questions(training, teacher.max_words), teacher.chat)
        demonstrations = self._asked(self._plans.demonstrate(prompts, observed), answering)
        standing = self._free(self._plans.sft(prompts, demonstrations))
        base, start = (Policy(name, config.student.model, None) for name in ("base", "policy-0"))
        self._answers(answers_job(config, base, None), prompts, observed)
        metrics = self._answers(answers_job(config, start, standing), prompts, observed)

        taken = [] if metrics is None else [metrics]
        undecided = ""
        for number in range(1, config.rounds + 1):
            rollouts, judgements = self._sampled(
                rollout_job(config, number, start, standing), prompts, observed, undecided
            )
            pairs = self._free(self._plans.pair(number, observed, rollouts, judgements), undecided)
            trained = self._free(self._plans.dpo(number, prompts, pairs, standing, start.name), undecided)
            candidate = Policy(f"policy-{number}", config.student.model, None)
            found = self._answers(answers_job(config, candidate, trained), prompts, observed, undecided)
            if taken and found is not None and not undecided:
                if accept_round(taken, found, config.max_failure_rate, config.evaluate.max_over_refusal).taken:
                    start, standing = candidate, trained
                    taken.append(found)
            else:
                undecided = undecided or f"round {number}"
                start, standing = candidate, trained

    def _free(self, plan: Plan, undecided: str = "") -> StageRef:
        """A stage that asks nobody."""
        return self._asked(plan, Estimate(0, 0, 0, 0.0), undecided)

    def _asked(self, plan: Plan, expected: Estimate, undecided: str = "") -> StageRef:
        """Note a stage."""
        manifest = None if undecided else self._store.manifest(plan.ref)
        why = ""
        if manifest is not None:
            state, expected = DONE, _came_to(manifest, bool(plan.chat))
        elif undecided:
            state = f"depends on {undecided}"
        else:
            state, why = TO_DO, self._why(plan)
        self._stages.append(StageForecast(plan.ref.key, state, expected, plan.ref.fingerprint, why))
        return plan.ref

    def _why(self, plan: Plan) -> str:
        """Why a stage would run that has left something here; "" where it has left nothing."""
        if files.exists(plan.ref.uri):
            parts = len(files.list_files(marks_uri(plan.ref), ".json"))
            return f"begun: {parts} parts are finished" if parts else "begun"
        earlier = reasons.latest(plan.ref.key, self._manifests, self._history)
        stages = {stage.fingerprint: stage.key for stage in self._stages}
        return "" if earlier is None else "; ".join(reasons.why(plan, earlier, stages))

    def _estimate(self, questions: Iterable[Questions], chat: ChatConfig) -> Estimate:
        return estimate(questions, chat, self._plans.templates, self._assumed)

    def _sampled(
        self, job: SampleJob, prompts: StageRef, observed: StageRef, undecided: str = ""
    ) -> tuple[StageRef, StageRef]:
        """Note a job's sampling and judging."""
        sampling, judging = self._plans.sampled(job, prompts, observed)
        rollouts = self._free(sampling, undecided)
        parts = [self._parts[name] for name in job.parts(self._parts)]
        length = self._answer_tokens(sampling.ref, undecided)
        expected = self._estimate(judge_questions(parts, job.n, length), self._config.judge.chat)
        return rollouts, self._asked(judging, expected, undecided)

    def _answers(
        self, job: SampleJob, prompts: StageRef, observed: StageRef, undecided: str = ""
    ) -> list[Metric] | None:
        """Note a policy's answers, judgements and evaluation; its metrics where they are there."""
        rollouts, judgements = self._sampled(job, prompts, observed, undecided)
        plan = self._plans.evaluate(job.policy.name, prompts, rollouts, judgements)
        self._free(plan, undecided)
        done = not undecided and self._store.manifest(plan.ref) is not None
        return read_records(Metric, plan.ref.data_uri) if done else None

    def _answer_tokens(self, sampling: StageRef, undecided: str) -> float:
        """How long the student's answers are: as sampled where they are there, else as the last ones were."""
        manifest = None if undecided else self._store.manifest(sampling)
        if manifest is not None and manifest.rows_out:
            measured = manifest.completion_tokens / manifest.rows_out
            self._assumed = replace(self._assumed, answer_tokens=measured)
            self._answers_from = f"measured in {sampling.key}"
        found = self._assumed.answer_tokens
        return self._config.rollout.max_tokens if found is None else found

    def _with_risks(self, observed: StageRef) -> dict[str, Part]:
        """The parts with what was observed in them, or what is expected to be."""
        if self._store.manifest(observed) is None:
            return {name: _expected(counts, self._assumed) for name, counts in self._sources.parts.items()}
        self._risks_from = "measured in disentangle"
        parts = {}
        for uri in parquet_files(observed.data_uri):
            name = uri.rsplit("/", 1)[1].removesuffix(".parquet")
            filesystem, path = files.resolve(uri)
            table = pq.read_table(path, filesystem=filesystem, columns=["observations", "rejected"])
            lengths = pc.list_value_length(table["observations"])
            parts[name] = _part(
                self._sources.parts[name],
                kept=table.num_rows,
                risky=pc.sum(pc.greater(lengths, 0)).as_py() or 0,
                observations=pc.sum(lengths).as_py() or 0,
                rejected=pc.sum(table["rejected"]).as_py() or 0,
            )
        return parts

    def _grounds(self) -> Iterator[tuple[str, str, str]]:
        """What the numbers rest on."""
        parts = self._parts.values()
        prompts, risky = sum(part.prompts for part in parts), sum(part.risky for part in parts)
        whence = self._risks_from
        by_label = self._sources.labelled == prompts and whence == "assumed"
        yield "prompts, images", f"{prompts:.0f}, {sum(part.images for part in parts):.0f}", "counted"
        share = risky / prompts if prompts else 0.0
        yield "share of risky prompts", f"{share:.2f}", "the prompts' labels" if by_label else whence
        observations = sum(part.observations for part in parts)
        yield "observations of a risky prompt", f"{observations / risky if risky else 0:.2f}", whence
        rejected = sum(part.rejected for part in parts)
        yield "observations turned down, of a prompt", f"{rejected / prompts if prompts else 0:.2f}", whence
        yield "questions asked once more", f"{self._assumed.retry_share:.0%}", "assumed"
        length = self._assumed.answer_tokens
        value = self._config.rollout.max_tokens if length is None else length
        yield "tokens of a student's answer", f"{value:.0f}", self._answers_from
        sizes = self._assumed.image_sizes
        mean = sum(width * height for width, height in sizes) / len(sizes) if sizes else 0.0
        yield "pixels of an image", f"{mean:,.0f}" if sizes else "the cap", f"{len(sizes)} images looked at"


def _came_to(manifest: Manifest, asked: bool) -> Estimate:
    """What a finished stage came to; its calls are not counted anywhere, and a student's tokens cost nobody."""
    if not asked:
        return Estimate(0, 0, 0, 0.0)
    return Estimate(0, manifest.prompt_tokens, manifest.completion_tokens, manifest.cost_usd)


def _expected(counts: _Counts, assumed: Assumptions) -> Part:
    """A part before the teacher has looked at it."""
    risky = counts.risky + (counts.prompts - counts.labelled) * assumed.risky_share
    observations = counts.observations + (risky - counts.brought_risky) * assumed.observations_per_risky
    rejected = (counts.prompts - counts.brought) * assumed.rejected_per_prompt
    return _part(counts, counts.prompts, risky, observations, rejected)


def _part(counts: _Counts, kept: int, risky: float, observations: float, rejected: float) -> Part:
    """A part of which `kept` prompts are left; which of them is not looked at, so the rest is scaled."""
    share = kept / counts.prompts
    return Part(
        prompts=kept,
        images=share * counts.images,
        texts=share * counts.texts,
        chars=share * counts.chars,
        reference_chars=share * counts.reference_chars,
        risky=risky,
        observations=observations,
        rejected=rejected,
        asked=1 - counts.brought / counts.prompts,
    )


def _read_sources(config: Config) -> _Sources:
    """Count all prompts, in the parts that ingest will cut them into."""
    found = _Sources()
    draw = random.Random(0)
    sample: list[str] = []
    seen = 0
    for source_index, source in enumerate(config.sources):
        prompts_of = (row for row in read(source) if not isinstance(row, Repair))
        for split, index, rows in blocks(prompts_of, config.part_rows):
            prompts = [row for row in rows if not isinstance(row, BadRow)]
            if not prompts:
                continue
            found.parts[part_name(split, source_index, index)] = _count(prompts)
            for uri in (image.uri for row in prompts for turn in row.turns for image in turn.images):
                # Every image has the same chance to be in the sample (reservoir sampling).
                seen += 1
                if len(sample) < IMAGE_SAMPLE:
                    sample.append(uri)
                elif (place := draw.randrange(seen)) < IMAGE_SAMPLE:
                    sample[place] = uri
    found.sizes = tuple(size for uri in sample if (size := _size(uri)) is not None)
    return found


def _count(prompts: list[RawPrompt]) -> _Counts:
    counts = _Counts(prompts=len(prompts))
    for prompt in prompts:
        counts.images += sum(len(turn.images) for turn in prompt.turns)
        counts.texts += any(turn.role == "user" and turn.text.strip() for turn in prompt.turns)
        counts.chars += sum(len(turn.text) for turn in prompt.turns)
        counts.reference_chars += len(prompt.reference_answer or "")
        if prompt.observations is None:
            counts.labelled += prompt.risk is not None
            counts.risky += prompt.risk is Risk.RISKY
        else:
            counts.labelled += 1
            counts.brought += 1
            counts.risky += bool(prompt.observations)
            counts.brought_risky += bool(prompt.observations)
            counts.observations += len(prompt.observations)
    return counts


def _size(uri: str) -> tuple[int, int] | None:
    """Width and height from an image's header; None where ingest will refuse it."""
    if uri.startswith(("http://", "https://")):
        return None
    filesystem, path = files.resolve(uri)
    try:
        with filesystem.open_input_file(path) as stream, Image.open(stream) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
