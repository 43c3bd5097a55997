"""The report of a run: one HTML file that needs nothing beside it.

Contract: `build_report` is a pure function from `ReportData` to a page without scripts and without anything fetched
from elsewhere (its content security policy forbids both). All text is escaped by the template engine. Prompts, answers,
observations and pictures stand inside closed <details> behind a content warning, so that nothing risky is seen before
a click. Pairs that would make the page larger than MAX_BYTES are left out.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from dream_ray.config import ImageConfig
from dream_ray.evaluate.chart import curve
from dream_ray.evaluate.metrics import ALL, METRIC_RISK, ORIGIN_SLICES, find_metric
from dream_ray.evaluate.table import format_gap, policies_of
from dream_ray.images import BadImage, decode
from dream_ray.records import Metric, Observation, PreferencePair, Prompt, Split
from dream_ray.taxonomy import Category

MAX_BYTES = 2_000_000
"""Largest page; pairs are left out from the end until it fits, and the page says how many are shown."""
MAX_SAMPLES = 12
"""Most pairs shown."""
MAX_IMAGES = 4
"""Most pictures shown of one pair."""
MAX_TEXT = 4000
"""Longest text shown, in characters; a cut text says so."""
MAX_REASONS = 5
"""Most failure reasons shown of one stage."""
THUMBNAIL_PIXELS = 256
"""Longest side of a picture in the page."""
THUMBNAIL_QUALITY = 80
"""JPEG quality of a picture: about 5 to 25 kB at 256 pixels."""


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
    cache. `peak_memory_bytes` is None where nobody measured it.
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


@dataclass(frozen=True)
class Sample:
    """A preference pair with what it was made from; `images` are the encoded bytes of `prompt.images`, in order."""

    prompt: Prompt
    images: tuple[bytes, ...]
    observations: tuple[Observation, ...]
    pair: PreferencePair


@dataclass(frozen=True)
class ReportData:
    """All that the page says.

    `standing` is the policy that the run ends with. `metrics` hold every policy in the order of the run, the base model
    first. `caveats` are sentences about what this run's numbers do not show.
    """

    run_name: str
    config_digest: str
    standing: str
    chats: tuple[ChatRow, ...]
    rounds: tuple[RoundRow, ...]
    metrics: tuple[Metric, ...]
    stages: tuple[StageRow, ...]
    samples: tuple[Sample, ...]
    caveats: tuple[str, ...]


def build_report(data: ReportData) -> str:
    """The page, as text to be written in UTF-8.

    Raises ValueError where a policy's metrics are given twice, or where `standing` has none.
    """
    views = [_sample_view(sample) for sample in data.samples[:MAX_SAMPLES]]
    page = _page(data, views)
    while views and len(page.encode()) > MAX_BYTES:
        views.pop()
        page = _page(data, views)
    return page


def _page(data: ReportData, samples: list["_SampleView"]) -> str:
    policies = policies_of(data.metrics)
    if policies and data.standing not in policies:
        raise ValueError(
            f"The report names {data.standing!r} as the policy that the run ends with, but the metrics are about "
            f"{', '.join(policies)}. Pass the metrics of every policy of the run, under the names that the rounds use."
        )
    refused = frozenset(row.candidate for row in data.rounds if not row.taken)
    parents = dict(zip(policies[1:], policies, strict=False)) | {row.candidate: row.standing for row in data.rounds}
    # Held-out prompts first: they took no part in any decision of the run.
    splits = [split.value for split in reversed(Split) if any(metric.split == split for metric in data.metrics)]
    counted = [row for row, shared in zip(data.stages, _shared(data.stages), strict=True) if not shared]
    seconds = sum(row.seconds for row in counted)
    return _template().render(
        data=data,
        rules=[chat for chat in data.chats if chat.backend == "rules"],
        policies=policies,
        refused=refused,
        headline=[_headline(data, policies, split) for split in splits],
        curves=[curve(data.metrics, split, policies, parents, refused) for split in splits],
        tables=[_metric_table(data.metrics, policies, split) for split in splits],
        stages=_stage_views(data.stages, seconds),
        seconds=seconds,
        paid_usd=sum(row.paid_usd for row in counted),
        samples=samples,
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"clip": _clip, "duration": _duration, "share": _share}
    return environment.from_string(resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8"))


def _clip(text: str) -> str:
    rest = len(text) - MAX_TEXT
    return text if rest <= 0 else f"{text[:MAX_TEXT]} … (cut here, {rest} more characters)"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _duration(seconds: float) -> str:
    """ "7.3 s", "4 min 10 s", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


