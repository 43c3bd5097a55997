"""What is left out of whole sets of pairs and demonstrations, on their files and without Ray."""

from pathlib import Path

from dream_ray.config import PairConfig
from dream_ray.pipeline.data_stages import _balance_demonstrations
from dream_ray.pipeline.learning_stages import _balance_pairs
from dream_ray.pipeline.parts import read_parts, write_part
from dream_ray.records import Demonstration, PreferencePair, Risk, Shift, from_table, to_table


def pair(name: str, shift: Shift, gap: float, chosen: int = 5) -> PreferencePair:
    return PreferencePair(name, f"p-{name}", "w " * chosen, "w " * 5, gap, 0.0, Risk.RISKY, shift)


def rows_of(folder: Path, kind: type) -> dict[str, list[object]]:
    return {part: from_table(kind, table) for part, (table,) in read_parts(str(folder))}


def test_pairs_are_left_out_where_they_lie_and_other_parts_stay_untouched(tmp_path: Path) -> None:
    parts = {
        "train-00-000000": [pair("a", Shift.MORE, 1.0), pair("b", Shift.MORE, 0.3)],
        "train-00-000001": [pair("c", Shift.LESS, 0.5)],
        "train-00-000002": [pair("d", Shift.MORE, 0.4)],
        "train-00-000003": [pair("e", Shift.LESS, 0.6), pair("f", Shift.MORE, 0.9, chosen=80)],
    }
    for part, rows in parts.items():
        write_part(str(tmp_path), part, to_table(PreferencePair, rows))
    untouched = (tmp_path / "train-00-000001.parquet").stat()
    assert _balance_pairs._function(str(tmp_path), PairConfig()) == (2, 1)
    found = rows_of(tmp_path, PreferencePair)
    assert found == {
        "train-00-000000": [parts["train-00-000000"][0]],
        "train-00-000001": parts["train-00-000001"],
        "train-00-000002": [],
        "train-00-000003": [parts["train-00-000003"][0]],
    }
    after = (tmp_path / "train-00-000001.parquet").stat()
    assert (after.st_ino, after.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)


def test_risky_demonstrations_beyond_the_ratio_are_left_out_by_their_ids(tmp_path: Path) -> None:
    def shown(name: str, risk: Risk) -> Demonstration:
        return Demonstration(prompt_id=name, risk=risk, answer="an answer", prompt_tokens=1, completion_tokens=1)

    parts = {
        "train-00-000000": [shown("a", Risk.RISKY), shown("z", Risk.RISKY)],
        "train-00-000001": [shown("b", Risk.BENIGN), shown("m", Risk.RISKY)],
    }
    for part, rows in parts.items():
        write_part(str(tmp_path), part, to_table(Demonstration, rows))
    assert _balance_demonstrations._function(str(tmp_path), 0.0) == 0
    assert rows_of(tmp_path, Demonstration) == parts
    assert _balance_demonstrations._function(str(tmp_path), 1.0) == 2
    assert rows_of(tmp_path, Demonstration) == {
        "train-00-000000": [parts["train-00-000000"][0]],
        "train-00-000001": [parts["train-00-000001"][0]],
    }
