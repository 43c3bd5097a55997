"""`dream-ray serve`: as a process with the rules judge, and with a served model as judge."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image as Pillow

from dream_ray.config import ConfigError, JudgeConfig, ServedModelConfig, load_config
from dream_ray.feedback.scorer import TARGET_ONGOING_REQUESTS, scaling
from dream_ray.feedback.wire import EXAMPLE_ITEM
from dream_ray.pipeline import preflight
from dream_ray.pipeline.service import Service, check, describe, engine_arguments
from tests.conftest import REPOSITORY
from tests.leftovers import segments_of

CONFIG = """
name: served
student: {model: none}
sources: [{path: none.jsonl}]
"""
STARTS_WITHIN_S = 300
ENDS_WITHIN_S = 120
UNREADABLE = {"no_verdict", "no_score", "no_yes_or_no", "truncated"}
"""What a judge's reply may lack; whatever else goes wrong is not the small judge's fault."""


def picture() -> str:
    """A small picture as a data URI."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (64, 48), "green").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_what_cannot_work_is_found_before_ray_starts(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    check(load_config(config))
    with pytest.raises(ConfigError, match="SCORER_TOKEN"):
        check(load_config(config, ["judge.token_env=SCORER_TOKEN"]))
    model = "judge={chat: {backend: openai, model: m}, serve_model: {path: nowhere}}"
    with pytest.raises(ConfigError, match=r"serve_model\.path = 'nowhere'"):
        check(load_config(config, [model]))


def test_a_run_needs_a_scorer_that_opens_its_images(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "check_model_folder", lambda uri: None)
    monkeypatch.setattr(preflight, "check_student", lambda student, lora, rollout: None)
    monkeypatch.setenv("SCORER_TOKEN", "t")
    closed = ["judge.host=0.0.0.0", "judge.token_env=SCORER_TOKEN"]
    with pytest.raises(ConfigError, match="image_uris=true"):
        preflight.check(load_config(config, closed))
    with pytest.raises(ConfigError, match=re.escape("sources.0.path")):
        preflight.check(load_config(config, [*closed, "judge.image_uris=true"]))


def test_replicas_are_fixed_or_follow_the_load() -> None:
    assert scaling(JudgeConfig(replicas=3)) == {"num_replicas": 3}
    options = scaling(JudgeConfig(replicas=3, autoscale=(0, 5)))["autoscaling_config"]
    assert options == {
        "min_replicas": 0,
        "initial_replicas": 1,
        "max_replicas": 5,
        "target_ongoing_requests": TARGET_ONGOING_REQUESTS,
    }
    assert scaling(JudgeConfig(autoscale=(2, 5)))["autoscaling_config"]["initial_replicas"] == 2


def test_the_message_names_the_token_and_never_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_TOKEN", "the-value")
    said = describe(Service("http://h:1", "rules", None, ("http://h:2/metrics",)), "SCORER_TOKEN")
    assert '"Authorization: Bearer $SCORER_TOKEN"' in said
    assert "the-value" not in said


def test_a_served_model_gets_its_gpus_or_the_cpu_settings() -> None:
    assert engine_arguments(ServedModelConfig(path="m", gpus=4))["tensor_parallel_size"] == 4
    assert engine_arguments(ServedModelConfig(path="m", gpus=0))["enforce_eager"] is True


@contextmanager
def serving(config: Path, *overrides: str) -> Iterator[str]:
    """`dream-ray serve` as a process: what it said. It has to end with 0, to leave no process and no shared memory behind."""
    log = config.with_suffix(".log")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "dream_ray.cli", "serve", str(config), *overrides]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=config.parent,
            env=environment | {"PYTHONPATH": str(REPOSITORY)},
        )
    children: list[psutil.Process] = []
    segments: set[Path] = set()
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while "Ctrl-C ends it." not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        children = psutil.Process(process.pid).children(recursive=True)
        segments = {path for child in children for path in segments_of(child)}
        assert segments or not any("serve_model" in override for override in overrides), "an engine has some"
        yield log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(ENDS_WITHIN_S)
    assert code == 0, log.read_text()[-3000:]
    _, left = psutil.wait_procs(children, timeout=30)
    assert [child.name() for child in left] == []
    assert [path.name for path in segments if path.exists()] == []


@pytest.mark.slow
def test_serve_autoscaled_answers_and_ends(config: Path) -> None:
    with serving(config, "judge.autoscale=[0, 2]") as said:
        url = re.search(r"scorer:  (http://127\.0\.0\.1:\d+)/v1/score, judge: rules", said).group(1)
        answer = httpx.post(f"{url}/v1/score", json=EXAMPLE_ITEM, timeout=120, trust_env=False)
        assert answer.json()["judgement"]["reward"] > 0
        assert f"{url}/docs" in said
        # The printed command is what a user tries first.
        command = next(line for line in said.splitlines() if line.strip().startswith("curl"))
        tried = subprocess.run(
            ["bash", "-c", f"{command} -s --noproxy '*'"], capture_output=True, timeout=120, check=True
        )
        assert b'"judgement":{' in tried.stdout
        metrics = re.search(r"metrics: (\S+)", said).group(1)
        assert httpx.get(metrics, timeout=60, trust_env=False).status_code == 200


@pytest.mark.slow
@pytest.mark.longest
def test_serve_starts_the_judge_model_and_the_scorer_asks_it(config: Path, student: Path) -> None:
    """The judge is the demo's student, which cannot judge: what it says is read, or is a reason, item by item."""
    chat = "{backend: openai, model: small-judge, api_key_env: '', max_tokens: 32}"
    judge = f"judge={{chat: {chat}, serve_model: {{path: {student}, gpus: 0, max_model_len: 4096}}}}"
    with serving(config, judge) as said:
        url = re.search(r"scorer:  (http://\S+)/v1/score, judge: small-judge", said).group(1)
        base_url = re.search(r"model:   base_url (\S+)", said).group(1)
        models = httpx.get(f"{base_url}/models", timeout=60, trust_env=False).json()["data"]
        assert [model["id"] for model in models] == ["small-judge"]
        items = [
            EXAMPLE_ITEM,
            {**EXAMPLE_ITEM, "observations": [], "images": [picture()]},
            {**EXAMPLE_ITEM, "images": ["x"]},
        ]
        answer = httpx.post(f"{url}/v1/score", json={"items": items}, timeout=300, trust_env=False)
        assert answer.status_code == 200
        *asked, refused = answer.json()["results"]
        assert refused["reason"] == "image_missing"
        for result in asked:
            print(result)
            if result["judgement"] is None:
                assert result["reason"] in UNREADABLE
            else:
                assert result["judgement"]["prompt_tokens"] > 0
