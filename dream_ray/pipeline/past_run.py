"""A run as its directory tells it, whole or half done: which stages it used, its policies, rounds and verdicts.

Contract: `read_run` needs the directory only: no cluster, no model, no source of prompts. It raises ConfigError where
there is no run. Which policy stands is decided again from the stored metrics by the rule that the loop uses, so that it
cannot differ from what the loop decided. Rows are read part by part.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml
from pydantic import ValidationError

from dream_ray import files
from dream_ray.config import Config, ConfigError
from dream_ray.evaluate.metrics import accept_round
from dream_ray.evaluate.paired import Comparison
from dream_ray.evaluate.report import RoundRow
from dream_ray.evaluate.verdicts import VerdictRow
from dream_ray.pipeline.parts import read_part
from dream_ray.pipeline.plans import in_splits
from dream_ray.pipeline.run import Done
from dream_ray.pipeline.store import Manifest, RunStore, read_records
from dream_ray.records import Disentanglement, Metric, Prompt, Split, from_table

COMPARE = "compare-"
"""How the last part of the key of a stage begins that compares two policies on a benchmark; the earlier one's name follows."""


@dataclass(frozen=True)
class PastRun:
    """A run directory's stages in the order of the run, with the config they were asked for.

    `settings` is the config file as it was written. `certain` is False where an earlier version left no history and the
    stages were found by their age.
    """

    store: RunStore
    config: Config
    settings: Mapping[str, Any]
    stages: tuple[Done, ...]
    certain: bool

    def stage(self, key: str) -> Done | None:
        """The stage of this key, None where the run has not got there."""
        return next((done for done in self.stages if done.ref.key == key), None)

    @property
    def aligns(self) -> bool:
        """True for a run of the loop; False where `dream-ray evaluate` measured policies from elsewhere."""
        return not self.stages or self.stage("ingest") is not None

    @cached_property
    def metrics(self) -> dict[str, list[Metric]]:
        """The metrics of each policy, in the order of the run: of the loop's evaluation and of benchmarks."""
        found: dict[str, list[Metric]] = {}
        for done in self.stages:
            policy, _, stage = done.ref.key.partition("/")
            if stage == "evaluate" or stage.endswith("/metrics"):
                found.setdefault(policy, []).extend(read_records(Metric, done.ref.data_uri))
        return found

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """How numbers of benchmarks changed between policies, in the order of the run."""
        found = [done for done in self.stages if done.ref.key.rsplit("/", 1)[-1].startswith(COMPARE)]
        return [row for done in found for row in read_records(Comparison, done.ref.data_uri)]

    @cached_property
    def rounds(self) -> list[RoundRow]:
        """What became of each round whose policy has been evaluated."""
        rows: list[RoundRow] = []
        taken = ["policy-0"]
        for number in range(1, self.config.rounds + 1 if self.aligns else 0):
            candidate = f"policy-{number}"
            if any(name not in self.metrics for name in (*taken, candidate)):
                break
            before, found = [self.metrics[name] for name in taken], self.metrics[candidate]
            decision = accept_round(before, found, self.config.max_failure_rate, self.config.evaluate.max_over_refusal)
            rows.append(RoundRow(number, taken[-1], candidate, decision.taken, decision.reason))
            taken += [candidate] if decision.taken else []
        return rows

    @property
    def standing(self) -> str | None:
        """The policy that stands after the rounds so far, None before policy 0 has been evaluated."""
        if self.rounds:
            last = self.rounds[-1]
            return last.candidate if last.taken else last.standing
        return "policy-0" if self.aligns and "policy-0" in self.metrics else None

    @property
    def finished(self) -> bool:
        """True where every round that the config asks for has been decided."""
        return self.standing is not None and len(self.rounds) == self.config.rounds

    def verdict_rows(self) -> Iterator[VerdictRow]:
        """Every prompt of the evaluated splits with the verdict on each policy's answer."""
        prompts, observed = self.stage("ingest"), self.stage("disentangle")
        if prompts is None or observed is None:
            return
        judged = {policy: self.stage(f"{policy}/judge") for policy in self.metrics}
        for part in self.parts(self.config.evaluate.splits):
            # Columns, not records: of a prompt and its judgement only a few words are needed here.
            found = {row["prompt_id"]: row for row in _rows(observed, part, ("prompt_id", "observations"))}
            verdicts: dict[str, dict[str, str]] = {}
            for policy, done in judged.items():
                for row in _rows(done, part, ("prompt_id", "verdict")) if done else ():
                    verdicts.setdefault(row["prompt_id"], {})[policy] = row["verdict"]
            for row in _rows(prompts, part, ("prompt_id", "split", "risk")):
                observations = found[row["prompt_id"]]["observations"] if row["prompt_id"] in found else ()
                yield VerdictRow(
                    prompt_id=row["prompt_id"],
                    split=row["split"],
                    risk=row["risk"],
                    sources=frozenset(item["source"] for item in observations),
                    verdicts=verdicts.get(row["prompt_id"], {}),
                )

    def parts(self, splits: Iterable[Split], stage: str = "ingest") -> list[str]:
        """The names of the parts of a stage that hold prompts of some splits."""
        prompts = self.stage(stage)
        # Names only: `part_rows` would open every file, of which a large run has tens of thousands.
        paths = files.list_files(prompts.ref.data_uri, ".parquet") if prompts else []
        names = [path.rsplit("/", 1)[1].removesuffix(".parquet") for path in paths]
        wanted = {split.value for split in splits}
        return [name for name in names if in_splits(name, wanted)]

    def prompts_of(self, part: str) -> list[tuple[Prompt, Disentanglement]]:
        """The prompts of one part that were disentangled, each with what was observed."""
        prompts, observed = self.stage("ingest"), self.stage("disentangle")
        if prompts is None or observed is None:
            return []
        tables = [read_part(done.ref.data_uri, part) for done in (prompts, observed)]
        if tables[0] is None or tables[1] is None:
            return []
        found = {row.prompt_id: row for row in from_table(Disentanglement, tables[1])}
        return [(row, found[row.prompt_id]) for row in from_table(Prompt, tables[0]) if row.prompt_id in found]


