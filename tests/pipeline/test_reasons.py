"""What `dream-ray plan` says of a run whose prompts, settings, templates or code have changed: which stages run, and why."""

import dataclasses
from pathlib import Path

import pytest

from dream_ray.config import Config
from dream_ray.pipeline import plans
from dream_ray.pipeline.forecast import forecast
from dream_ray.pipeline.plans import Plan, Planner
from dream_ray.pipeline.run import Run
from dream_ray.pipeline.store import Manifest, RunStore
from tests.pipeline.test_forecast import config_of, write_prompts

FIRST = ("ingest", "disentangle", "demonstrate", "sft")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a run whose stages up to SFT are finished, and the judging of the base model's answers."""
    write_prompts(tmp_path)
    return config_of(tmp_path)


@pytest.fixture
def store(tmp_path: Path, config: Config) -> RunStore:
    store = RunStore(str(tmp_path / "run"))
    finish_all(config, store)
    return store


def finish_all(config: Config, store: RunStore) -> list[Plan]:
    """Write the manifests that a run would, stage by stage, and say which they were."""
    planner = Planner(config, store)
    made = [planner.ingest()]
    made.append(planner.disentangle(made[0].ref))
    made.append(planner.demonstrate(made[0].ref, made[1].ref))
    made.append(planner.sft(made[0].ref, made[2].ref))
    base = plans.answers_job(config, plans.Policy("base", config.student.model, None), None)
    made += planner.sampled(base, made[0].ref, made[1].ref)
    for plan in made:
        if store.manifest(plan.ref) is None:
            store.start(plan.ref)
            store.finish(plan.ref, manifest_of(plan))
    return made


def manifest_of(plan: Plan) -> Manifest:
    settings, inputs = dict(plan.settings), dict(plan.inputs)
    identity = plan.ref.key, plan.ref.fingerprint, plan.version, settings, inputs
    return Manifest(*identity, 4, 4, 0, {}, 0, 0, 0.0, 1.0, "2026-01-01", {}, chat=plan.chat)


def reasons(config: Config, store: RunStore) -> dict[str, str]:
    """Why each stage of the beginning would run, and the state of those that would not."""
    found = forecast(config, store).stages
    return {
        stage.key: stage.why or stage.state for stage in found if stage.key in (*FIRST, "base/answers", "base/judge")
    }


def test_what_has_not_changed_does_not_run_again(config: Config, store: RunStore) -> None:
    assert set(reasons(config, store).values()) == {"done"}


def test_a_setting_runs_its_stage_and_those_after_it(config: Config, store: RunStore, tmp_path: Path) -> None:
    assert reasons(config_of(tmp_path, "teacher.max_words=50"), store) == {
        "ingest": "done",
        "disentangle": "done",
        "demonstrate": "max_words: 100 -> 50",
        "sft": "another result of demonstrate",
        "base/answers": "done",
        "base/judge": "done",
    }
    found = reasons(config_of(tmp_path, "rollout.max_tokens=99"), store)
    assert found["base/answers"] == "max_tokens: 256 -> 99"
    assert found["base/judge"] == "another result of base/answers"
    assert found["sft"] == "done"


@pytest.mark.parametrize(
    ("template", "text", "stage"),
    [
        ("verify", "Harm of {category}? {content} Yes or No.", "disentangle"),
        ("answer_benign", "Answer {text} {reference} in {max_words} words.", "demonstrate"),
        ("hit", "Seen? {text} {observation} {response} Yes or No.", "base/judge"),
        ("situation", "What? {text} {response}", None),
    ],
)
def test_a_template_runs_the_stage_that_asks_it(
    config: Config, store: RunStore, tmp_path: Path, template: str, text: str, stage: str | None
) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / f"{template}.txt").write_text(text)
    found = reasons(config_of(tmp_path, f"templates={folder}"), store)
    changed = {key for key, why in found.items() if why == f"templates.{template} changed"}
    assert changed == ({stage} if stage else set())
    after = {"disentangle": {"demonstrate", "sft", "base/answers", "base/judge"}, "demonstrate": {"sft"}}
    again = {key for key, why in found.items() if why.startswith("another result of")}
    assert again == after.get(stage or "", set())
    assert found["ingest"] == "done"


def test_a_source_file_runs_everything(config: Config, store: RunStore, tmp_path: Path) -> None:
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[1:]) + "\n")
    found = reasons(config, store)
    assert found["ingest"] == "sources.0.content changed"
    assert found["disentangle"] == "another result of ingest"
    assert found["sft"] == "another result of demonstrate, ingest"


def test_the_code_of_a_stage_runs_it(config: Config, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Planner.plan

    def raised(self: Planner, key: str, version: int, *others: object, **named: object) -> Plan:
        return original(self, key, version + (key == "demonstrate"), *others, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Planner, "plan", raised)
    found = reasons(config, store)
    assert found["demonstrate"] == "the stage's code: version 1 -> 2"
    assert found["sft"] == "another result of demonstrate"
    assert found["disentangle"] == "done"


def test_what_a_killed_attempt_left_is_told(config: Config, store: RunStore, tmp_path: Path) -> None:
    other = config_of(tmp_path, "teacher.max_words=50")
    planner = Planner(other, store)
    prompts = planner.ingest().ref
    plan = planner.demonstrate(prompts, planner.disentangle(prompts).ref)
    store.start(plan.ref)
    assert reasons(other, store)["demonstrate"] == "begun"
    (Path(plan.ref.uri) / "parts").mkdir()
    (Path(plan.ref.uri) / "parts" / "train-00-000000.json").touch()
    assert reasons(other, store)["demonstrate"] == "begun: 1 parts are finished"


def test_the_result_that_the_latest_attempt_used_is_compared_with(
    config: Config, store: RunStore, tmp_path: Path
) -> None:
    made = finish_all(config_of(tmp_path, "teacher.max_words=50"), store)
    store.save_history([plan.ref for plan in made])
    assert reasons(config_of(tmp_path, "teacher.max_words=70"), store)["demonstrate"] == "max_words: 50 -> 70"


def test_earlier_results_are_kept(config: Config, store: RunStore, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("manifest.json")}
    finish_all(config_of(tmp_path, "teacher.max_words=50"), store)
    assert all(path.read_bytes() == content for path, content in before.items())
    again = Run(config, store.uri)
    assert all(again.done(plan) for plan in finish_all(config, store))


def test_a_value_that_would_not_be_understood_is_not_shown(config: Config, store: RunStore) -> None:
    from dream_ray.pipeline.reasons import why

    plan = Planner(config, store).ingest()
    earlier = dataclasses.replace(
        manifest_of(plan), settings=dict(plan.settings) | {"part_rows": "x" * 60, "gone": 1, "images": {}}
    )
    assert why(plan, earlier, {}) == [
        "gone is gone", "images.max_bytes is new", "images.max_pixels is new", "part_rows changed"
    ]  # fmt: skip
