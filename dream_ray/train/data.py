"""What the trainers read: the run's parquet files joined into a map-style data set, images decoded row by row.

Contract: dialogues and answers stay in Arrow; a row becomes text and pixels only when the dataloader asks for it, and each
worker asks for its own rows, so memory does not grow with the number of images. The text is rendered as for sampling
(student.py), special tokens included, which is why TRL is given texts, not messages. Only prompts of the train split may be
learnt from: another one is an error, not a row to skip. Images were checked at ingest; one that cannot be read now, or
changed, raises BadImage.

Rows that teach nothing or cannot be read are left out before training starts and counted by reason (`unusable_rows`): by
the driver, once, as all workers have to see the same rows.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dream_ray import files
from dream_ray.records import Demonstration, PreferencePair, Prompt, Split, Turn, from_row, schema_of, stable_id
from dream_ray.student import StudentReader
from dream_ray.train.broken import TrainingBroken

if TYPE_CHECKING:
    from datasets import Dataset


PAIR_ID = "pair_id"
"""The column of a preference data set that tells its pairs apart."""

KIND = "risk"
"""The column of a data set that tells answers to risky prompts from those to benign ones."""

ANSWERS = {Demonstration: ("answer",), PreferencePair: ("chosen", "rejected")}
"""The columns that hold what is learnt."""


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


def unusable_rows(
    record_type: type, prompts: Sequence[str], rows: Sequence[str], max_failure_rate: float
) -> tuple[frozenset[int], Mapping[str, int]]:
    """The rows (positions in order of the files) that training leaves out, and how many for each reason.

    "empty_answer": an answer without a word. "same_answers": chosen and rejected are the same text. "image_missing": an
    image of the prompt is gone from the storage. Raises TrainingBroken where more than `max_failure_rate` of the rows, or all,
    are left out.
    """
    table = read_table(record_type, rows)
    answers = [table[name].to_pylist() for name in ANSWERS[record_type]]
    gone = _prompts_without_images(prompts, set(table["prompt_id"].to_pylist()))
    reasons: dict[int, str] = {}
    for index, (prompt_id, *texts) in enumerate(zip(table["prompt_id"].to_pylist(), *answers, strict=True)):
        words = [text.strip() for text in texts]
        if not all(words):
            reasons[index] = "empty_answer"
        elif len(words) > 1 and len(set(words)) == 1:
            reasons[index] = "same_answers"
        elif prompt_id in gone:
            reasons[index] = "image_missing"
    counts = Counter(reasons.values())
    if reasons and (len(reasons) == table.num_rows or len(reasons) > max_failure_rate * table.num_rows):
        found = ", ".join(f"{reason} x{count}" for reason, count in counts.most_common())
        raise TrainingBroken(
            f"{len(reasons)} of {table.num_rows} rows cannot be trained on ({found}; max_failure_rate allows "
            f"{max_failure_rate:.1%}). Restore images that are gone, run the stage that wrote the rows again, or raise "
            "max_failure_rate if that loss is acceptable."
        )
    return frozenset(reasons), dict(counts)


def _prompts_without_images(prompts: Sequence[str], wanted: Collection[str]) -> set[str]:
    """Ids of the wanted prompts of which an image is gone. Each folder is listed once: an image store has 256 of them, and
    asking for every image would be a request each on an object store."""
    uris = {
        prompt_id: [image["uri"] for turn in turns for image in turn["images"]]
        for prompt_id, turns in zip(
            *(read_table(Prompt, prompts)[name].to_pylist() for name in ("prompt_id", "turns")), strict=True
        )
        if prompt_id in wanted
    }
    folders = {uri.rpartition("/")[0] for found in uris.values() for uri in found}
    names = {folder: {path.rsplit("/", 1)[1] for path in files.list_files(folder)} for folder in folders}
    return {
        prompt_id
        for prompt_id, found in uris.items()
        if not all(name in names[folder] for folder, _, name in (uri.rpartition("/") for uri in found))
    }


def sft_dataset(
    prompts: Sequence[str], demonstrations: Sequence[str], reader: StudentReader, skip: Collection[int] = ()
) -> "Dataset":
    """Rows {prompt, completion, images} as TRL's SFTTrainer takes them, one per demonstration that is not in `skip`."""
    table = _without(read_table(Demonstration, demonstrations), skip)
    return _dataset(read_table(Prompt, prompts), table, {"completion": table["answer"], KIND: table[KIND]}, reader)


def preference_dataset(
    prompts: Sequence[str], pairs: Sequence[str], reader: StudentReader, skip: Collection[int] = ()
) -> "Dataset":
    """Rows {prompt, chosen, rejected, images} as TRL's DPOTrainer takes them, one per pair that is not in `skip`.

    Their `pair_id` comes along, for the reference's stored log-probabilities.
    """
    table = _without(read_table(PreferencePair, pairs), skip)
    columns = {name: table[name] for name in ("chosen", "rejected", PAIR_ID, KIND)}
    return _dataset(read_table(Prompt, prompts), table, columns, reader)


def _without(table: pa.Table, skip: Collection[int]) -> pa.Table:
    return table.take([index for index in range(table.num_rows) if index not in skip]) if skip else table


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


def sizes(data: "Dataset") -> list[tuple[int, int]]:
    """How long the prompt of each row is: (images, characters), known without an image or a tokeniser.

    Answers do not count: refusals are shorter than help, and batches of one kind teach the difference badly.
    """
    dialogues = data.with_format("arrow")[:]["turns"].to_pylist()
    return [
        (sum(len(turn["images"]) for turn in turns), sum(len(turn["text"]) for turn in turns)) for turns in dialogues
    ]


def kinds(data: "Dataset") -> list[str]:
    """Of what risk the prompt of each row is."""
    return list(data.with_format("arrow")[:][KIND].to_pylist())


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
            if name == PAIR_ID:
                rendered[name] = texts
            elif name not in ("turns", KIND):
                answers = zip(dialogues, texts, strict=True)
                rendered[name] = [self.reader.answer(turns, text) for turns, text in answers]
        return rendered
