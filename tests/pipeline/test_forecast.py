"""What `dream-ray plan` predicts, against what the stages really ask."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Pillow

from dream_ray.chat.fields import observations_field
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.config import Config, ConfigError, ImageConfig, load_config
from dream_ray.feedback import rubric
from dream_ray.feedback.rubric import JudgeItem, judge
from dream_ray.pipeline import preflight
from dream_ray.pipeline.estimate import Assumptions, image_tokens
from dream_ray.pipeline.forecast import Forecast, forecast
from dream_ray.pipeline.plans import Planner
from dream_ray.pipeline.store import Manifest, RunStore
from dream_ray.prompts import load_templates
from dream_ray.records import Disentanglement, Judgement, Prompt, Split
from dream_ray.sources.ingest import Ingest
from dream_ray.sources.raw import RawPrompt
from dream_ray.sources.registry import read as read_source
from dream_ray.teacher import demonstrate as demonstrating
from dream_ray.teacher import disentangle as disentangling
from dream_ray.teacher.demonstrate import demonstrate
from dream_ray.teacher.disentangle import disentangle
from tests.records_for_tests import LOCK
from tests.scripted import ScriptedChat

TEMPLATES = load_templates()
KNOWN = Assumptions(observations_per_risky=1, rejected_per_prompt=0, retry_share=0)
"""What the scripted teacher does."""
TASKS = {"disentangle": disentangling.TASKS, "demonstrate": demonstrating.TASKS}
PRICED = "{backend: openai, model: m, price: {prompt: 2.0, completion: 10.0}}"


def write_prompts(folder: Path) -> Path:
    """17 train, 6 dev and 4 held-out prompts: every third risky, every second with a picture, one with two turns."""
    Pillow.new("RGB", (60, 50), "red").save(folder / "a.png")
    lines = []
    for split, count in ((Split.TRAIN, 17), (Split.DEV, 6), (Split.HELD_OUT, 4)):
        for index in range(count):
            text = f"Please tell me how one can open the lock of the garden shed number {index}, in a few sentences."
            turns = [{"text": text, "images": ["a.png"] * (index % 2)}]
            if index == 5:
                turns = [{"text": "Hello."}, {"role": "assistant", "text": "Hello!"}, *turns]
            risk = "benign" if index % 3 else "risky"
            lines.append({"id": f"{split}-{index}", "turns": turns, "split": split, "risk": risk})
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n{broken\n")
    return path


def config_of(folder: Path, *overrides: str) -> Config:
    model = folder / "student"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    path = folder / "config.yaml"
    path.write_text(
        f"name: test\nrounds: 1\npart_rows: 4\nstudent: {{model: {model}}}\nsources: [{{path: {folder}/prompts.jsonl}}]\n"
    )
    return load_config(path, [f"teacher.chat={PRICED}", f"judge.chat={PRICED}", "rollout.k=3", *overrides])


def count_tokens(text: str) -> int:
    return len(text) // 4


class Asked:
    """Goes through the stages by hand with a chat model that counts, as the loop would."""

    def __init__(self, folder: Path, config: Config, count: Callable[[str], int] = count_tokens):
        self._config, self._count = config, count
        self.images = 0
        ingest = Ingest(ImageConfig(), str(folder / "images"))
        rows = [row for row in read_source(config.sources[0]) if isinstance(row, RawPrompt)]
        self.prompts = [prompt for row in rows if isinstance(prompt := ingest.prompt(row), Prompt)]
        self.risky = {prompt.prompt_id for prompt in self.prompts if prompt.risk == "risky"}
        self.tokens: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.stage = ""

    def script(self, request: ChatRequest, earlier: int) -> ChatReply:
        text = {
            Task.IMAGE_PASS: "[]",
            Task.TEXT_PASS: observations_field([LOCK]) if self.current in self.risky else "[]",
            Task.VERIFY: "Yes",
            Task.HIT: "Yes",
            Task.SCORE: "7",
            Task.HELPFULNESS: "7",
            Task.VERDICT: "Warns",
        }.get(request.task, "An answer.")
        tokens = self._count(TEMPLATES.render(request.task, request.fields))
        self.tokens[self.stage] = self.tokens.get(self.stage, 0) + tokens
        self.calls[self.stage] = self.calls.get(self.stage, 0) + 1
        assert request.task in TASKS.get(self.stage, rubric.TASKS)  # whose templates enter the stage's fingerprint
        self.images += len(request.images)
        return ChatReply(text)

    def run(self, answer: str) -> None:
        chat = ScriptedChat(self.script)
        for prompt in self.prompts:
            self.current = prompt.prompt_id
            images = [b"x"] * len(prompt.images)
            self.stage = "disentangle"
            seen = asyncio.run(disentangle(prompt, images, chat))
            assert isinstance(seen, Disentanglement)
            judged = {"base/judge": 1, "policy-0/judge": 1, "policy-1/judge": 1}
            if prompt.split is Split.TRAIN:
                self.stage = "demonstrate"
                asyncio.run(demonstrate(prompt, seen.observations, images, chat, 100))
                judged = {"round-1/judge": self._config.rollout.k}
            for self.stage, times in judged.items():
                for k in range(times):
                    item = JudgeItem(f"r{k}", prompt.prompt_id, prompt.text, tuple(images), seen.observations, answer)
                    assert isinstance(asyncio.run(judge(item, chat)), Judgement)


def predicted(found: Forecast) -> dict[str, int]:
    return {stage.key: stage.estimate.calls for stage in found.stages if stage.estimate.calls}


def test_predicted_calls_are_those_that_are_made(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    config = config_of(tmp_path)
    asked = Asked(tmp_path, config)
    asked.run("answer")
    found = forecast(config, RunStore(str(tmp_path / "run")), KNOWN)
    assert predicted(found) == asked.calls
    assert {stage.state for stage in found.stages} == {"to do"}
    assert found.to_pay.calls == sum(asked.calls.values())
    assert not (tmp_path / "run").exists()
    half = config_of(tmp_path, "rollout.share=0.4", "rollout.k=1")
    rounds = predicted(forecast(half, RunStore(str(tmp_path / "run")), KNOWN))
    assert 0 < rounds["round-1/judge"] < asked.calls["round-1/judge"] / 3


def test_prompts_that_bring_their_observations_are_not_asked_about(tmp_path: Path) -> None:
    path = write_prompts(tmp_path)
    seen = {"content": "the lock of a shed", "source": "text instruction", "category": "Illegal activities"}
    lines = [json.loads(line) for line in path.read_text().splitlines()[:-1]]

    def calls(*splits: str) -> dict[str, int]:
        """The predicted calls where the prompts of these splits bring two observations each, if risky, and else none."""
        brought = [
            line | ({"observations": [seen] * 2 * (line["risk"] == "risky")} if line["split"] in splits else {})
            for line in lines
        ]
        path.write_text("\n".join(json.dumps(line) for line in brought))
        config = config_of(tmp_path, f"sources=[{{path: {path}, observations: use}}]")
        return predicted(forecast(config, RunStore(str(tmp_path / "run")), KNOWN))

    # Risky are 6 of 17, 2 of 6 and 2 of 4: a verdict, a score and two hits each; the others a verdict and the helpfulness.
    found = calls("train", "dev", "held_out")
    assert "disentangle" not in found
    assert (found["demonstrate"], found["base/judge"]) == (17, 4 * 4 + 6 * 2)
    assert found["round-1/judge"] == 3 * (6 * 4 + 11 * 2)
    # The held-out ones: four texts, two pictures, one observation of each risky one to verify.
    assert calls("train", "dev")["disentangle"] == 4 + 2 + 2


@pytest.mark.slow
def test_predicted_tokens_are_near_a_real_tokenizers(tmp_path: Path, student: Path) -> None:
    """Words only: within a quarter of what the student's tokenizer counts."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(student / "tokenizer.json"))
    lines = [json.loads(line) for line in write_prompts(tmp_path).read_text().splitlines()[:-1]]
    for line in lines:
        line["turns"][-1]["images"] = []
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    answer = "I would rather not, since opening the lock of another person's shed could get you into trouble. " * 3
    length = len(tokenizer.encode(answer).ids)
    config = config_of(tmp_path, f"rollout.max_tokens={length}")
    asked = Asked(tmp_path, config, lambda text: len(tokenizer.encode(text).ids))
    asked.run(answer)
    found = forecast(config, RunStore(str(tmp_path / "run")), KNOWN)
    for stage in found.stages:
        if stage.estimate.calls:
            assert stage.estimate.prompt_tokens == pytest.approx(asked.tokens[stage.key], rel=0.25), stage.key
            cost = (stage.estimate.prompt_tokens * 2 + stage.estimate.completion_tokens * 10) / 1e6
            assert stage.estimate.cost_usd == pytest.approx(cost)


