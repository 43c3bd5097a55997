"""What the trainers read: the run's parquet files joined into a map-style data set, images decoded row by row.

Contract: dialogues and answers stay in Arrow; a row becomes chat messages and pixels only when the dataloader asks
for it, so memory does not grow with the number of images. Only prompts of the train split may be learnt from: another
one is an error, not a row to skip. Images were checked at ingest; one that cannot be read now, or changed, raises BadImage.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dream_ray import files, images
from dream_ray.config import ImageConfig
from dream_ray.dialogue import to_messages
from dream_ray.records import Demonstration, PreferencePair, Prompt, Split, Turn, from_row, schema_of, stable_id
from dream_ray.stored_images import read_images

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image


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


def sft_dataset(prompts: Sequence[str], demonstrations: Sequence[str], limits: ImageConfig) -> "Dataset":
    """Rows {prompt, completion, images} as TRL's SFTTrainer takes them, one per demonstration."""
    table = read_table(Demonstration, demonstrations)
    return _dataset(read_table(Prompt, prompts), table, {"completion": table["answer"]}, limits)


def preference_dataset(prompts: Sequence[str], pairs: Sequence[str], limits: ImageConfig) -> "Dataset":
    """Rows {prompt, chosen, rejected, images} as TRL's DPOTrainer takes them, one per pair."""
    table = read_table(PreferencePair, pairs)
    return _dataset(
        read_table(Prompt, prompts), table, {"chosen": table["chosen"], "rejected": table["rejected"]}, limits
    )


def _dataset(prompts: pa.Table, rows: pa.Table, answers: dict[str, pa.ChunkedArray], limits: ImageConfig) -> "Dataset":
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
    return data.with_transform(_Render(limits))


def sizes(data: "Dataset") -> list[tuple[int, int]]:
    """How long the prompt of each row is: (images, characters), known without an image or a tokeniser.

    Answers do not count: refusals are shorter than help, and batches of one kind teach the difference badly.
    """
    dialogues = data.with_format("arrow")[:]["turns"].to_pylist()
    return [
        (sum(len(turn["images"]) for turn in turns), sum(len(turn["text"]) for turn in turns)) for turns in dialogues
    ]


class _Render:
    """A batch of Arrow rows as messages and pixels; a class, so that a data set that holds it can be pickled."""

    def __init__(self, limits: ImageConfig):
        self.limits = limits

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rendered: dict[str, list[Any]] = {}
        for name, values in batch.items():
            if name == "turns":
                dialogues = [[from_row(Turn, turn) for turn in turns] for turns in values]
                rendered["prompt"] = [to_messages(turns) for turns in dialogues]
                rendered["images"] = [self._pixels(turns) for turns in dialogues]
            else:
                rendered[name] = [to_messages([Turn(role="assistant", text=text, images=())]) for text in values]
        return rendered

    def _pixels(self, turns: Sequence[Turn]) -> list["Image"]:
        contents = read_images([image for turn in turns for image in turn.images], self.limits)
        return [images.decode(content, self.limits) for content in contents]
