"""The report of a run: one HTML file that needs nothing beside it.

Contract: `build_report` is a pure function from `ReportData` to a page that fetches nothing (page.py says how that is kept).
Prompts, answers, observations, judgements and pictures stand inside closed <details>, so that nothing risky is seen before
a click. Samples that would make the page larger than MAX_BYTES are left out, and the page says its size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dream_ray.evaluate.benchmark_view import WIDTH, benchmark_blocks
from dream_ray.evaluate.chart import curve
from dream_ray.evaluate.distribution import Distribution, histogram
from dream_ray.evaluate.metrics import ALL, METRIC_RISK, ORIGIN_SLICES, find_metric
from dream_ray.evaluate.page import render
from dream_ray.evaluate.paired import Comparison
from dream_ray.evaluate.samples import DISAGREEMENTS, Sample, by_turns, pictures_of
from dream_ray.evaluate.table import format_gap, policies_of
from dream_ray.evaluate.tradeoff import Series, tradeoff
from dream_ray.records import Metric, Split
from dream_ray.taxonomy import Category, Source

MAX_BYTES = 3_000_000
"""Largest page; samples are left out until it fits, and the page says how many are shown."""
MAX_REASONS = 5
"""Most failure reasons shown of one stage."""


@dataclass(frozen=True)
class ChatRow:
    """A chat model's part in the run: `role` ("teacher", "judge"), the config's `backend`, and what it calls itself."""

    role: str
    backend: str
    name: str


@dataclass(frozen=True)
class RoundRow:
    """What became of one round: `candidate` was trained from `standing`, and taken in its place or refused."""

    number: int
    standing: str
    candidate: str
    taken: bool
    reason: str


@dataclass(frozen=True)
class StageRow:
    """One finished stage, in the order of the run; `failures` counts reasons.

    `seconds` is wall time. `passed_with` names the keys of stages that ran in the same pass: its seconds and payments are
    theirs too and are counted once. `cached_tokens` is the part of `prompt_tokens` that the endpoint had cached.
    `cost_usd` is the price of the tokens, `paid_usd` what was paid for them: less where replies came from the response
    cache. `peak_memory_bytes` is None where nobody measured it. `gpu_held_s` are seconds times GPUs that the pass held,
    `gpu_idle_s` those of them without work.
    """

    key: str
    rows_in: int
    rows_out: int
    failed: int
    failures: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    seconds: float
    passed_with: tuple[str, ...]
    peak_memory_bytes: int | None
    cached_tokens: int = 0
    paid_usd: float = 0.0
    gpu_held_s: float = 0.0
    gpu_idle_s: float = 0.0


@dataclass(frozen=True)
class ReportData:
    """All that the page and the model card say.

    `aligns` is False where policies were only measured on benchmarks; then there is no standing policy and no round.
    `standing` is the policy that stands after the rounds so far, None where none has been evaluated; `finished` says
    whether more are to come. `metrics` hold every policy in the order of the run, the base model first. `counts` are rows
    by what they are ("risky prompts, train"), `settings` those that matter, by their dotted name. `student` names the base
    model. `comparisons` say how numbers of benchmarks changed. `caveats` are sentences about what this run's numbers do not
    show.
    """

    run_name: str
    config_digest: str
    student: str
    aligns: bool
    standing: str | None
    finished: bool
    chats: tuple[ChatRow, ...]
    rounds: tuple[RoundRow, ...]
    metrics: tuple[Metric, ...]
    comparisons: tuple[Comparison, ...]
    stages: tuple[StageRow, ...]
    distributions: tuple[Distribution, ...]
    counts: Mapping[str, int]
    settings: Mapping[str, object]
    samples: tuple[Sample, ...]
    caveats: tuple[str, ...]

    @property
    def policies(self) -> list[str]:
        """Every policy that was evaluated, in the order of the run."""
        return policies_of(self.metrics)

    @property
    def splits(self) -> list[str]:
        """The splits that have metrics; held-out prompts first: they took no part in any decision of the run."""
        return [split.value for split in reversed(Split) if any(metric.split == split for metric in self.metrics)]

    @property
    def refused(self) -> frozenset[str]:
        """The policies that their round did not take."""
        return frozenset(row.candidate for row in self.rounds if not row.taken)

    @property
    def parents(self) -> Mapping[str, str]:
        """Which policy each one was trained from."""
        policies = self.policies
        in_order = dict(zip(policies[1:], policies, strict=False))
        return in_order | {row.candidate: row.standing for row in self.rounds}

    @property
    def seconds(self) -> float:
        """Wall time of all stages; a pass that several share counts once."""
        return sum(row.seconds for row in self._counted)

    @property
    def paid_usd(self) -> float:
        """What all stages paid; a pass that several share counts once."""
        return sum(row.paid_usd for row in self._counted)

    @property
    def gpu_held_s(self) -> float:
        """Seconds times GPUs of all stages; a pass that several share counts once."""
        return sum(row.gpu_held_s for row in self._counted)

    @property
    def gpu_idle_s(self) -> float:
        """The part of `gpu_held_s` without work."""
        return sum(row.gpu_idle_s for row in self._counted)

    @property
    def _counted(self) -> list[StageRow]:
        return [row for row, shared in zip(self.stages, _shared(self.stages), strict=True) if not shared]

    def series(self, name: str = "") -> Series:
        """The run as a series of the trade-off plot."""
        return Series(name, self.metrics, self.policies, self.parents, self.refused)


def of_the_loop(metric: Metric) -> bool:
    """True for the two shares on the run's own splits; other numbers come from benchmarks."""
    return metric.name in METRIC_RISK and metric.split in tuple(Split)