def _rows(done: Done, part: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    table = read_part(done.ref.data_uri, part)
    return [] if table is None else table.select(columns).to_pylist()


def read_run(uri: str) -> PastRun:
    """The run of a directory. Raises ConfigError where it holds none, or none that this version can read."""
    store = RunStore(uri)
    config_uri = files.join(store.uri, "config.yaml")
    if not files.exists(config_uri):
        raise ConfigError(
            f"{uri} is no run directory: it holds no config.yaml. Name the folder that `dream-ray run` wrote, which is "
            "its --run-dir, or runs/<name> unless that was set."
        )
    settings = yaml.safe_load(files.read_bytes(config_uri))
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        keys = ", ".join(".".join(str(part) for part in item["loc"]) for item in error.errors())
        raise ConfigError(
            f"The settings in {config_uri} cannot be read: {keys} is nothing that this version knows. The run was made "
            "by another version of dream_ray; use that one to report on it."
        ) from None
    refs = store.history()
    if refs is None:
        manifests = newest_chain(store.manifests())
    else:
        manifests = [manifest for ref in refs if (manifest := store.manifest(ref)) is not None]
    stages = tuple(Done(store.ref(manifest.stage, manifest.fingerprint), manifest) for manifest in manifests)
    return PastRun(store, config, settings, stages, certain=refs is not None)


def newest_chain(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Of the stages of a directory without a history, the newest of each key that was made from chosen ones, by age.

    A stage that was made from an earlier setting's result is left out. Raises nothing: an empty list for none.
    """
    chosen: dict[str, Manifest] = {}
    newest_first = sorted(manifests, key=lambda manifest: manifest.finished_at, reverse=True)
    waiting = list(newest_first)
    while waiting:
        digests = {manifest.fingerprint for manifest in chosen.values()}
        ready = [manifest for manifest in waiting if digests.issuperset(manifest.inputs.values())]
        fresh = {manifest.stage: manifest for manifest in reversed(ready) if manifest.stage not in chosen}
        if not fresh:
            break
        chosen |= fresh
        waiting = [manifest for manifest in waiting if manifest.stage not in chosen]
    return sorted(chosen.values(), key=lambda manifest: manifest.finished_at)