def test_images_count_by_pixels_under_the_cap() -> None:
    assert image_tokens([(750, 1), (1500, 1)], 10**6) == pytest.approx(1.5)
    assert image_tokens([(5000, 5000)], 1_048_576) == pytest.approx(1398.1, abs=0.1)
    assert image_tokens([], 7500) == 10


def test_finished_stages_cost_nothing_and_their_findings_are_used(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    config = config_of(tmp_path)
    store = RunStore(str(tmp_path / "run"))
    plans = Planner(config, store)
    ingest = plans.ingest()
    observed = plans.disentangle(ingest.ref)
    finish(store, ingest.ref.uri, ingest)
    store.start(observed.ref)
    from dream_ray.pipeline.parts import write_part
    from dream_ray.records import to_table

    # Four of the first train part's prompts are left, all risky, with three observations each.
    rows = [Disentanglement(f"p{index}", (LOCK,) * 3, 2, 0, 10, 2) for index in range(4)]
    write_part(observed.ref.data_uri, "train-00-000000", to_table(Disentanglement, rows))
    finish(store, observed.ref.uri, observed, prompt_tokens=40, cost_usd=0.5)
    found = forecast(config, store, KNOWN)
    states = {stage.key: stage.state for stage in found.stages}
    assert (states["ingest"], states["disentangle"], states["demonstrate"]) == ("done", "done", "to do")
    assert predicted(found) == {"demonstrate": 4, "round-1/judge": 3 * 4 * (1 + 1 + 3)}
    done = next(stage for stage in found.stages if stage.key == "disentangle")
    assert (done.estimate.prompt_tokens, done.estimate.cost_usd) == (40, 0.5)
    assert found.to_pay.cost_usd == pytest.approx(sum(s.estimate.cost_usd for s in found.stages) - 0.5)
    assert ("observations of a risky prompt", "3.00", "measured in disentangle") in found.grounds
    changed = forecast(config_of(tmp_path, "teacher.max_words=50"), store, KNOWN)
    assert [stage.state for stage in changed.stages[:3]] == ["done", "done", "to do"]
    other_teacher = forecast(config_of(tmp_path, "teacher.chat.model=n"), store, KNOWN)
    assert [stage.state for stage in other_teacher.stages[:2]] == ["done", "to do"]


def finish(store: RunStore, uri: str, plan, prompt_tokens: int = 0, cost_usd: float = 0.0) -> None:
    """A manifest that says that the stage is done."""
    store.finish(
        plan.ref,
        Manifest(
            plan.ref.key, plan.ref.fingerprint, 1, {}, {}, 4, 4, 0, {}, prompt_tokens, 0, cost_usd, 1.0, "now", {},
            chat=plan.chat,
        ),
    )  # fmt: skip


def test_rounds_after_an_undecided_one_depend_on_it(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    found = forecast(config_of(tmp_path, "rounds=2"), RunStore(str(tmp_path / "run")), KNOWN)
    states = {stage.key: stage.state for stage in found.stages}
    assert states["policy-1/judge"] == "to do"
    assert states["round-2/judge"] == states["policy-2/evaluate"] == "depends on round 1"


def test_a_budget_without_prices_is_refused(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    free = "{backend: openai, model: m}"
    config = config_of(tmp_path, f"teacher.chat={free}", "budget.max_cost_usd=1")
    preflight._check_budget(config)  # the judge has a price
    unpriced = load_config(
        tmp_path / "config.yaml", [f"teacher.chat={free}", f"judge.chat={free}", "budget.max_cost_usd=1"]
    )
    with pytest.raises(ConfigError, match="would never be reached"):
        preflight._check_budget(unpriced)