def check(data: ReportData) -> None:
    """Raise ValueError where the policy that stands has no metrics."""
    if data.standing is not None and data.standing not in data.policies:
        raise ValueError(
            f"The report names {data.standing!r} as the policy that the run ends with, but the metrics are about "
            f"{', '.join(data.policies)}. Pass the metrics of every policy of the run, under the names that the rounds use."
        )


def build_report(data: ReportData) -> str:
    """The page, as text to be written in UTF-8.

    Raises ValueError as `check` does, and where a policy's metrics are given twice.
    """
    check(data)
    blocks = [
        Markup(
            render("sample.html", s=sample, pictures=pictures_of(sample), number=number, disagreements=DISAGREEMENTS)
        )
        for number, sample in enumerate(data.samples, 1)
    ]
    frame = len(_page(data, [], 0).encode())
    shown = _that_fit(data.samples, blocks, MAX_BYTES - frame - 1000)
    size = frame + sum(len(blocks[index].encode()) for index in shown)
    return _page(data, [(data.samples[index], blocks[index]) for index in shown], size)


def _that_fit(samples: Sequence[Sample], blocks: Sequence[str], room: int) -> list[int]:
    """The samples that fit into `room` bytes, by turns from each stage."""
    shown = []
    for index in by_turns(samples, lambda sample: sample.stage):
        size = len(blocks[index].encode())
        if size <= room:
            shown.append(index)
            room -= size
    return sorted(shown)


def _page(data: ReportData, samples: list[tuple[Sample, Markup]], size: int) -> str:
    policies = data.policies
    shown = [sample for sample, _ in samples]
    return render(
        "report.html",
        data=data,
        title=data.run_name,
        rules=[chat for chat in data.chats if chat.backend == "rules"],
        policies=policies,
        refused=data.refused,
        headline=[_headline(data, split) for split in data.splits],
        tradeoffs=[tradeoff(split, [data.series()]) for split in data.splits],
        curves=[curve(data.metrics, split, policies, data.parents, data.refused) for split in data.splits],
        tables=[_metric_table(data.metrics, policies, split) for split in data.splits],
        benchmarks=benchmark_blocks([m for m in data.metrics if not of_the_loop(m)], data.comparisons),
        change_width=WIDTH,
        histograms=[histogram(found) for found in data.distributions],
        stages=_stage_views(data.stages, data.seconds),
        samples=[block for _, block in samples],
        filters={
            "stage": _values(sample.stage for sample in shown),
            "category": sorted(set(_values(name for sample in shown for name in sample.categories))),
            "verdict": _values(name for sample in shown for name in sample.verdicts),
            "disagreement": _values(name for sample in shown for name in sample.disagreements),
        },
        disagreements=DISAGREEMENTS,
        size=size,
    )


def _values(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Headline:
    """What changed from the first policy to the standing one on a split."""

    split: str
    before: str
    after: str
    numbers: tuple[tuple[str, Metric | None, Metric | None], ...]


def _headline(data: ReportData, split: str) -> Headline:
    before = data.policies[0]
    after = data.standing or data.policies[-1]
    first = [metric for metric in data.metrics if metric.policy == before]
    last = [metric for metric in data.metrics if metric.policy == after]
    numbers = [(name, find_metric(first, split, name), find_metric(last, split, name)) for name in METRIC_RISK]
    return Headline(split, before, after, tuple(numbers))


@dataclass(frozen=True)
class MetricTable:
    """The numbers of a split: per slice one row a number, one cell a policy, and the gaps of slices that have one."""

    split: str
    origins: list["SliceRows"]
    sources: list["SliceRows"]
    categories: list["SliceRows"]


@dataclass(frozen=True)
class SliceRows:
    """One slice: a row per number, a cell per policy."""

    label: str
    numbers: list[tuple[str, list[Metric | None]]]
    gaps: list[str]


def _metric_table(metrics: tuple[Metric, ...], policies: list[str], split: str) -> MetricTable:
    own = {policy: [metric for metric in metrics if metric.policy == policy] for policy in policies}

    def rows(labels: tuple[str, ...]) -> list[SliceRows]:
        found = []
        for label in labels:
            numbers = [
                (name, [find_metric(own[policy], split, name, label) for policy in policies]) for name in METRIC_RISK
            ]
            numbers = [(name, cells) for name, cells in numbers if any(cell is not None for cell in cells)]
            if numbers:
                gaps = [format_gap(own[policy], split, label) for policy in policies] if len(numbers) == 2 else []
                found.append(SliceRows(label, numbers, gaps))
        return found

    return MetricTable(split, rows((ALL, *ORIGIN_SLICES)), rows(tuple(Source)), rows(tuple(Category)))


@dataclass(frozen=True)
class StageView:
    """A stage with the share of the run's time that its pass took; `shared` where an earlier row already counted it."""

    row: StageRow
    share: float
    shared: bool
    reasons: list[tuple[str, int]]
    more_reasons: int


def _stage_views(stages: tuple[StageRow, ...], seconds: float) -> list[StageView]:
    views = []
    for row, shared in zip(stages, _shared(stages), strict=True):
        reasons = sorted(row.failures.items(), key=lambda item: -item[1])
        share = row.seconds / seconds if seconds else 0.0
        views.append(StageView(row, share, shared, reasons[:MAX_REASONS], len(reasons[MAX_REASONS:])))
    return views


def _shared(stages: tuple[StageRow, ...]) -> list[bool]:
    """Per stage: did it run in the pass of a stage before it, so that its seconds are already counted?"""
    keys = [row.key for row in stages]
    return [any(key in keys[:index] for key in row.passed_with) for index, row in enumerate(stages)]
