"""`dream-ray serve`, as a process with the rules judge; test_served_judge.py has it with a model."""

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from dream_ray.config import ConfigError, JudgeConfig, ServedModelConfig, load_config
from dream_ray.feedback.scorer import TARGET_ONGOING_REQUESTS, scaling
from dream_ray.feedback.wire import EXAMPLE_ITEM
from dream_ray.pipeline import preflight
from dream_ray.pipeline.service import Service, check, describe, engine_arguments
from tests.serving import CONFIG, serving


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
