"""A disk that is full while a stage writes: the stage says so, and goes on where it was once there is room."""

import errno
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import ray

from dream_ray import commands, files
from dream_ray.config import Config, ConfigError
from dream_ray.engine.engine import EngineError
from dream_ray.outcomes import outcome_table
from dream_ray.pipeline import lease as leases
from dream_ray.pipeline import parts
from dream_ray.pipeline.cluster import _quiet_data
from dream_ray.pipeline.data_stages import labelled
from dream_ray.pipeline.learning_stages import _trained
from dream_ray.pipeline.marks import take_over
from dream_ray.pipeline.parts import StageFailed, Target, _Writer
from dream_ray.pipeline.run import Outcome, Run
from dream_ray.records import Disentanglement
from dream_ray.train.ray_adapter import TrainResult
from tests.doctor.published import a_student
from tests.pipeline.resumed_driver import CONFIG, PARTS, carry_out, fails, ids
from tests.pipeline.test_forecast import config_of, write_prompts
from tests.pipeline.test_resume import rows


def run_on(folder: Path) -> Run:
    return Run(Config.model_validate(CONFIG), str(folder / "run"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "slow: The storage has no room left"),
        (PermissionError(errno.EACCES, "Permission denied"), "slow: The storage failed"),
        (EngineError("not the rows"), "slow: not the rows"),
    ],
)
def test_a_stage_says_which_it_is_and_what_to_do(tmp_path: Path, error: Exception, words: str) -> None:
    run = run_on(tmp_path)
    plan = run.plans.plan("slow", 1, {}, {})

    def work() -> Mapping[str, Outcome]:
        raise error

    with pytest.raises(StageFailed, match=words):
        run.carry_out([plan], work, needs=())
    assert run.done(plan) is None


@pytest.mark.parametrize("error", [ConfigError("no key"), TimeoutError(), ConnectionResetError(), ValueError()])
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    run = run_on(tmp_path)

    def work() -> Mapping[str, Outcome]:
        raise error

    with pytest.raises(type(error)):
        run.carry_out([run.plans.plan("slow", 1, {}, {})], work, needs=())


def test_a_run_directory_without_room_is_told_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prompts(tmp_path)
    config_of(tmp_path)
    a_student(tmp_path / "student")

    def full(uri: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", uri)

    monkeypatch.setattr(leases.files, "write_atomic", full)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        code = commands.run_job(str(tmp_path / "config.yaml"), [], str(tmp_path / "run"), nobody)
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    assert code == commands.FAILED
    said = capsys.readouterr().err
    assert "The storage has no room left" in said
    assert "lease.json" in said
    assert not ray.is_initialized()


def nobody(*arguments: object) -> Callable[[], None]:
    raise AssertionError("a run without room was carried out")


def test_a_training_that_found_no_room_for_its_checkpoint_says_so() -> None:
    from ray.train import WorkerGroupError

    def train() -> TrainResult:
        raise WorkerGroupError("traceback", {1: OSError(errno.ENOSPC, "No space left on device")})

    with pytest.raises(OSError, match="No space left"):
        _trained("sft", train)

    def diverge() -> TrainResult:
        raise WorkerGroupError("traceback", {0: RuntimeError("nan")})

    with pytest.raises(WorkerGroupError):
        _trained("sft", diverge)


@pytest.mark.parametrize("which", [1, 2], ids=["the rows", "the mark"])
def test_a_part_whose_files_are_not_all_written_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    run = run_on(tmp_path)
    target = Target(run.plans.plan("slow", 1, {}, {}).ref, Disentanglement, "job", "record", "slow")
    rows = labelled(outcome_table(Disentanglement, [Disentanglement("a", (), 0, 0, 1, 1, 0)]), "job", "000000")
    written = []
    write = files.write_atomic

    def full(uri: str, content: bytes) -> None:
        written.append(uri)
        if len(written) == which:
            raise OSError(errno.ENOSPC, "No space left on device", uri)
        write(uri, content)

    monkeypatch.setattr(parts.files, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        _Writer([target])(rows)
    assert take_over([target.ref], ["000000"]) == {}
    _Writer([target])(rows)
    assert take_over([target.ref], ["000000"])["000000"][0]["rows_out"] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a few parts."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"may not mount a file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_the_stage_which_goes_on_once_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.txt"
    (tmp_path / "go-on").touch()
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        _quiet_data()
        with pytest.raises(StageFailed, match=r"The storage has no room left.*run the same command again"):
            carry_out(small_disk / "run", asked)
        finished = {path.stem for path in small_disk.glob("run/stages/copy/*/parts/*.json")}
        assert 0 < len(finished) < PARTS, "the disk was to be full half way"
        assert not list(small_disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        before = Counter(asked.read_text().split())
        carry_out(small_disk / "run", asked)
    finally:
        ray.shutdown()
    every = [name for part in range(PARTS) for name in ids(part)]
    for key in ("slow", "copy"):
        found = [row["prompt_id"] for row in rows(small_disk, key, "data")]
        assert sorted(found) == sorted(name for name in every if not fails(name)), key
    assert sorted(row["row_id"] for row in rows(small_disk, "slow", "errors")) == sorted(filter(fails, every))
    again = Counter(asked.read_text().split()) - before
    assert not {f"{int(name.split('-')[0]):06d}" for name in again} & finished
