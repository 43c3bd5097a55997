"""Prompts and pictures on an object store: read by pyarrow's own S3 client, stored there, and read back from there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dream_ray.cli import app
from dream_ray.config import ConfigError, ImageConfig, SourceConfig
from dream_ray.records import ErrorRow, Prompt, from_row
from dream_ray.sources.ingest import Ingest, raw_table
from dream_ray.sources.raw import RawPrompt
from dream_ray.sources.registry import content_digest, read
from dream_ray.stored_images import read_images
from tests.object_store import ObjectStore, object_store
from tests.sources.test_ingest import png, row


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as running:
        yield running


def a_file(store: ObjectStore, *lines: object) -> SourceConfig:
    """A prompt file in a bucket."""
    store.objects["data/mine/prompts.jsonl"] = "\n".join(json.dumps(line) for line in lines).encode()
    return SourceConfig(path="s3://data/mine/prompts.jsonl")


def ingested(source: SourceConfig, limits: ImageConfig) -> list[Prompt | ErrorRow]:
    """All prompts of a source, their pictures stored in another bucket."""
    raw = [item for item in read(source) if isinstance(item, RawPrompt)]
    outcomes = Ingest(limits, "s3://runs/one/images")(raw_table(raw)).to_pylist()
    return [
        from_row(Prompt, item["record"]) if item["record"] else from_row(ErrorRow, item["error"]) for item in outcomes
    ]


def test_pictures_are_taken_from_one_bucket_and_kept_in_another(store: ObjectStore) -> None:
    store.objects["data/mine/img/a photo #1.png"] = png()
    store.objects["data/mine/img/same.png"] = png()
    store.objects["data/mine/img/broken.png"] = png()[:-30]
    store.objects["data/mine/img/large.png"] = png((80, 80))
    store.objects["data/mine/img/secret.png"] = png()
    store.forbidden.add("data/mine/img/secret.png")
    names = ("a photo #1", "same", "broken", "large", "secret", "absent")
    limits = ImageConfig(max_bytes=1_000)
    source = a_file(store, *[row(name, f"img/{name}.png") for name in names])
    found = ingested(source, limits)
    assert [item.reason for item in found if isinstance(item, ErrorRow)] == [
        "image_broken", "image_too_many_bytes", "image_unreadable", "image_missing",
    ]  # fmt: skip
    kept = [item for item in found if isinstance(item, Prompt)]
    assert [item.source_id for item in kept] == ["a photo #1", "same"]
    stored = [place for place in store.objects if place.startswith("runs/") and not place.endswith("/")]
    assert [f"s3://{place}" for place in stored] == [kept[0].images[0].uri]
    assert read_images(kept[1].images, limits) == [png()]


@pytest.mark.parametrize("form", ["figstep", "figstep_benign", "xstest", "dream", "vlguard", "siuo"])
def test_published_sets_are_the_same_from_a_bucket(store: ObjectStore, shared_data: Path, form: str) -> None:
    folder = shared_data / {"figstep": "figstep-tiny", "figstep_benign": "figstep-benign"}.get(form, form)
    store.upload(folder, "data/set")
    table = "/train_sample.json" if form == "vlguard" else ""
    local = SourceConfig.model_validate({"format": form, "path": f"{folder}{table}", "name": "x", "partial": True})
    remote = local.model_copy(update={"path": f"s3://data/set{table}"})
    assert content_digest(remote) == content_digest(local)
    here, there = list(read(local)), list(read(remote))
    assert len(here) > 15
    assert repr(here).replace(str(folder), "s3://data/set") == repr(there)
    pictures = [item for item in there if isinstance(item, RawPrompt) and item.turns[0].images][:3]
    outcomes = Ingest(ImageConfig(), "s3://runs/one/images")(raw_table(pictures)).to_pylist()
    missing = [item["error"]["reason"] for item in outcomes if item["error"]]
    assert missing == (["image_missing"] * 3 if form in ("dream", "vlguard", "siuo") else [])


def test_a_bucket_is_checked_by_the_command(store: ObjectStore) -> None:
    store.objects["data/mine/a.png"] = png()
    a_file(store, row("a", "a.png"), row("b", "gone.png"), {"id": "c"})
    done = CliRunner().invoke(app, ["sources", "jsonl", "s3://data/mine"])
    assert "2 prompts" in done.output
    assert "2 files named, 1 of them missing" in done.output
    assert "bad_row 1" in done.output


def test_the_digest_follows_an_object(store: ObjectStore) -> None:
    source = a_file(store, row("a"))
    before = content_digest(source)
    assert content_digest(source) == before
    a_file(store, row("b"))
    assert content_digest(source) != before


def test_a_snapshot_of_the_hub_has_to_lie_on_a_disk(store: ObjectStore) -> None:
    store.objects["data/snapshot/data.csv"] = b"question\nHow are you?\n"
    source = SourceConfig.model_validate(
        {"format": "huggingface", "path": "s3://data/snapshot", "columns": {"text": "question"}}
    )
    for use in (content_digest, lambda source: list(read(source))):
        with pytest.raises(ConfigError, match="format: table"):
            use(source)
