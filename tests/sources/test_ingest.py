"""Prompts from a file: a bad row or image costs that row and says why."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dream_ray.cli import app
from dream_ray.config import ConfigError, ImageConfig, SourceConfig
from dream_ray.records import ErrorRow, Observation, Prompt, Split, from_row
from dream_ray.sources.ingest import BAD, Ingest, blocks, raw_table
from dream_ray.sources.raw import BadRow, RawPrompt
from dream_ray.sources.registry import Census, read
from dream_ray.taxonomy import Category, Source


def png(size: tuple[int, int] = (8, 8), form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = bytes(n * n * 31 % 251 for n in range(size[0] * size[1] * 3))
    Image.frombytes("RGB", size, pixels).save(buffer, form, lossless=True)
    return buffer.getvalue()


def a_file(folder: Path, *lines: object) -> SourceConfig:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return SourceConfig(path=str(path), name="mine")


def row(key: str, image: str | None = None, **extra: object) -> dict[str, object]:
    return {"id": key, "turns": [{"text": "What is this?", "images": [image] if image else []}], **extra}


def test_lines_become_prompts_or_say_why(tmp_path: Path) -> None:
    source = a_file(
        tmp_path,
        row("a", "a.png", split="dev", risk="risky", category="Privacy", twin="b"),
        "{not json",
        {"id": "c", "turns": []},
        row("d", colour="red"),
        {"id": "e", "turns": [{"text": "Hi"}, {"role": "assistant", "text": "Hello"}]},
        "",
    )
    good, *bad = list(read(source))
    assert isinstance(good, RawPrompt)
    assert (good.source, good.split, good.twin_id) == ("mine", Split.DEV, "b")
    assert good.turns[0].images[0].uri == str(tmp_path / "a.png")
    assert [(item.row_id, item.reason) for item in bad if isinstance(item, BadRow)] == [
        ("mine/prompts:2", "not_json"),
        ("mine/prompts:3", "bad_row"),
        ("mine/prompts:4", "bad_row"),
        ("mine/prompts:5", "no_question"),
    ]


def test_a_line_may_bring_its_observations(tmp_path: Path) -> None:
    observed = {"content": "a stolen car", "source": "text instruction", "category": "Illegal activities"}
    source = a_file(
        tmp_path,
        row("found", observations=[observed]),
        row("none", observations=[]),
        row("nobody looked"),
        row("strange", observations=[observed | {"category": "Cars"}]),
    )
    known = Observation("a stolen car", Source.TEXT_INSTRUCTION, Category.ILLEGAL_ACTIVITIES)
    *good, bad = list(read(source.model_copy(update={"observations": "use"})))
    assert [item.observations for item in good if isinstance(item, RawPrompt)] == [(known,), (), None]
    assert isinstance(bad, BadRow)
    assert "category" in bad.detail
    assert all(item.observations is None for item in read(source) if isinstance(item, RawPrompt))


def test_a_line_may_be_a_question_of_a_benchmark(tmp_path: Path) -> None:
    extra = {
        "options": ["a path", "a wall"],
        "correct_option": "B",
        "safety_warning": "Mind the wall.",
        "subset": "mcqa",
    }
    (found,) = (item for item in read(a_file(tmp_path, row("a", **extra))) if isinstance(item, RawPrompt))
    (outcome,) = Ingest(ImageConfig(), str(tmp_path / "store"))(raw_table([found])).to_pylist()
    prompt = from_row(Prompt, outcome["record"])
    assert (prompt.options, prompt.correct_option) == (("a path", "a wall"), "B")
    assert (prompt.safety_warning, prompt.subset) == ("Mind the wall.", "mcqa")


def test_the_command_counts_observations_and_says_whether_they_are_used(tmp_path: Path) -> None:
    observed = {"content": "a stolen car", "source": "text in the image", "category": "Illegal activities"}
    source = a_file(tmp_path, row("a", observations=[observed, observed]), row("b", observations=[]), row("c"))

    def printed(*settings: str) -> str:
        return CliRunner().invoke(app, ["sources", "jsonl", source.path, *settings]).output

    assert "observations: 2 on 2 prompts, used\n" in printed("observations=use")
    assert "observations: 2 on 2 prompts, not used (observations=use does)" in printed()
    assert "stolen" not in printed("observations=use")
    a_file(tmp_path, row("c"))
    assert "observations" not in printed()


def test_observations_of_a_format_that_has_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text\nHello\n")
    with pytest.raises(ConfigError, match="jsonl and dream can"):
        list(read(SourceConfig(format="table", path=str(path), observations="use")))


def test_blocks_hold_one_split_and_are_full(tmp_path: Path) -> None:
    source = a_file(tmp_path, *[row(str(n), split="train" if n % 2 else "dev") for n in range(10)], "broken")
    found = [(split, index, len(rows)) for split, index, rows in blocks(Census(source).watch(read(source)), 2)]
    assert sorted(found) == [
        (BAD, 0, 1), ("dev", 0, 2), ("dev", 1, 2), ("dev", 2, 1), ("train", 0, 2), ("train", 1, 2), ("train", 2, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "image_missing"),
        (b"", "image_empty"),
        (png((30, 30))[:500], "image_broken"),
        (b"<svg xmlns='x'/>", "image_unknown_format"),
        (png((60, 60)), "image_too_many_pixels"),
        (b"x" * 15000, "image_too_many_bytes"),
    ],
)
def test_a_bad_image_costs_its_row(tmp_path: Path, content: bytes | None, reason: str) -> None:
    (tmp_path / "good.png").write_bytes(png(form="WEBP"))
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    source = a_file(tmp_path, row("good", "good.png"), row("bad", "bad.png"))
    ingest = Ingest(ImageConfig(max_bytes=12000, max_pixels=1000), str(tmp_path / "store"))
    outcomes = ingest(raw_table(read(source))).to_pylist()
    prompt = from_row(Prompt, outcomes[0]["record"])
    assert (prompt.images[0].width, prompt.images[0].origin) == (8, "file")
    assert Path(prompt.images[0].uri).read_bytes() == png(form="WEBP")
    error = from_row(ErrorRow, outcomes[1]["error"])
    assert (error.row_id, error.reason, outcomes[1]["record"]) == ("mine:bad", reason, None)


def test_an_image_from_the_web_is_not_fetched(tmp_path: Path) -> None:
    source = a_file(tmp_path, row("a", "https://example.invalid/a.png"))
    outcome = Ingest(ImageConfig(), str(tmp_path / "store"))(raw_table(read(source))).to_pylist()[0]
    assert outcome["error"]["reason"] == "image_remote"


def test_one_image_of_two_prompts_is_stored_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png())
    ingest = Ingest(ImageConfig(), str(tmp_path / "store"))
    ingest(raw_table(read(a_file(tmp_path, row("a", "a.png"), row("b", "b.png")))))
    assert len([path for path in (tmp_path / "store").rglob("*") if path.is_file()]) == 1
