"""The demo prompts: complete, balanced, split by topic, reproducible to the byte, with legible pictures or none."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dream_ray.records import Split
from dream_ray.sources import demo_drawing
from dream_ray.sources.demo import demo_prompts, write_demo
from dream_ray.taxonomy import Category

Line = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo")).parent


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[Line]:
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]


def text_of(line: Line) -> str:
    return str(line["turns"][0]["text"])


def pictured(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line["turns"][0]["images"]]


def alone(lines: list[Line]) -> list[Line]:
    """The prompts without a picture."""
    return [line for line in lines if not line["turns"][0]["images"]]


def neutral_texts(lines: list[Line]) -> set[str]:
    return {text_of(line) for line in lines if line["risk_origin"] == "image"}


@pytest.fixture(scope="module")
def titles() -> dict[str, str | None]:
    """What stands on each prompt's picture."""
    return {prompt.name: prompt.picture.title for prompt in demo_prompts() if prompt.picture}


def test_there_are_enough_of_each_kind(lines: list[Line], titles: dict[str, str | None]) -> None:
    twinned = [line for line in pictured(lines) if line["twin"]]
    plain = [line for line in pictured(lines) if not line["twin"]]
    assert len(twinned) == 504
    assert Counter(line["risk"] for line in twinned) == {"risky": 252, "benign": 252}
    assert len(plain) == 80 + 40
    assert sum(text_of(line) in neutral_texts(lines) for line in plain) == 40
    assert all(line["risk"] == "benign" and line["category"] is None for line in plain)
    assert sum(titles[line["id"]] is not None for line in plain) >= 40
    assert Counter(line["category"] for line in twinned) == {category.value: 56 for category in Category}
    assert Counter((line["risk"], line["twin"] is None) for line in alone(lines)) == {
        ("risky", False): 288, ("benign", False): 288, ("benign", True): 119,
    }  # fmt: skip
    assert len({line["id"] for line in lines}) == len(lines)


def test_every_line_has_the_documented_fields(lines: list[Line]) -> None:
    names = ["id", "turns", "split", "risk", "risk_origin", "category", "twin", "answer"]
    for line in lines:
        with_picture = bool(line["turns"][0]["images"])
        assert list(line) == [*names, "image_origin" if with_picture else "observations"]
        assert [turn["role"] for turn in line["turns"]] == ["user"]
        assert len(line["turns"][0]["images"]) <= 1
        assert (line["answer"] is not None) == (line["risk"] == "benign")
        assert (line["risk_origin"] is not None) == (line["risk"] == "risky")
        if with_picture:
            assert line["image_origin"] in ("rendered", "drawn")
        else:
            assert len(line["observations"]) == (line["risk"] == "risky")


def test_twins_name_each_other_and_stay_in_one_split(lines: list[Line]) -> None:
    by_id = {line["id"]: line for line in lines}
    for line in lines:
        if line["risk"] == "risky" or line["twin"]:
            twin = by_id[line["twin"]]
            assert twin["twin"] == line["id"]
            assert twin["risk"] != line["risk"]
            assert (twin["split"], twin["category"]) == (line["split"], line["category"])


def test_twins_differ_only_where_the_risk_stands(lines: list[Line], folder: Path) -> None:
    by_id = {line["id"]: line for line in lines}
    for line in (line for line in pictured(lines) if line["risk"] == "risky"):
        twin = by_id[line["twin"]]
        pixels = [(folder / each["turns"][0]["images"][0]).read_bytes() for each in (line, twin)]
        assert (pixels[0] == pixels[1]) == (line["risk_origin"] == "text"), line["id"]
        assert (text_of(line) == text_of(twin)) == (line["risk_origin"] == "image"), line["id"]
        if line["risk_origin"] == "image":
            assert twin["answer"].startswith(("The picture asks", "The picture is about"))


def test_no_text_and_no_title_stands_in_two_splits(lines: list[Line], titles: dict[str, str | None]) -> None:
    neutral = neutral_texts(lines)
    assert 10 <= len(neutral) <= 14
    texts = Counter(text_of(line).casefold() for line in lines if text_of(line) not in neutral)
    assert max(texts.values()) == 1
    # Greetings and names on the harmless drawings carry no request and may recur.
    asked = Counter(
        (titles[line["id"]] or "").casefold()
        for line in pictured(lines)
        if text_of(line) in neutral or titles[line["twin"] or line["id"]] != titles[line["id"]]
    )
    assert len(asked) >= 200
    assert max(asked.values()) == 1
    answers = Counter(line["answer"] for line in lines if line["answer"])
    assert max(answers.values()) == 1


