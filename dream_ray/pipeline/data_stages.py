"""The stages before training: ingest, disentangle, demonstrate.

Contract: each function takes the run and the finished stages it reads, and returns its own finished stage; called again
with the same settings it returns at once. What happens to a row is in sources/ and teacher/; here is only where rows come
from and go to.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from dream_ray import files
from dream_ray.chat.factory import chat_options
from dream_ray.config import ConfigError, SourceConfig
from dream_ray.outcomes import struct_of
from dream_ray.pipeline.leaks import leaks
from dream_ray.pipeline.parts import (
    StageFailed,
    Target,
    WorkItem,
    part_rows,
    read_part,
    read_parts,
    run_pass,
    write_part,
)
from dream_ray.pipeline.plans import in_splits, part_name
from dream_ray.pipeline.run import Done, Outcome, Run
from dream_ray.records import Demonstration, Disentanglement, Observation, Prompt, Risk, Split
from dream_ray.sources.format import Terms, source_name
from dream_ray.sources.ingest import Ingest, blocks, raw_table
from dream_ray.sources.registry import FORMATS, Census
from dream_ray.sources.registry import read as read_source
from dream_ray.teacher.demonstrate import DemonstrateActor
from dream_ray.teacher.disentangle import DisentangleActor

log = logging.getLogger(__name__)


def labelled(table: pa.Table | None, job: str, part: str) -> pa.Table:
    """A table with the columns that route its rows to their files. Raises FileNotFoundError where there is none."""
    if table is None:
        raise FileNotFoundError(f"The part {part} of {job} is not there, though the stage before it wrote it.")
    for name, value in (("job", job), ("part", part)):
        table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def route_of(block: pa.Table) -> tuple[str, str]:
    """The job and part that all rows of a block belong to."""
    row = block.select(["job", "part"]).slice(0, 1).to_pylist()[0]
    return row["job"], row["part"]


class KeepRoute:
    """Wraps a teacher's actor, which maps prompts to outcomes, so that the block's route stays with it."""

    def __init__(self, actor: type, *arguments: Any):
        self._actor = actor(*arguments)

    async def __call__(self, block: pa.Table) -> pa.Table:
        return labelled(await self._actor(block.drop_columns(["job", "part"])), *route_of(block))


def _actors(run: Run) -> dict[str, Any]:
    """How Ray Data runs the teacher: a pool of actors that each take one part at a time."""
    teacher = run.config.teacher
    return {
        "batch_format": "pyarrow",
        "batch_size": None,
        "compute": ray.data.ActorPoolStrategy(size=teacher.actors),
        **chat_options(teacher.chat, teacher.actors),
    }


def ingest(run: Run, key: str = "ingest", sources: Sequence[SourceConfig] = ()) -> Done:
    """All prompts of the sources, the config's unless others are given, in parts; every image in the run's image store."""
    config = run.config
    sources = sources or config.sources
    plan = run.plans.ingest(key, sources)
    if done := run.done(plan):
        return done

    raw_uri = files.join(plan.ref.uri, "raw")
    opener = Ingest(config.images, run.store.images_uri)

    def read(job: str, part: str) -> Iterable[pa.Table]:
        yield labelled(read_part(raw_uri, part), job, part)

    def open_images(block: pa.Table) -> pa.Table:
        return labelled(opener(block), *route_of(block))

    target = Target(plan.ref, Prompt, key, "record", "ingest")

    def work() -> Mapping[str, Outcome]:
        # The text is cut into parts here, a part at a time; the images, which take the time, are opened on the cluster.
        items = []
        repaired: dict[str, dict[str, int]] = {}
        for source_index, source in enumerate(sources):
            census = Census(source)
            try:
                for split, index, rows in blocks(census.watch(read_source(source)), config.part_rows):
                    part = part_name(split, source_index, index)
                    write_part(raw_uri, part, raw_table(rows))
                    items.append(WorkItem(key, part, len(rows)))
            except ConfigError as error:
                raise StageFailed(f"{key}: {error}") from None
            if census.repaired:
                repaired[f"{source_index}-{source_name(source)}"] = dict(census.repaired)
        tallies = run_pass(
            key,
            items,
            read,
            lambda dataset: dataset.map_batches(open_images, batch_format="pyarrow", batch_size=None),
            [target],
            config.max_failure_rate,
        )
        files.delete_folder(raw_uri)
        extra: dict[str, Any] = {"repaired": repaired} if repaired else {}
        if repeated := _check_leaks(key, sources, plan.ref.data_uri):
            extra["training_prompts_also_held_out"] = repeated
        return {key: Outcome(tallies[key], extra)}

    return run.carry_out([plan], work)[0]


def _check_leaks(key: str, sources: Sequence[SourceConfig], folder_uri: str) -> int:
    """How many training prompts are held out as well. Raises StageFailed where one shows a picture that must not train."""
    never_trained = [
        index for index, source in enumerate(sources) if FORMATS[source.format].terms is Terms.EVALUATION_ONLY
    ]
    repeated, shown = ray.get(leaks.remote(folder_uri, never_trained))
    if shown.count:
        sets = ", ".join(sources[index].format for index in never_trained)
        raise StageFailed(
            f"{key}: {shown.count} training prompts show pictures of {sets}, whose licence forbids training: "
            f"{', '.join(shown.first)}. Take these rows out of their source, or leave {sets} out of the config."
        )
    if repeated.count:
        log.warning(
            "%s: %d training prompts are held out as well (%s): numbers on them say nothing. Take them out of one.",
            key,
            repeated.count,
            ", ".join(repeated.first),
        )
    return int(repeated.count)


def disentangle(run: Run, prompts: Done) -> Done:
    """What is risky in each prompt, where it stands, which category."""
    config = run.config
    plan = run.plans.disentangle(prompts.ref)
    if done := run.done(plan):
        return done

    def read(job: str, part: str) -> Iterable[pa.Table]:
        yield labelled(read_part(prompts.ref.data_uri, part), job, part)

    items = [WorkItem("disentangle", part, rows) for part, rows in part_rows(prompts.ref.data_uri).items()]
    target = Target(plan.ref, Disentanglement, "disentangle", "record", "disentangle")

    def work() -> Mapping[str, Outcome]:
        tallies = run_pass(
            "disentangle",
            items,
            read,
            lambda dataset: dataset.map_batches_internal(
                KeepRoute,
                fn_constructor_args=(DisentangleActor, config.teacher, config.images, run.services),
                **_actors(run),
            ),
            [target],
            config.max_failure_rate,
        )
        return {"disentangle": Outcome(tallies["disentangle"])}

    return run.carry_out([plan], work)[0]


def demonstrate(run: Run, prompts: Done, observed: Done) -> Done:
    """The answers that SFT teaches, to training prompts, with at least `benign_ratio` benign ones per risky one."""
    config = run.config
    plan = run.plans.demonstrate(prompts.ref, observed.ref)
    if done := run.done(plan):
        return done

    def read(job: str, part: str) -> Iterable[pa.Table]:
        rows = join_observations(prompts.ref.data_uri, observed.ref.data_uri, part)
        if rows:
            yield labelled(pa.Table.from_pylist(rows, schema=WITH_OBSERVATIONS), job, part)

    target = Target(plan.ref, Demonstration, "demonstrate", "record", "demonstrate")

    def work() -> Mapping[str, Outcome]:
        tallies = run_pass(
            "demonstrate",
            training_items("demonstrate", observed),
            read,
            lambda dataset: dataset.map_batches_internal(
                KeepRoute,
                fn_constructor_args=(DemonstrateActor, config.teacher, config.images, run.services),
                **_actors(run),
            ),
            [target],
            config.max_failure_rate,
        )
        left_out = ray.get(_balance_demonstrations.remote(plan.ref.data_uri, config.teacher.benign_ratio))
        tallies["demonstrate"].rows_out -= left_out
        return {"demonstrate": Outcome(tallies["demonstrate"], {"left_out_by_benign_ratio": left_out})}

    return run.carry_out([plan], work)[0]


def training_items(job: str, stage: Done) -> list[WorkItem]:
    """A work item for each training part of a stage."""
    rows = part_rows(stage.ref.data_uri)
    return [WorkItem(job, part, count) for part, count in rows.items() if in_splits(part, (Split.TRAIN,))]


@ray.remote(num_cpus=1)
def _balance_demonstrations(folder_uri: str, benign_ratio: float) -> int:
    """Leave out risky demonstrations, the highest prompt ids first, until the ratio holds; how many were left out.

    Reads the ids and risks of all parts at once: some tens of bytes a row.
    """
    parts = {part: table for part, (table,) in read_parts(folder_uri)}
    risky: list[str] = []
    benign = 0
    for table in parts.values():
        for row in table.select(["prompt_id", "risk"]).to_pylist():
            if row["risk"] == Risk.RISKY:
                risky.append(row["prompt_id"])
            else:
                benign += 1
    keep = len(risky) if benign_ratio == 0 else min(len(risky), int(benign / benign_ratio))
    left_out = pa.array(sorted(risky)[keep:], pa.string())
    if len(left_out):
        for part, table in parts.items():
            write_part(folder_uri, part, table.filter(pc.invert(pc.is_in(table["prompt_id"], value_set=left_out))))
    return len(left_out)


WITH_OBSERVATIONS = pa.schema([("prompt", struct_of(Prompt)), ("observations", pa.list_(struct_of(Observation)))])
"""The columns of prompts joined with what was observed in them."""


def join_observations(prompts_uri: str, observations_uri: str, part: str) -> list[dict[str, Any]]:
    """A part's prompts with their observations, as rows of `prompt` and `observations`; a prompt without one drops out."""
    prompts, observed = read_part(prompts_uri, part), read_part(observations_uri, part)
    if prompts is None or observed is None:
        return []
    by_id = {row["prompt_id"]: row["observations"] for row in observed.to_pylist()}
    return [
        {"prompt": row, "observations": by_id[row["prompt_id"]]}
        for row in prompts.to_pylist()
        if row["prompt_id"] in by_id
    ]
