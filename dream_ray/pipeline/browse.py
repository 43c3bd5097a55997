"""The samples of a run for its report: prompts with their answers at each stage that wrote some.

Contract: reads the run directory part by part and holds never more than SCANNED prompts; the same directory gives
the same samples. What is rare (a disagreement, a missing verdict) is kept before what is common.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import pyarrow as pa

from dream_ray import files
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.evaluate.samples import Answer, Sample, rarity, spread
from dream_ray.pipeline.parts import read_part
from dream_ray.pipeline.past_run import PastRun
from dream_ray.pipeline.run import Done
from dream_ray.records import (
    Demonstration,
    Grade,
    Image,
    Judgement,
    PreferencePair,
    Prompt,
    Record,
    Rollout,
    Split,
    from_table,
)

SCANNED = 1000
"""Prompts of a stage among which the shown ones are chosen; memory is bounded by this."""
SHOWN = 24
"""Most prompts shown of a stage."""

Answers = dict[str, list[Answer]]
"""Answers by prompt_id."""


def browse(run: PastRun) -> list[Sample]:
    """The samples to show, stage by stage in the order of the run, with the bytes of their pictures."""
    stages = [_samples(run, stage, splits, read) for stage, splits, read in _stages(run)]
    stages += [_measured(run, name) for name in BENCHMARKS if run.stage(f"benchmarks/{name}/prompts")]
    return [
        replace(sample, images=tuple(_image(run, image) for image in sample.prompt.images))
        for samples in stages
        for sample in spread(list(islice(samples, SCANNED)), rarity, SHOWN)
    ]


def _stages(run: PastRun) -> Iterator[tuple[str, tuple[Split, ...], Callable[[str], Answers]]]:
    """What can be browsed: its name, the splits of its prompts, and how a part's answers are read."""
    if demonstrate := run.stage("demonstrate"):
        yield "demonstrations", (Split.TRAIN,), lambda part: _demonstrations(demonstrate, part)
    for number in range(1, run.config.rounds + 1):
        if rollout := run.stage(f"round-{number}/rollout"):
            judge, pair = run.stage(f"round-{number}/judge"), run.stage(f"round-{number}/pair")
            yield f"round {number}: rollouts and pairs", (Split.TRAIN,), _rollout_reader(rollout, judge, pair)
    if run.metrics:
        for split in run.config.evaluate.splits:
            yield f"evaluation: {split.value}", (split,), lambda part: _evaluated(run, part)


def _samples(run: PastRun, stage: str, splits: Iterable[Split], read: Callable[[str], Answers]) -> Iterator[Sample]:
    for part in _mixed(run.parts(splits)):
        answers = read(part)
        if answers:
            for prompt, observed in run.prompts_of(part):
                if prompt.prompt_id in answers:
                    yield Sample(stage, prompt, observed.observations, tuple(answers[prompt.prompt_id]))


def _mixed(parts: Iterable[str]) -> list[str]:
    """By hash: neighbours in a source are often about the same matter, and only the first SCANNED are looked at."""
    return sorted(parts, key=lambda part: hashlib.sha256(part.encode()).hexdigest())


def _measured(run: PastRun, name: str) -> Iterator[Sample]:
    """The prompts of a benchmark with the answers of every policy that was measured on it."""
    benchmark, prompts = BENCHMARKS[name], run.stage(f"benchmarks/{name}/prompts")
    for part in _mixed(run.parts((Split.HELD_OUT,), f"benchmarks/{name}/prompts")):
        answers: Answers = defaultdict(list)
        for policy in run.metrics:
            key = f"{policy}/benchmarks/{name}"
            graded = {row.rollout_id: row for row in _records(Grade, run.stage(f"{key}/judge"), part)}
            for row in sorted(_records(Rollout, run.stage(f"{key}/answers"), part), key=lambda row: row.k):
                label = f"{policy}, answer {row.k + 1}" if benchmark.answers > 1 else policy
                asked = bool(benchmark.tasks)
                answers[row.prompt_id].append(
                    Answer(label, row.text, None, asked=asked, grade=graded.get(row.rollout_id))
                )
        for prompt in _records(Prompt, prompts, part):
            if prompt.prompt_id in answers:
                yield Sample(f"benchmark: {name}", prompt, None, tuple(answers[prompt.prompt_id]))


def _records(kind: type[Record], done: Done | None, part: str) -> list[Record]:
    table: pa.Table | None = read_part(done.ref.data_uri, part) if done else None
    return [] if table is None else from_table(kind, table)


def _demonstrations(done: Done, part: str) -> Answers:
    return {
        row.prompt_id: [Answer("demonstration", row.answer, None, asked=False)]
        for row in _records(Demonstration, done, part)
    }


def _rollout_reader(rollout: Done, judge: Done | None, pair: Done | None) -> Callable[[str], Answers]:
    def read(part: str) -> Answers:
        roles = {}
        for made in _records(PreferencePair, pair, part):
            roles[made.prompt_id, made.chosen], roles[made.prompt_id, made.rejected] = "chosen", "rejected"
        judged = {row.rollout_id: row for row in _records(Judgement, judge, part)}
        answers: Answers = defaultdict(list)
        for row in sorted(_records(Rollout, rollout, part), key=lambda row: row.k):
            role = roles.get((row.prompt_id, row.text.strip()), "")
            label = f"{row.policy}, answer {row.k + 1}"
            answers[row.prompt_id].append(Answer(label, row.text, judged.get(row.rollout_id), role, judge is not None))
        return answers

    return read


def _evaluated(run: PastRun, part: str) -> Answers:
    """The answers of every evaluated policy, side by side."""
    answers: Answers = defaultdict(list)
    for policy in run.metrics:
        judge = run.stage(f"{policy}/judge")
        judged = {row.rollout_id: row for row in _records(Judgement, judge, part)}
        for row in _records(Rollout, run.stage(f"{policy}/answers"), part):
            answers[row.prompt_id].append(Answer(policy, row.text, judged.get(row.rollout_id), asked=judge is not None))
    return answers


def _image(run: PastRun, image: Image) -> bytes | None:
    """The encoded image, None where the store lacks it."""
    # By its hash in this directory's store: the recorded uri is wrong as soon as the directory has been moved or copied.
    uri = files.join(run.store.images_uri, image.sha256[:2], image.sha256)
    return files.read_bytes(uri) if files.exists(uri) else None