@dataclass(frozen=True)
class _Headline:
    """What changed from the first policy to the standing one on a split."""

    split: str
    before: str
    after: str
    numbers: tuple[tuple[str, Metric | None, Metric | None], ...]


def _headline(data: ReportData, policies: list[str], split: str) -> _Headline:
    first = [metric for metric in data.metrics if metric.policy == policies[0]]
    last = [metric for metric in data.metrics if metric.policy == data.standing]
    numbers = [(name, find_metric(first, split, name), find_metric(last, split, name)) for name in METRIC_RISK]
    return _Headline(split, policies[0], data.standing, tuple(numbers))


@dataclass(frozen=True)
class _MetricTable:
    """The numbers of a split: per slice one row a number, one cell a policy, and the gaps of slices that have one."""

    split: str
    origins: list["_SliceRows"]
    categories: list["_SliceRows"]


@dataclass(frozen=True)
class _SliceRows:
    label: str
    numbers: list[tuple[str, list[Metric | None]]]
    gaps: list[str]


def _metric_table(metrics: tuple[Metric, ...], policies: list[str], split: str) -> _MetricTable:
    own = {policy: [metric for metric in metrics if metric.policy == policy] for policy in policies}

    def rows(labels: tuple[str, ...]) -> list[_SliceRows]:
        found = []
        for label in labels:
            numbers = [
                (name, [find_metric(own[policy], split, name, label) for policy in policies]) for name in METRIC_RISK
            ]
            numbers = [(name, cells) for name, cells in numbers if any(cell is not None for cell in cells)]
            if numbers:
                gaps = [format_gap(own[policy], split, label) for policy in policies] if len(numbers) == 2 else []
                found.append(_SliceRows(label, numbers, gaps))
        return found

    return _MetricTable(split, rows((ALL, *ORIGIN_SLICES)), rows(tuple(Category)))


@dataclass(frozen=True)
class _StageView:
    """A stage with the share of the run's time that its pass took; `shared` where an earlier row already counted it."""

    row: StageRow
    share: float
    shared: bool
    reasons: list[tuple[str, int]]
    more_reasons: int


def _stage_views(stages: tuple[StageRow, ...], seconds: float) -> list[_StageView]:
    views = []
    for row, shared in zip(stages, _shared(stages), strict=True):
        reasons = sorted(row.failures.items(), key=lambda item: -item[1])
        share = row.seconds / seconds if seconds else 0.0
        views.append(_StageView(row, share, shared, reasons[:MAX_REASONS], len(reasons[MAX_REASONS:])))
    return views


def _shared(stages: tuple[StageRow, ...]) -> list[bool]:
    """Per stage: did it run in the pass of a stage before it, so that its seconds are already counted?"""
    keys = [row.key for row in stages]
    return [any(key in keys[:index] for key in row.passed_with) for index, row in enumerate(stages)]


@dataclass(frozen=True)
class _SampleView:
    sample: Sample
    pictures: list[str]
    bad_pictures: list[str]
    pictures_left_out: int


def _sample_view(sample: Sample) -> _SampleView:
    pictures, bad = [], []
    for content in sample.images[:MAX_IMAGES]:
        try:
            pictures.append(_thumbnail(content))
        except BadImage as error:
            bad.append(error.reason)
    return _SampleView(sample, pictures, bad, len(sample.images[MAX_IMAGES:]))


def _thumbnail(content: bytes) -> str:
    """A picture as a data URI, at most THUMBNAIL_PIXELS on its longest side. Raises BadImage."""
    # Decoded and encoded anew: what reaches the page are pixels, never a stranger's file with its metadata.
    image = decode(content, ImageConfig())
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=THUMBNAIL_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
