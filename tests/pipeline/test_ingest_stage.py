"""The ingest stage as a run carries it out: real sources through Ray, repairs and leaks told."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dream_ray.config import Config
from dream_ray.pipeline.cluster import connected
from dream_ray.pipeline.data_stages import ingest
from dream_ray.pipeline.leaks import Leak, leaks, source_index
from dream_ray.pipeline.parts import StageFailed, write_part
from dream_ray.pipeline.plans import part_name
from dream_ray.pipeline.run import Run
from dream_ray.records import Image as StoredImage
from dream_ray.records import Prompt, Split, Turn, make_prompt, to_table
from tests import families


def a_prompt(key: str, text: str, picture: str, split: Split) -> Prompt:
    image = StoredImage(picture * 32, f"images/{picture}", 4, 4, "file")
    return make_prompt(source="mine", source_id=key, turns=[Turn("user", text, (image,))], split=split)


def test_training_prompts_that_are_evaluated_are_found(tmp_path: Path) -> None:
    folder = str(tmp_path)
    held_out = [a_prompt("h", "What is  this?", "aa", Split.HELD_OUT), a_prompt("i", "Who?", "bb", Split.HELD_OUT)]
    training = [
        a_prompt("1", "what is this?", "aa", Split.TRAIN),  # the same prompt
        a_prompt("2", "What is this?", "cc", Split.TRAIN),  # another picture
        a_prompt("3", "Where is it?", "bb", Split.TRAIN),  # a picture of the other set
    ]
    write_part(folder, part_name(Split.HELD_OUT, 0, 0), to_table(Prompt, held_out[:1]))
    write_part(folder, part_name(Split.HELD_OUT, 11, 0), to_table(Prompt, held_out[1:]))
    write_part(folder, part_name(Split.TRAIN, 2, 0), to_table(Prompt, training))
    assert source_index(part_name(Split.HELD_OUT, 11, 3)) == 11
    assert leaks._function(folder, [11]) == (Leak(1, ["mine:1"]), Leak(1, ["mine:3"]))
    assert leaks._function(folder, []) == (Leak(1, ["mine:1"]), Leak())


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = families.build(families.IN_EVERY_RUN, tmp_path_factory.mktemp("student") / "model")
    return {"model": str(folder), "max_model_len": 100_000}  # it has a token for each byte


def config_of(*sources: dict[str, Any], **settings: Any) -> Config:
    return Config.model_validate({"name": "a", "student": {"model": "none"}, "sources": sources, **settings})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(config_of({"path": "none"})):
        yield


@pytest.mark.slow
def test_the_dream_release_through_ingest(
    shared_data: Path, tmp_path: Path, cluster: None, student: dict[str, Any]
) -> None:
    source = {"format": "dream", "path": str(shared_data / "dream"), "observations": "use"}
    config = config_of(source | {"missing_images": "placeholder"}, part_rows=512, student=student)
    done = ingest(Run(config, str(tmp_path / "run")))
    assert (done.manifest.rows_out, done.manifest.failed) == (2977, 0)
    assert done.manifest.extra["repaired"]["0-dream"]["content_prefix_cut"] == 165
    with pytest.raises(StageFailed, match=r"2977 of 2977 rows failed .* image_missing"):
        ingest(Run(config_of(source, part_rows=512, student=student), str(tmp_path / "without pictures")))


@pytest.mark.slow
def test_a_picture_that_must_not_train_stops_the_run(tmp_path: Path, cluster: None, student: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, "PNG")
    information = tmp_path / "moss" / "data" / "images_information" / "information.json"
    information.parent.mkdir(parents=True)
    row = {"image": "images/1.png", "pid": "1", "question": "Describe a game.", "metadata": {"over": "type 1"}}
    information.write_text(json.dumps({"1": row}))
    (tmp_path / "moss" / "data" / "images").mkdir()
    for path in (tmp_path / "moss" / "data" / "images" / "1.png", tmp_path / "own.png"):
        path.write_bytes(buffer.getvalue())
    mine = tmp_path / "mine.csv"
    mine.write_text("id,text,image\na,What is this?,own.png\n")
    config = config_of(
        {"format": "mossbench", "path": str(tmp_path / "moss"), "partial": True},
        {"format": "table", "path": str(mine), "split": "train"},
        student=student,
    )
    with pytest.raises(StageFailed, match=r"1 training prompts show pictures of mossbench.*mine:a"):
        ingest(Run(config, str(tmp_path / "run")))