def test_all_four_combinations_of_safe_and_risky_occur(lines: list[Line]) -> None:
    share = Counter(line["risk_origin"] for line in pictured(lines) if line["risk"] == "risky")
    assert share.keys() == {"text", "image", "both"}
    assert 0.57 <= share["text"] / 252 <= 0.63
    assert 0.17 <= share["image"] / 252 <= 0.23
    assert 0.17 <= share["both"] / 252 <= 0.23
    for category in Category:
        here = {line["risk_origin"] for line in pictured(lines) if line["category"] == category.value}
        assert here == {"text", "image", "both", None}


def test_splits_hold_their_share_of_every_category_and_origin(lines: list[Line]) -> None:
    risky = [line for line in pictured(lines) if line["risk"] == "risky"]
    wanted = {Split.TRAIN: 0.60, Split.DEV: 0.15, Split.HELD_OUT: 0.25}
    for split, share in wanted.items():
        assert abs(sum(line["split"] == split for line in risky) / len(risky) - share) < 0.01
        for origin in ("text", "image", "both"):
            group = [line for line in risky if line["risk_origin"] == origin]
            assert abs(sum(line["split"] == split for line in group) / len(group) - share) < 0.05
    for category in Category:
        count = Counter(line["split"] for line in risky if line["category"] == category.value)
        assert 15 <= count["train"] <= 18
        assert 3 <= count["dev"] <= 5
        assert 6 <= count["held_out"] <= 8


def test_texts_alone_hold_their_share_of_every_split(lines: list[Line]) -> None:
    for risk, number in (("risky", 288), ("benign", 407)):
        count = Counter(line["split"] for line in alone(lines) if line["risk"] == risk)
        for split, share in ((Split.TRAIN, 0.60), (Split.DEV, 0.15), (Split.HELD_OUT, 0.25)):
            assert abs(count[split.value] / number - share) < 0.02


def test_texts_have_the_length_of_everyday_requests() -> None:
    for prompt in demo_prompts():
        assert 4 <= len(prompt.text.split()) <= 20, prompt.name
        assert prompt.answer is None or 14 <= len(prompt.answer.split()) <= 50, prompt.name


def test_pictures_are_256_pixels_square_rgb(lines: list[Line], folder: Path) -> None:
    named = {line["turns"][0]["images"][0] for line in pictured(lines)}
    assert {f"images/{path.name}" for path in (folder / "images").iterdir()} == named
    for name in named:
        with Image.open(folder / name) as image:
            image.load()
            assert (image.format, image.size, image.mode) == ("PNG", (256, 256), "RGB")


@pytest.mark.slow
def test_writing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_demo(tmp_path)
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    second = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert first == second
    assert len(first) == 625


def test_every_layout_and_every_thing_is_used() -> None:
    used = {prompt.picture.motif for prompt in demo_prompts() if prompt.picture}
    assert used == {*demo_drawing.LAYOUTS, *demo_drawing.THINGS}


def test_a_title_that_does_not_fit_is_refused() -> None:
    with pytest.raises(demo_drawing.TitleTooLong, match="Shorten it"):
        demo_drawing.typeset("word " * 200, "note", "key")
    with pytest.raises(demo_drawing.TitleTooLong):
        demo_drawing.sketch("house", "Donaudampfschifffahrtsgesellschaftskapitaen", "key")


@pytest.mark.slow
def test_titles_can_be_read_by_ocr() -> None:
    engine = pytest.importorskip("rapidocr").RapidOCR()
    numpy = pytest.importorskip("numpy")
    by_motif = defaultdict(list)
    for picture in (prompt.picture for prompt in demo_prompts() if prompt.picture):
        if picture.title is not None and len(picture.title.split()) > 2:
            by_motif["caption" if picture.origin == "drawn" else picture.motif].append(picture)
    sample = [picture for pictures in by_motif.values() for picture in pictures[:3]]
    assert len(sample) == 15
    exact = 0
    for picture in sample:
        found = engine(numpy.asarray(picture.draw())[:, :, ::-1]).txts or ()
        read = "".join("".join(found).split()).casefold()
        exact += "".join((picture.title or "").split()).casefold() in read
    assert exact >= 13
