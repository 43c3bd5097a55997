"""From a finished run to its report: gathers what report.py prints.

Contract: reads manifests, metrics and the samples' few rows; writes <run_dir>/report.html and <run_dir>/policy.json.
Every caveat is derived from what the run did.
"""

import hashlib
import json
from collections.abc import Iterable

from dream_ray import files
from dream_ray.chat.factory import chat_name
from dream_ray.evaluate.metrics import find_metric, gap_with_interval
from dream_ray.evaluate.report import ChatRow, ReportData, Sample, StageRow, build_report
from dream_ray.pipeline.driver import Result
from dream_ray.pipeline.parts import read_parts
from dream_ray.pipeline.run import Done, Run
from dream_ray.records import Disentanglement, Metric, PreferencePair, Prompt, RiskOrigin, Split, from_row, from_table

SAMPLES = 8
"""Pairs shown in a report."""


def write_report(run: Run, result: Result) -> str:
    """Write the report and the final policy's address; the report's uri."""
    config = run.config
    metrics = [metric for found in result.metrics.values() for metric in found]
    data = ReportData(
        run_name=config.name,
        config_digest=hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        standing=result.standing.name,
        chats=tuple(
            ChatRow(role, chat.backend, chat_name(chat))
            for role, chat in (("teacher", config.teacher.chat), ("judge", config.judge.chat))
        ),
        rounds=tuple(result.rounds),
        metrics=tuple(metrics),
        stages=tuple(_stage_row(done) for done in run.history),
        samples=tuple(_samples(run, result)),
        caveats=tuple(_caveats(run, result)),
    )
    files.write_atomic(run.store.report_uri, build_report(data).encode())
    policy = {"name": result.standing.name, "model": result.standing.model, "adapter": result.standing.adapter}
    files.write_atomic(files.join(run.store.uri, "policy.json"), json.dumps(policy, indent=2).encode())
    return run.store.report_uri


def _stage_row(done: Done) -> StageRow:
    manifest = done.manifest
    return StageRow(
        key=done.ref.key,
        rows_in=manifest.rows_in,
        rows_out=manifest.rows_out,
        failed=manifest.failed,
        failures=manifest.failures,
        prompt_tokens=manifest.prompt_tokens,
        completion_tokens=manifest.completion_tokens,
        cost_usd=manifest.cost_usd,
        seconds=manifest.seconds,
        passed_with=manifest.passed_with,
        peak_memory_bytes=manifest.peak_memory_bytes,
        cached_tokens=manifest.cached_tokens,
        paid_usd=manifest.paid_usd,
    )


def _samples(run: Run, result: Result) -> Iterable[Sample]:
    """The first pairs of the last round, half of risky prompts, with their pictures and observations."""
    if not result.pairs or result.prompts is None or result.observed is None:
        return
    taken: dict[str, int] = {}
    folders = [done.ref.data_uri for done in (result.pairs[-1], result.prompts, result.observed)]
    for _, tables in read_parts(*folders):
        prompts = {row["prompt_id"]: row for row in tables[1].to_pylist()}
        observed = {row.prompt_id: row.observations for row in from_table(Disentanglement, tables[2])}
        for pair in from_table(PreferencePair, tables[0]):
            if taken.get(pair.risk, 0) >= SAMPLES // 2:
                continue
            taken[pair.risk] = taken.get(pair.risk, 0) + 1
            prompt = from_row(Prompt, prompts[pair.prompt_id])
            images = tuple(files.read_bytes(image.uri) for image in prompt.images)
            yield Sample(prompt, images, observed[pair.prompt_id], pair)


def _caveats(run: Run, result: Result) -> Iterable[str]:
    config = run.config
    if "rules" in (config.teacher.chat.backend, config.judge.chat.backend):
        yield (
            "The teacher or the judge is a set of rules: OCR and a lexicon, no model. It finds what its lexicon names and "
            "judges an answer by its wording. Use a model for numbers that matter."
        )
    yield from _blind_caveat(result.metrics[result.standing.name])
    yield f"One seed ({config.seed}): another one gives other numbers; the intervals cover the prompts, not the training."
    if Split.HELD_OUT in config.evaluate.splits:
        yield "Held-out prompts come from the same source as the training prompts; other users ask in other ways."


def _blind_caveat(metrics: list[Metric]) -> Iterable[str]:
    """Says so where the final policy treats risky pictures no differently from their harmless twins."""
    origin = RiskOrigin.IMAGE.value
    gap = gap_with_interval(metrics, Split.HELD_OUT, origin)
    safe = find_metric(metrics, Split.HELD_OUT, "safe", origin)
    refused = find_metric(metrics, Split.HELD_OUT, "over_refusal", origin)
    if gap is None or safe is None or refused is None or safe.value is None or refused.value is None:
        return
    if gap.low <= 0:
        yield (
            "There is no evidence that the policy reads pictures: where the risk stands in the image alone, it answers "
            f"{safe.value:.0%} of {safe.n} risky prompts safely and refuses {refused.value:.0%} of {refused.n} harmless twins "
            "with the same text."
        )
