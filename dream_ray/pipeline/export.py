"""What leaves a run for use elsewhere: the standing policy as one model folder, and what it learnt from as a data set.

Contract: reads run directories and model folders, writes a folder on any pyarrow filesystem that was not there before, and
raises ConfigError where there is nothing to export or the output holds something. Rows go through memory a part at a time.
Neither needs Ray; only merging loads a model.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dream_ray import files
from dream_ray.config import ConfigError
from dream_ray.evaluate.card import model_card
from dream_ray.images import BadImage
from dream_ray.pipeline import export_card, export_rows
from dream_ray.pipeline.parts import read_parts
from dream_ray.pipeline.past_run import PastRun, read_run
from dream_ray.pipeline.reporting import report_data
from dream_ray.pipeline.run import Done
from dream_ray.records import Demonstration, PreferencePair, Prompt, Split, from_table
from dream_ray.scratch import ScratchFolder
from dream_ray.stored_images import read_images
from dream_ray.train.layout import refused_by_engines, rename_for_engines
from dream_ray.train.policy import check_model_folder, fetch_folder, find_policy, merge_adapter, store_folder

CARD = "README.md"
"""Where the Hugging Face Hub looks for a card."""


@dataclass(frozen=True)
class Exported:
    """What was written: `rows` by the data set's parts, `skipped` rows by reason."""

    uri: str
    rows: Mapping[str, int]
    skipped: Mapping[str, int]


def export_policy(source: str, output: str, base: str | None = None) -> str:
    """Write a policy as a folder that from_pretrained loads, with its processor; returns the policy's name.

    `source` is a run directory, whose model card goes with it, an adapter's folder or a model's. An adapter goes on
    `base`, or else on the model that its adapter_config.json names.
    """
    _require_absent(output)
    policy = find_policy(source, base or _base_of(source))
    run = read_run(source) if files.exists(files.join(source, "config.yaml")) else None
    check_model_folder(policy.model)
    if policy.adapter is None:
        with ScratchFolder("export") as scratch:
            folder = fetch_folder(policy.model, Path(scratch, "fetched"))
            if refused_by_engines(folder):
                folder = Path(shutil.copytree(folder, Path(scratch, "renamed")))
                rename_for_engines(folder)
            store_folder(folder, output)
    else:
        merge_adapter(policy, output, trust_remote_code=run is not None and run.config.student.trust_remote_code)
    if run is not None:
        # The card says how to load an adapter's library; these are whole weights.
        card = model_card(report_data(run)).replace("library_name: peft", "library_name: transformers", 1)
        files.write_atomic(files.join(output, CARD), card.encode())
    return policy.name


def _base_of(adapter: str) -> str:
    """The model that an adapter's folder says it was trained on; "" where it is no adapter's folder."""
    path = files.join(adapter, "adapter_config.json")
    if not files.exists(path):
        return ""
    base = json.loads(files.read_bytes(path)).get("base_model_name_or_path") or ""
    if not files.exists(files.join(base, "config.json")):
        raise ConfigError(
            f"The adapter {adapter} was trained on {base!r}, and there is no model there now. Name the folder of that "
            "model with --base."
        )
    return str(base)


def export_data(run_dir: str, output: str) -> Exported:
    """Write a run's demonstrations and the preference pairs of all its rounds as a data set.

    Only answers to prompts of the train split are written; one to another split raises ConfigError. A row whose image
    is gone or has changed since ingest is skipped and counted.
    """
    _require_absent(output)
    run = read_run(run_dir)
    prompts = run.stage("ingest")
    sets: list[tuple[str, str, Done]] = []
    if demonstrations := run.stage("demonstrate"):
        sets.append((export_rows.DEMONSTRATIONS, "train", demonstrations))
    for number in range(1, run.config.rounds + 1):
        if pairs := run.stage(f"round-{number}/pair"):
            sets.append((export_rows.PREFERENCES, f"round-{number}", pairs))
    if prompts is None or not sets:
        raise ConfigError(
            f"The run in {run.store.uri} has neither demonstrations nor preference pairs yet. Let it go on with `dream-ray "
            "run` and the same --run-dir, then export again."
        )
    rows: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    try:
        for kind, name, stage in sets:
            uri = files.join(output, kind, f"{name}.parquet")
            written = _write(uri, export_rows.schema(kind), _tables(run, prompts, stage, kind, skipped, sources))
            rows[kind] += written
        if not rows.total():
            raise ConfigError(
                f"No row of the run in {run.store.uri} could be exported: {dict(skipped)}. The images that it stored are "
                "gone or were changed; restore the run's images folder."
            )
        found = Exported(output, {kind: count for kind, count in rows.items() if count}, skipped)
        card = export_card.data_card(run.config, found.rows, skipped, sources)
        files.write_atomic(
            files.join(output, "dataset_info.json"), export_card.dataset_info(run.config.name, found.rows)
        )
        files.write_atomic(files.join(output, CARD), card.encode())
    except BaseException:
        files.delete_folder(output)  # half a data set looks like a whole one
        raise
    return found


def _tables(
    run: PastRun, prompts: Done, stage: Done, kind: str, skipped: Counter[str], sources: Counter[str]
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a stage with their prompts and images, a part at a time."""
    record: type[Any] = Demonstration if kind == export_rows.DEMONSTRATIONS else PreferencePair
    number = stage.ref.key.partition("/")[0].removeprefix("round-")
    for _, (answers, asked) in read_parts(stage.ref.data_uri, prompts.ref.data_uri):
        known = {prompt.prompt_id: prompt for prompt in from_table(Prompt, asked)}
        rows = []
        for answer in from_table(record, answers):
            prompt = _prompt_of(answer.prompt_id, known, stage)
            try:
                images = read_images(prompt.images, run.config.images)
            except BadImage as error:
                skipped[error.reason] += 1
                continue
            sources[prompt.source] += 1
            if isinstance(answer, Demonstration):
                rows.append(export_rows.demonstration(prompt, answer, images))
            else:
                rows.append(export_rows.preference(prompt, answer, images, int(number)))
        yield rows


def _prompt_of(prompt_id: str, known: Mapping[str, Prompt], stage: Done) -> Prompt:
    """The prompt that an answer belongs to. Raises ConfigError where it is none to learn from."""
    prompt = known.get(prompt_id)
    if prompt is None or prompt.split != Split.TRAIN:
        why = "is not among the prompts" if prompt is None else f"is of the split {prompt.split.value!r}"
        raise ConfigError(
            f"{stage.ref.key} answers {prompt_id}, which {why}: a data set with it would spoil every evaluation on this "
            "run's prompts. The directory was changed by hand or mixes runs; run the stage again."
        )
    return prompt


def _write(uri: str, schema: pa.Schema, tables: Iterable[list[dict[str, Any]]]) -> int:
    """Write rows as one parquet file, a row group a table; how many there were. No file where there are none."""
    filesystem, path = files.resolve(uri)
    writer: pq.ParquetWriter | None = None
    count = 0
    try:
        for rows in tables:
            if not rows:
                continue
            if writer is None:
                filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
                writer = pq.ParquetWriter(path, schema, filesystem=filesystem)
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    finally:
        if writer is not None:
            writer.close()
    return count


def _require_absent(output: str) -> None:
    """Raise ConfigError where the output holds something: it would be lost."""
    if files.is_file(output) or files.list_tree(output):
        raise ConfigError(
            f"The output {output!r} is there already and holds files, which the export would replace. Name a new folder, or "
            "delete this one first."
        )
