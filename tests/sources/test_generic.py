"""Tables of any layout and Hugging Face snapshots: mapped columns, row by row, whatever the file's form."""

import gc
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dream_ray.config import ConfigError, ImageConfig, SourceConfig
from dream_ray.records import Prompt, Risk, Split, from_row
from dream_ray.sources.ingest import Ingest, blocks, raw_table
from dream_ray.sources.raw import BadRow, RawPrompt, Row
from dream_ray.sources.registry import FORMATS, Census, check_terms, content_digest, read
from dream_ray.sources.tables import rows
from dream_ray.taxonomy import Category

ROWS = [
    {"key": "a", "ask": "How are you?", "label": "safe", "kind": "privacy", "picture": ""},
    {"key": "b", "ask": "Who lives here?", "label": "unsafe", "kind": "economic harm", "picture": "b.png"},
]

COLUMNS = {"id": "key", "text": "ask", "risk": "label", "category": "kind", "image": "picture"}


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"mine.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif suffix in ("csv", "tsv"):
        mark = "," if suffix == "csv" else "\t"
        lines = [mark.join(ROWS[0]), *(mark.join(row.values()) for row in ROWS)]
        path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    elif suffix == "json":
        path.write_text("\ufeff\n " + json.dumps(ROWS), encoding="utf-8")
    else:
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    return path


def read_all(**settings: object) -> list[Row]:
    return list(read(SourceConfig.model_validate(settings)))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_a_table_is_read_whatever_its_form(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix)
    for source in (str(path), str(tmp_path), f"file://{path}"):
        found = read_all(format="table", path=source, columns=COLUMNS, risky_values=["Unsafe"], split="dev")
        assert [row.source_id for row in found if isinstance(row, RawPrompt)] == ["a", "b"]
    first, second = (row for row in found if isinstance(row, RawPrompt))
    assert (first.risk, first.category, first.group, first.split) == (
        Risk.BENIGN, Category.PRIVACY, "privacy", Split.DEV,
    )  # fmt: skip
    assert (second.risk, second.category, second.group) == (Risk.RISKY, None, "economic harm")
    assert (len(first.turns[0].images), len(second.turns[0].images)) == (0, 1)


def peak_of_reading(path: Path, rows_of_it: list[dict[str, str]]) -> int:
    """The most bytes that reading a table in parts of 100 rows held at once, Python's and Arrow's."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows_of_it), path, row_group_size=100)
    elif path.suffix == ".csv":
        path.write_text("\n".join(["id,text", *(f"{row['id']},{row['text']}" for row in rows_of_it)]))
    else:
        lines = [json.dumps(row) for row in rows_of_it]
        path.write_text("[" + ",".join(lines) + "]" if path.suffix == ".json" else "\n".join(lines))
    source = SourceConfig(format="table", path=str(path))
    del rows_of_it
    gc.collect()
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    tracemalloc.start()
    count = 0
    for _, _, block in blocks(Census(source).watch(read(source)), 100):
        count += len(block)
        most = max(most, pool.bytes_allocated() - before)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= 1000
    return held + most


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_a_source_of_any_size_is_read_in_the_same_memory(tmp_path: Path, suffix: str) -> None:
    def table(rows: int) -> list[dict[str, str]]:
        return [{"id": str(number), "text": f"What is number {number}? " + "word " * 40} for number in range(rows)]

    small = peak_of_reading(tmp_path / f"small.{suffix}", table(1_000))
    large = peak_of_reading(tmp_path / f"large.{suffix}", table(8_000))
    assert large < 1.5 * small


def test_bad_rows_say_what_they_lack_and_never_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "fine", "risk": "risky"}', '{"text": ""}', '{"text": "secret", "risk": "perhaps"}', "[1]", "{",
             '{"text": "secret", "image": 7}', '{"text": "secret", "split": "lunch"}']  # fmt: skip
    path.write_text("\n".join(lines))
    found = read_all(format="table", path=str(path))
    bad = [row for row in found if isinstance(row, BadRow)]
    assert [row.row_id for row in bad] == [f"a:{n}" for n in (2, 3, 4, 5, 6, 7)]
    assert {row.reason for row in bad} == {"bad_row", "not_json"}
    assert "secret" not in str(bad)


def test_a_named_column_has_to_be_there(tmp_path: Path) -> None:
    (found,) = read_all(format="table", path=str(written(tmp_path, "csv")), columns={"text": "question"})[:1]
    assert isinstance(found, BadRow)
    assert "question" in found.detail
    assert "picture" in found.detail


def test_a_broken_file_yields_what_comes_before(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS)[:-30])
    *whole, last = [row for _, row in rows(str(path))]
    assert whole == ROWS[:1]
    assert isinstance(last, BadRow)
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n1\n1,2,3\n")
    assert [isinstance(row, BadRow) for _, row in rows(str(path))] == [False, True, True]


def a_snapshot(folder: Path) -> Path:
    """A data set's folder as the hub lays it out, with pictures inside and a card that names two configurations."""
    buffer = io.BytesIO()
    Image.new("RGB", (7, 5), "teal").save(buffer, "PNG")
    import datasets

    rows = {"question": ["What is it?"] * 3, "image": [{"bytes": buffer.getvalue(), "path": None}] * 3}
    features = datasets.Features({"question": datasets.Value("string"), "image": datasets.Image()})
    for config in ("one", "two"):
        (folder / config).mkdir(parents=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / config / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {config}\n  data_files:\n  - split: test\n    path: {config}/test-*\n"
            for config in ("one", "two")
        )
        + "---\n"
    )
    return folder


