"""What an attempt leaves for others to see: its log, its status, and `dream-ray status` on both."""

import datetime
import functools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest

from dream_ray import files
from dream_ray.config import ConfigError
from dream_ray.pipeline import attempt as attempts
from dream_ray.pipeline.attempt import attempt
from dream_ray.pipeline.lease import TIMES, Lease, LeaseHeld, Times, held, read_lease
from dream_ray.pipeline.parts import StageFailed
from dream_ray.pipeline.status import as_json, read_status, verdict
from dream_ray.progress import Attempt, Progress, State, read_attempt, read_training, training_uri, write_training
from tests.conftest import REPOSITORY
from tests.pipeline.run_dirs import RunDir

ours = logging.getLogger("dream_ray.pipeline.parts")
NOW = "2026-01-01T00:00:00+00:00"


@pytest.fixture(autouse=True)
def info_is_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the command line sets it. Nobody else wants the directories, so there is nothing to wait for."""
    monkeypatch.setattr(attempts, "held", functools.partial(held, times=Times(settle=0.0)))
    logger = logging.getLogger("dream_ray")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)


def lines(folder: Path, number: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "logs" / f"attempt-{number}.jsonl").read_text().splitlines()]


def work(run_dir: RunDir) -> None:
    """What a stage says."""
    uri = files.join(run_dir.store.uri, "stages/sft/0")
    ours.info("%s: started", "sft", extra={"stages": {"sft": uri}})
    write_training(uri, Progress("training", "steps", 30, 60, 0.5))
    passed = Progress("sft", "rows", 5, 20, 2.5, {"timeout": 2, "no_list": 1})
    ours.info("5 of 20", extra={"progress": passed})


def test_where_an_attempt_is_while_it_goes_on_and_how_it_ended(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    with attempt(run_dir.store, run_dir.config):
        work(run_dir)
        logging.getLogger("httpx").warning("PROMPT-MARK of another library")
        found = read_status(str(tmp_path))
        assert found.verdict.startswith("running: process ")
        assert found.heartbeat_age_s is not None
        assert abs(found.heartbeat_age_s) < TIMES.limit
        passed, training = as_json(found)["under_way"]
        assert (passed["done"], passed["expected"], passed["seconds_left"]) == (5, 20, 6.0)
        assert passed["failures"] == {"timeout": 2, "no_list": 1}
        assert (training["done"], training["seconds_left"]) == (30, 60.0)
        ours.info("sft: done", extra={"stages": {}})
        assert read_status(str(tmp_path)).under_way == ()
    ended = read_status(str(tmp_path))
    assert (ended.verdict, ended.holder, ended.heartbeat_age_s) == ("done", None, None)
    log = lines(tmp_path, 1)
    assert [line["message"] for line in log] == ["sft: started", "5 of 20", "sft: done", "done"]
    assert [line["stage"] for line in log] == ["sft", "sft", "", ""]
    assert {(line["run"], line["attempt"], line["level"]) for line in log} == {("small", 1, "INFO")}
    assert log[1]["progress"]["done"] == 5
    assert "PROMPT-MARK" not in (tmp_path / "logs" / "attempt-1.jsonl").read_text()


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (KeyboardInterrupt(), State.STOPPED, "stopped by Ctrl-C or SIGTERM"),
        (StageFailed("judge: 9 of 10 rows failed"), State.FAILED, "judge: 9 of 10 rows failed"),
        (ValueError("PROMPT-MARK"), State.FAILED, "ValueError, see the terminal"),
    ],
)
def test_each_attempt_has_a_log_and_says_how_it_ended(
    tmp_path: Path, error: BaseException, state: State, message: str
) -> None:
    run_dir = RunDir(tmp_path)
    with attempt(run_dir.store, run_dir.config):
        pass

    def broken() -> None:
        with attempt(run_dir.store, run_dir.config):
            work(run_dir)
            raise error

    with pytest.raises(type(error)):
        broken()
    found = read_attempt(str(tmp_path))
    assert found is not None
    assert (found.number, found.state, found.message) == (2, state, message)
    assert list(found.stages) == ["sft"]
    assert lines(tmp_path, 2)[-1]["message"] == f"{state}: {message}"
    assert len(lines(tmp_path, 1)) == 1
    ours.info("after the end")
    assert len(lines(tmp_path, 2)) == 3


def test_a_directory_of_another_run_is_not_touched(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    other = run_dir.config.model_copy(update={"name": "other"})
    with pytest.raises(ConfigError, match="belongs to the run 'small'"), attempt(run_dir.store, other):
        pass
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_storage_that_fails_costs_lines_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = RunDir(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with attempt(run_dir.store, run_dir.config):
        monkeypatch.setattr(attempts._Lines, "add", full)
        monkeypatch.setattr(attempts.files, "write_atomic", full)
        work(run_dir)
        work(run_dir)
        monkeypatch.undo()
        ours.info("room again")
    assert capsys.readouterr().err.count("No space left") == 1
    assert [line["message"] for line in lines(tmp_path, 1)] == ["room again", "done"]


class NoAppend(pafs.FSSpecHandler):
    """An object store in memory: whole files only."""

    def open_append_stream(self, path: str, metadata: object) -> object:
        raise NotImplementedError


def test_a_log_on_a_storage_that_cannot_append_is_whole_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    store = pafs.PyFileSystem(NoAppend(fsspec.filesystem("memory")))
    monkeypatch.setattr(files, "resolve", lambda uri: (store, "/" + uri.removeprefix("memory://")))
    log = attempts._Lines("memory://run/logs/attempt-1.jsonl")
    for number in range(3):
        log.add(f"{number}\n")
    log.close()
    assert files.read_bytes("memory://run/logs/attempt-1.jsonl") == b"0\n1\n2\n"


def test_the_lease_works_on_a_storage_without_append(monkeypatch: pytest.MonkeyPatch) -> None:
    store = pafs.PyFileSystem(NoAppend(fsspec.filesystem("memory")))
    monkeypatch.setattr(files, "resolve", lambda uri: (store, "/" + uri.removeprefix("memory://")))
    short = Times(heartbeat=0.1, limit=2.0, stop=1.5, settle=0.1, look=0.05)
    refused: list[str] = []

    def second() -> None:
        try:
            with held("memory://leased", short):
                pass
        except LeaseHeld as error:
            refused.append(str(error))

    with held("memory://leased", short):
        other = threading.Thread(target=second)
        other.start()
        other.join(10)
    assert len(refused) == 1
    assert read_lease("memory://leased") is None


HOLDER = Lease("one", "trainer-1", 11, "", None, NOW, 3, NOW)
GOING = Attempt("small", 1, State.RUNNING, NOW, NOW)


@pytest.mark.parametrize(
    ("attempt_found", "holder", "age", "words"),
    [
        (GOING, HOLDER, 4.0, "running: process 11 on trainer-1"),
        (GOING, HOLDER, -4.0, "running"),
        (GOING, HOLDER, 400.0, "no sign of life for 400 s"),
        (GOING, None, None, "ended without a word"),
        (Attempt("small", 1, State.STOPPED, NOW, NOW, message="stopped by Ctrl-C or SIGTERM"), None, None, "stopped: "),
        (Attempt("small", 1, State.DONE, NOW, NOW), None, None, "done"),
        (None, None, None, "not started yet"),
    ],
)
def test_how_a_run_stands(attempt_found: Attempt | None, holder: Lease | None, age: float | None, words: str) -> None:
    assert verdict(attempt_found, holder, age).startswith(words)


def test_the_age_of_the_heartbeat_is_by_the_clocks(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    files.write_atomic(files.join(run_dir.store.uri, "lease.json"), json.dumps(asdict(HOLDER)).encode())
    found = read_status(str(tmp_path), datetime.datetime(2026, 1, 1, 0, 1, tzinfo=datetime.UTC))
    assert found.heartbeat_age_s == 60


def test_a_training_whose_storage_fails_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "stage").write_text("a file where a folder should be")
    write_training(str(tmp_path / "stage"), Progress("training", "steps", 1, 2, 1.0))
    assert "the training goes on" in caplog.text
    assert read_training(str(tmp_path / "other")) is None
    assert training_uri("a/b") == "a/b/progress.json"


LIGHT = """
import sys
from typer.testing import CliRunner
from dream_ray.cli import app
done = CliRunner().invoke(app, ["status", *sys.argv[1:]])
print(done.output)
heavy = {"ray", "torch", "transformers", "vllm"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else done.exit_code)
"""


def status(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIGHT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


@pytest.mark.slow
def test_the_command_shows_stages_progress_reasons_and_cost(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.stage("ingest", type(run_dir.prompts[0]), run_dir.prompts)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "one.json").write_text('{"paid_usd": {"disentangle": 1.25, "judge": 0.5}}')
    with attempt(run_dir.store, run_dir.config):
        work(run_dir)
        shown, data = status(str(tmp_path)), status(str(tmp_path), "--json")
    assert (shown.returncode, data.returncode) == (0, 0), shown.stderr + data.stderr
    for words in (
        "running: process", "last heartbeat:", "ingest", "timeout x1", "under way: sft", "5 of 20 rows", "6 s to go",
        "3 failed: timeout x2, no_list x1", "30 of 60 steps", "$1.75",
    ):  # fmt: skip
        assert words in shown.stdout, words
    tree = json.loads(data.stdout)
    assert tree["attempt"]["state"] == "running"
    assert tree["finished"][0]["key"] == "ingest"
    assert tree["paid_usd"] == 1.75
    assert not any(mark in shown.stdout + data.stdout for mark in ("PROMPT-MARK", "OBSERVATION-MARK"))
    none = status(str(tmp_path / "logs"))
    assert none.returncode == 2
    assert "is no run directory" in none.stdout
