"""Settings: every wrong one is a paragraph that names key, value and remedy; every default has one place."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dream_ray import cpu
from dream_ray.config import Config, ConfigError, load_config

MINIMAL = "name: a\nstudent: {model: folder}\nsources: [{path: prompts.jsonl}]\n"


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_and_overrides(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL), ["rollout.k=4", "dpo.reference=previous", "rounds=1"])
    assert (config.rollout.k, config.dpo.reference, config.rounds) == (4, "previous", 1)
    assert config.dpo.beta == 0.1
    with pytest.raises(ValidationError):
        config.rounds = 2  # type: ignore[misc]


def test_base_file_lies_underneath(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "rollout: {k: 2, temperature: 0.5}\n", "base.yaml")
    config = load_config(write(tmp_path, "base: base.yaml\nname: b\nrollout: {k: 3}\n"))
    assert (config.name, config.rollout.k, config.rollout.temperature) == ("b", 3, 0.5)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (MINIMAL + "colour: red\n", [], ["colour", "'red'", "keys there", "rounds"]),
        (MINIMAL, ["rollout.kk=3"], ["rollout.kk", "3", "temperature"]),
        (
            MINIMAL,
            ["teacher.chat={backend: openai, model: m, modell: n}"],
            ["teacher.chat.modell = 'n'", "api_key_env"],
        ),
        (MINIMAL, ["judge.chat={backend: openai}"], ["judge.chat.model is required"]),
        (MINIMAL, ["judge.chat={backend: magic}"], ["judge.chat", "magic", "vllm"]),
        (MINIMAL, ["sources=[{path: a, size: 3}]"], ["sources.0.size", "format"]),
        (MINIMAL, ["judge.host=0.0.0.0"], ["0.0.0.0", "judge.token_env"]),
        (MINIMAL, ["judge.autoscale=[3, 1]"], ["autoscale = [3, 1]"]),
        (MINIMAL, ["judge.serve_model={path: m}"], ["judge.serve_model", "backend: openai"]),
        (
            MINIMAL,
            [
                "judge={host: 0.0.0.0, token_env: T, serve_model: {path: m}, chat: {backend: openai, model: m}}",
            ],
            ["judge.serve_model", "without a token"],
        ),
        (
            MINIMAL,
            ["judge={timeout_s: 60, chat: {backend: openai, model: m}}"],
            ["judge.timeout_s = 60", "judge.chat.timeout_s = 180", "paid for again"],
        ),
        (MINIMAL, ["dpo.loss=robust"], ["dpo", "robust needs a share above 0"]),
        (MINIMAL, ["dpo.label_smoothing=0.1"], ["dpo.label_smoothing = 0.1", "no label smoothing"]),
        (MINIMAL, ["dpo.loss=kto"], ["dpo.loss", "'kto'", "sigmoid_norm"]),
        (
            MINIMAL,
            ["dpo.stop.max_kl=9", "dpo.strategy=zero3", "dpo.num_workers=2"],
            ["keeps the last good weights", "fsdp2"],
        ),
        (MINIMAL, ["dpo.stop.max_length_ratio=0.5"], ["dpo.stop.max_length_ratio = 0.5"]),
        (MINIMAL, ["rollout.k=many"], ["rollout.k", "'many'"]),
        (MINIMAL, ["rollout"], ["rollout", "key=value"]),
        ("name: a\n", [], ["student", "required"]),
        ("- 1\n", [], ["no mapping"]),
        ("a: [\n", [], ["not YAML"]),
        (MINIMAL.replace("name: a", "name: a/b"), [], ["name", "a/b"]),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, text: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), overrides)
    for word in words:
        assert word in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config("no/such/file.yaml")


def test_every_setting_has_a_default_but_the_user_s_own() -> None:
    required = {name for name, field in Config.model_fields.items() if field.is_required()}
    assert required == {"name", "student", "sources"}


@pytest.mark.parametrize(
    ("flags", "use_gpu", "computes"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", False, True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", False, True),
        ("flags\t\t: fpu avx2 avx512f", False, False),
        ("Features\t: fp asimd bf16", False, False),
        ("flags\t\t: fpu avx2", True, True),
    ],
)
def test_auto_precision_is_settled_when_the_config_is_read(
    flags: str, use_gpu: bool, computes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "CPU_INFO", write(tmp_path, f"processor\t: 0\n{flags}\n", "cpuinfo"))
    settings = [
        "sft.bf16=auto",
        f"sft.use_gpu={use_gpu}",
        "rollout.dtype=auto",
        f"rollout.gpus_per_engine={int(use_gpu)}",
    ]
    config = load_config(write(tmp_path, MINIMAL), settings)
    assert (config.sft.bf16, config.dpo.bf16) == (computes, False)
    assert config.rollout.dtype == ("bfloat16" if computes else "float32")


def test_bf16_auto_without_a_list_of_abilities_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "none")
    assert load_config(write(tmp_path, MINIMAL), ["sft.bf16=auto"]).sft.bf16 is False


def test_bf16_takes_no_other_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sft\.bf16"):
        load_config(write(tmp_path, MINIMAL), ["sft.bf16=fast"])