def test_a_hugging_face_snapshot(tmp_path: Path) -> None:
    snapshot = a_snapshot(tmp_path / "snapshot")
    settings = {"format": "huggingface", "path": str(snapshot), "hub_split": "test", "columns": {"text": "question"}}
    found = [row for row in read_all(**settings, hub_config="two") if isinstance(row, RawPrompt)]
    outcomes = Ingest(ImageConfig(), str(tmp_path / "store"))(raw_table(found)).to_pylist()
    records = [from_row(Prompt, row["record"]) for row in outcomes]
    assert [record.images[0].width for record in records] == [7, 7, 7]
    with pytest.raises(ConfigError, match="hub_config"):
        read_all(**settings, hub_config="three")


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = written(tmp_path, "csv")
    source = SourceConfig(format="table", path=str(path))
    before = content_digest(source)
    assert content_digest(source) == before
    path.write_text(path.read_text().replace("How", "Who"))
    assert content_digest(source) != before


@pytest.mark.parametrize("split", ["train", "dev"])
def test_an_evaluation_set_never_trains(split: str) -> None:
    with pytest.raises(ConfigError, match="may only be evaluated on"):
        check_terms(SourceConfig(format="mossbench", path="x", split=split), "sources.0")


def test_licences_are_told_where_one_trains() -> None:
    assert "CC BY-NC" in str(check_terms(SourceConfig(format="siuo", path="x", split=Split.TRAIN), "sources.0"))
    assert "none stated" in str(check_terms(SourceConfig(format="vlguard", path="x"), "sources.0"))
    for form in ("mossbench", "figstep", "siuo", "jsonl"):
        assert check_terms(SourceConfig(format=form, path="x"), "sources.0") is None


def test_the_config_knows_every_format() -> None:
    names = SourceConfig.model_fields["format"].annotation.__args__  # type: ignore[union-attr]
    assert set(names) == set(FORMATS)


def test_a_wrong_count_stops_ingest_before_an_image_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dream_ray.config import Config
    from dream_ray.pipeline.data_stages import ingest
    from dream_ray.pipeline.parts import StageFailed
    from dream_ray.pipeline.run import Run

    monkeypatch.setattr("dream_ray.pipeline.run.wait_for_nodes", lambda *_: None)  # no Ray is started here
    path = tmp_path / "xstest_prompts.csv"
    path.write_text("id,prompt,type,label,focus,note\n1,How do I stop a program?,homonyms,safe,stop,x\n")
    source = {"format": "xstest", "path": str(path)}
    config = Config.model_validate({"name": "a", "student": {"model": "none"}, "sources": [source]})
    with pytest.raises(StageFailed, match="1 rows, but 250 are published"):
        ingest(Run(config, str(tmp_path / "run")))


def test_the_command_lists_and_checks(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from dream_ray.cli import app
    from dream_ray.commands import FAILED, OK, UNUSABLE

    def sources(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["sources", *arguments])
        return result.exit_code, result.output

    code, listed = sources()
    assert code == OK
    assert all(name in listed for name in FORMATS)
    (tmp_path / "xstest_prompts.csv").write_text(
        "id,prompt,type,label,focus,note\n1,How do I stop a program?,homonyms,safe,stop,x\n2,Hm,homonyms,perhaps,,\n"
    )
    code, printed = sources("xstest", str(tmp_path))
    assert code == FAILED
    assert "1 prompts" in printed
    assert "bad_row 1" in printed
    assert "250 are published" in printed
    assert "program" not in printed
    assert sources("xstest", str(tmp_path), "partial=true")[0] == OK
    assert sources("xstest", str(tmp_path), "parcial=true")[0] == UNUSABLE
    assert sources("siuo", str(tmp_path))[0] == UNUSABLE
