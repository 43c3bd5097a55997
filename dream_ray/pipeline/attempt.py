"""One attempt at a run: it holds the lease of the run directory, and others can see where it is and read what it did.

    <run_dir>/logs/attempt-3.jsonl    {"time": …, "level": "INFO", "run": "local", "attempt": 3, "stage": "sft", "message": …}
    <run_dir>/status.json             where the latest attempt is, or how it ended

Contract: `attempt` is a context around everything that a driver does in a run directory. The log takes what dream_ray's own
loggers say in the driver (other libraries may log prompts) and is on storage line by line on a disk, every SAVE_SECONDS
on an object store, which cannot append. status.json is written at each stage's start and each progress line, so every few
seconds at most. Neither holds a prompt, an answer or a secret: messages of unforeseen errors, which might, are
left out. A storage that fails costs log lines, not the run.
"""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dream_ray import files
from dream_ray.config import Config, ConfigError
from dream_ray.pipeline.lease import Holder, held
from dream_ray.pipeline.store import RunStore
from dream_ray.progress import Attempt, Progress, State, attempt_uri, now_text

log = logging.getLogger(__name__)

SAVE_SECONDS = 5.0
"""Least time between two rewritings of a log on an object store."""
OURS = "dream_ray"
"""The logger whose records are kept."""


@contextmanager
def attempt(store: RunStore, config: Config) -> Iterator[None]:
    """Hold the run directory, claim it for this config and record what happens. Raises LeaseHeld, LeaseLost, ConfigError."""
    with held(store.uri) as holder:
        store.claim(config)
        recorder = Recorder(store.uri, config.name, holder)
        logging.getLogger(OURS).addHandler(recorder)
        try:
            yield
        except BaseException as error:
            recorder.end(*_ending(error))
            raise
        else:
            recorder.end(State.DONE, "")
        finally:
            logging.getLogger(OURS).removeHandler(recorder)
            recorder.close()


def _ending(error: BaseException) -> tuple[State, str]:
    """How an attempt ended, in words that are safe to keep."""
    from dream_ray.pipeline.parts import StageFailed  # imports Ray, which is there by now

    if isinstance(error, KeyboardInterrupt):
        return State.STOPPED, "stopped by Ctrl-C or SIGTERM"
    if isinstance(error, (StageFailed, ConfigError)):
        return State.FAILED, str(error)
    return State.FAILED, f"{type(error).__name__}, see the terminal"


class Recorder(logging.Handler):
    """Writes the log and the status of an attempt. Records may bring `stages` (their folders by key) or `progress`."""

    def __init__(self, run_uri: str, run: str, holder: Holder):
        super().__init__(logging.INFO)
        folder = files.join(run_uri, "logs")
        numbers = [_number(path) for path in files.list_files(folder, ".jsonl")]
        self._run_uri, self._holder = run_uri, holder
        self._attempt = Attempt(run, 1 + max(numbers, default=0), State.RUNNING, now_text(), now_text())
        self._lines = _Lines(files.join(folder, f"attempt-{self._attempt.number}.jsonl"))
        self._warned = False
        self._save()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, and where the attempt is if it says so."""
        stages, progress = getattr(record, "stages", None), getattr(record, "progress", None)
        if stages is not None:
            self._attempt = dataclasses.replace(self._attempt, stages=stages, progress=None)
        if progress is not None:
            self._attempt = dataclasses.replace(self._attempt, progress=progress)
        self._write_line(record.levelname, record.getMessage(), progress)
        if stages is not None or progress is not None:
            self._save()

    def end(self, state: State, message: str) -> None:
        """Say how the attempt ended."""
        self._attempt = dataclasses.replace(self._attempt, state=state, message=message)
        self._write_line("INFO" if state is State.DONE else "ERROR", f"{state}: {message}" if message else state, None)
        self._save()

    def close(self) -> None:
        """Write what is not on storage yet."""
        self._guard(self._lines.close)
        super().close()

    def _write_line(self, level: str, message: str, progress: Progress | None) -> None:
        line: dict[str, Any] = {
            "time": now_text(),
            "level": level,
            "run": self._attempt.run,
            "attempt": self._attempt.number,
            "stage": ", ".join(self._attempt.stages),
            "message": message,
        }
        if progress is not None:
            line["progress"] = dataclasses.asdict(progress)
        self._guard(self._lines.add, json.dumps(line) + "\n")

    def _save(self) -> None:
        if self._holder.lost is not None:  # by now it is another driver's status
            return
        self._attempt = dataclasses.replace(self._attempt, updated_at=now_text())
        content = json.dumps(dataclasses.asdict(self._attempt), indent=2).encode()
        self._guard(files.write_atomic, attempt_uri(self._run_uri), content)

    def _guard(self, write: Any, *arguments: Any) -> None:
        """A failing storage is told once, on stderr; here is the logging itself."""
        try:
            write(*arguments)
        except OSError as error:
            if not self._warned:
                print(f"The attempt's log or status cannot be written: {error}. Going on without.", file=sys.stderr)
            self._warned = True


class _Lines:
    """A file that grows by lines: appended to where the filesystem can, else written anew every SAVE_SECONDS."""

    def __init__(self, uri: str):
        self._uri = uri
        self._kept: list[str] = []
        self._saved = time.monotonic()

    def add(self, line: str) -> None:
        filesystem, path = files.resolve(self._uri)
        try:
            if not self._kept:
                filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
                with filesystem.open_append_stream(path) as stream:
                    stream.write(line.encode())
                return
        except NotImplementedError:  # an object store
            pass
        self._kept.append(line)
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.close()

    def close(self) -> None:
        if self._kept:
            files.write_atomic(self._uri, "".join(self._kept).encode())
            self._saved = time.monotonic()


def _number(path: str) -> int:
    """The number of an attempt's log, 0 for another file."""
    digits = path.rsplit("/", 1)[1].removeprefix("attempt-").removesuffix(".jsonl")
    return int(digits) if digits.isdigit() else 0
