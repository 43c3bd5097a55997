"""The run directory: where every stage's output lies, and how one sees that it is done.

    <run_dir>/config.yaml                           the resolved config, with the run's name
    <run_dir>/images/ab/abcd…                       each image once, by its sha256
    <run_dir>/stages/<key>/<fingerprint>/data/*.parquet    the stage's records
                                        /errors/*.parquet  what it could not do (ErrorRow)
                                        /parts/*.json      which parts are finished (marks.py)
                                        /manifest.json     written last: its presence means done
    <run_dir>/history.json                          which of these the latest attempt used, in order
    <run_dir>/lease.json, status.json, logs/        who works here, where it is, what it said
    <run_dir>/in_flight/                            what is in an engine now (guard.py)
    <run_dir>/report.html, metrics.json, metrics.csv, comparisons.csv, model_card.md

Contract: a stage's folder is named by its fingerprint, so a changed setting never overwrites an earlier result and an
unchanged one is found again. A folder without a manifest, or with a torn one, is the remains of a killed attempt, from which
the next one takes over what is whole: finished parts (marks.py) and training checkpoints. Works on any pyarrow filesystem;
knows nothing of Ray or of what the stages do.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml

from dream_ray import files
from dream_ray.config import Config, ConfigError
from dream_ray.records import Record, from_table

FINGERPRINT_DIGITS = 12
"""Hex digits of a fingerprint in a folder's name; the manifest holds all 64."""


@dataclass(frozen=True)
class StageRef:
    """One stage of one run with one setting: `key` is its place in the loop, `uri` its folder."""

    key: str
    fingerprint: str
    uri: str

    @property
    def data_uri(self) -> str:
        """The folder of the stage's records."""
        return files.join(self.uri, "data")

    @property
    def errors_uri(self) -> str:
        """The folder of the rows that the stage could not do."""
        return files.join(self.uri, "errors")


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says of itself.

    `rows_in` = `rows_out` + `failed` for stages that map row to row. `failures` counts reasons. `seconds` is wall time,
    `peak_memory_bytes` what all processes held at most in it (None on a cluster that the driver joined);
    `gpu_held_s` are seconds times GPUs that engines and training held in it, `gpu_idle_s` those of them without work.
    `passed_with` names stages that ran in the same pass and share its seconds, GPU seconds and payments. `chat` names the
    teacher or judge. Tokens and `cost_usd`, their price, are those of the rows, whether the replies were paid for or came
    from the response cache; `paid_usd` is what the attempt that finished the stage really paid during the pass.
    """

    stage: str
    fingerprint: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, str]
    rows_in: int
    rows_out: int
    failed: int
    failures: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    seconds: float
    finished_at: str
    libraries: dict[str, str]
    chat: str = ""
    peak_memory_bytes: int | None = None
    cached_tokens: int = 0
    paid_usd: float = 0.0
    gpu_held_s: float = 0.0
    gpu_idle_s: float = 0.0
    passed_with: tuple[str, ...] = ()
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def fingerprint(stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """sha256 over a stage's name, code version, settings and the fingerprints of its inputs."""
    content = {"stage": stage, "version": version, "settings": settings, "inputs": inputs}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class RunStore:
    """The run directory of one config."""

    def __init__(self, uri: str):
        self.uri = files.resolve(uri)[1] if files.is_local(uri) else uri

    @property
    def images_uri(self) -> str:
        """The folder of the image store."""
        return files.join(self.uri, "images")

    @property
    def in_flight_uri(self) -> str:
        """The folder of what is in an engine now."""
        return files.join(self.uri, "in_flight")

    @property
    def report_uri(self) -> str:
        """The report of the run."""
        return files.join(self.uri, "report.html")

    def claim(self, config: Config) -> None:
        """Save the config in the directory. Raises ConfigError where the directory belongs to a run of another name."""
        path = files.join(self.uri, "config.yaml")
        if files.exists(path):
            earlier = yaml.safe_load(files.read_bytes(path)).get("name")
            if earlier != config.name:
                raise ConfigError(
                    f"The run directory {self.uri} belongs to the run {earlier!r}, but this config is named "
                    f"{config.name!r}. Mixing two runs in one directory would mix their results. Pass another --run-dir, "
                    f"or give the config the name {earlier!r} if it is the same run with changed settings."
                )
        files.write_atomic(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())

    def ref(self, key: str, digest: str) -> StageRef:
        """Where the stage with this fingerprint lies, done or not."""
        return StageRef(key, digest, files.join(self.uri, "stages", key, digest[:FINGERPRINT_DIGITS]))

    def manifest(self, ref: StageRef) -> Manifest | None:
        """The manifest of a finished stage, None where it is not done."""
        filesystem, path = files.resolve(files.join(ref.uri, "manifest.json"))
        if filesystem.get_file_info(path).type != pafs.FileType.File:
            return None
        try:
            return self._read(path, filesystem)
        except ValueError:  # half a file: a storage that does not move atomically, or that lost its last writes
            return None

    @staticmethod
    def _read(path: str, filesystem: pafs.FileSystem) -> Manifest:
        with filesystem.open_input_stream(path) as stream:
            content = json.loads(stream.read())
        content["passed_with"] = tuple(content["passed_with"])
        return Manifest(**content)

    def save_history(self, refs: Sequence[StageRef]) -> None:
        """Say which stages the attempt that goes on now has used so far: a directory may hold others, of other settings."""
        content = [{"key": ref.key, "fingerprint": ref.fingerprint} for ref in refs]
        files.write_atomic(files.join(self.uri, "history.json"), json.dumps(content, indent=2).encode())

    def history(self) -> list[StageRef] | None:
        """The stages that the latest attempt used, in order; None where no attempt has got through a stage."""
        path = files.join(self.uri, "history.json")
        if not files.exists(path):
            return None
        return [self.ref(entry["key"], entry["fingerprint"]) for entry in json.loads(files.read_bytes(path))]

    def manifests(self) -> list[Manifest]:
        """The manifests of all finished stages of all settings, in no order."""
        filesystem, path = files.resolve(files.join(self.uri, "stages"))
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
        found = []
        for info in infos:
            if info.base_name == "manifest.json":
                with contextlib.suppress(ValueError):  # torn: not done
                    found.append(self._read(info.path, filesystem))
        return found

    def start(self, ref: StageRef) -> None:
        """Make the stage's folder; what a killed attempt left in it stays, for its pass or its training to take over."""
        files.delete_file(files.join(ref.uri, "manifest.json"))
        for folder in (ref.data_uri, ref.errors_uri):
            filesystem, path = files.resolve(folder)
            filesystem.create_dir(path, recursive=True)
            for unfinished in files.list_files(folder, ".tmp"):
                filesystem.delete_file(unfinished)

    def finish(self, ref: StageRef, manifest: Manifest) -> None:
        """Write the manifest, after which the stage is done."""
        content = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True)
        files.write_atomic(files.join(ref.uri, "manifest.json"), content.encode())


def parquet_files(folder_uri: str) -> list[str]:
    """The parquet files of a folder, as uris that `files` and the stages read."""
    paths = files.list_files(folder_uri, ".parquet")
    return [files.join(folder_uri, path.rsplit("/", 1)[1]) for path in paths]


def read_records(record_type: type[Record], folder_uri: str) -> list[Record]:
    """All records of a folder, in the order of its files. For tables that fit in memory: metrics, samples for a report."""
    records: list[Record] = []
    for uri in parquet_files(folder_uri):
        filesystem, path = files.resolve(uri)
        records += from_table(record_type, pq.read_table(path, filesystem=filesystem))
    return records
