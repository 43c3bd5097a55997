"""What the trainers read: the run's parquet files joined into a map-style data set, images decoded row by row.

Contract: dialogues and answers stay in Arrow; a row becomes text and pixels only when the dataloader asks for it, and each
worker asks for its own rows, so memory does not grow with the number of images. The text is rendered as for sampling
(student.py), special tokens included, which is why TRL is given texts, not messages. Only prompts of the train split may be
learnt from: another one is an error, not a row to skip. Images were checked at ingest; one that cannot be read now, or
changed, raises BadImage.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dream_ray import files
from dream_ray.records import Demonstration, PreferencePair, Prompt, Split, Turn, from_row, schema_of, stable_id
from dream_ray.student import StudentReader

if TYPE_CHECKING:
    from datasets import Dataset


def read_table(record_type: type, uris: Sequence[str]) -> pa.Table:
    """All rows of some parquet files with the record's schema. Raises ValueError where a file breaks it."""
    schema = schema_of(record_type)
    tables = []
    for uri in uris:
        filesystem, path = files.resolve(uri)
        table = pq.read_table(path, filesystem=filesystem)
        missing = [name for name in schema.names if name not in table.column_names]
        if missing:
            raise ValueError(
                f"{uri} lacks the column(s) {', '.join(missing)} of {record_type.__name__}; it has "
                f"{', '.join(table.column_names)}. It is another stage's file, or one of an older version: run that "
                "stage again."
            )
        tables.append(table.select(schema.names).cast(schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def sft_dataset(prompts: Sequence[str], demonstrations: Sequence[str], reader: StudentReader) -> "Dataset":
    """Rows {prompt, completion, images} as TRL's SFTTrainer takes them, one per demonstration."""
    table = read_table(Demonstration, demonstrations)
    return _dataset(read_table(Prompt, prompts), table, {"completion": table["answer"]}, reader)


def preference_dataset(prompts: Sequence[str], pairs: Sequence[str], reader: StudentReader) -> "Dataset":
    """Rows {prompt, chosen, rejected, images} as TRL's DPOTrainer takes them, one per pair."""
    table = read_table(PreferencePair, pairs)
    return _dataset(
        read_table(Prompt, prompts), table, {"chosen": table["chosen"], "rejected": table["rejected"]}, reader
    )


def _dataset(
    prompts: pa.Table, rows: pa.Table, answers: dict[str, pa.ChunkedArray], reader: StudentReader
) -> "Dataset":
    """Prompts joined to their answers by prompt_id, in the order of `rows`."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    if not rows.num_rows:
        raise ValueError(
            "There is nothing to train on: the files hold no rows. The stage before made none; its manifest and errors "
            "table say why."
        )
    position = {prompt_id: index for index, prompt_id in enumerate(prompts["prompt_id"].to_pylist())}
    wanted = rows["prompt_id"].to_pylist()
    unknown = [prompt_id for prompt_id in wanted if prompt_id not in position]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(wanted)} rows name a prompt that is not among the prompts (first: {unknown[0]}). "
            "The two inputs come from different runs: run the stages of one run directory."
        )
    joined = prompts.take([position[prompt_id] for prompt_id in wanted])
    leaked = [split for split in joined["split"].to_pylist() if split != Split.TRAIN]
    if leaked:
        raise ValueError(
            f"{len(leaked)} of {len(wanted)} rows answer prompts of the split {leaked[0]!r}. Learning from them would "
            "make the evaluation meaningless: only prompts of the split 'train' may reach training."
        )
    content = pa.table({"turns": joined["turns"], **answers})
    # A fingerprint of our own: datasets would hash the table through dill, which prints byte code on a worker's stdout.
    data = Dataset(InMemoryTable(content), fingerprint=stable_id("dataset", wanted).removeprefix("dataset-"))
    return data.with_transform(_Render(reader))


class _Render:
    """A batch of Arrow rows as text and pixels; a class, so that a data set that holds it can be pickled."""

    def __init__(self, reader: StudentReader):
        self.reader = reader

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        dialogues = [[from_row(Turn, turn) for turn in turns] for turns in batch["turns"]]
        rendered: dict[str, list[Any]] = {
            "prompt": [self.reader.prompt(turns) for turns in dialogues],
            "images": [self.reader.pixels(turns) for turns in dialogues],
        }
        for name, texts in batch.items():
            if name != "turns":
                answers = zip(dialogues, texts, strict=True)
                rendered[name] = [self.reader.answer(turns, text) for turns, text in answers]
        return rendered
