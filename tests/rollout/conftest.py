"""The student, its adapters and the rows that the sampler's tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dream_ray.config import LoraConfig, StudentConfig
from dream_ray.records import Prompt
from dream_ray.rollout.requests import SampleRequest, sample_seed
from tests.conftest import REPOSITORY
from tests.records_for_tests import KNIFE

MAX_MODEL_LEN = 512


@pytest.fixture(scope="session")
def student() -> StudentConfig:
    """The real small student, built once in build/."""
    from dream_ray.train.local_student import build_local_student

    return StudentConfig(model=str(build_local_student(REPOSITORY / "build" / "student")), max_model_len=MAX_MODEL_LEN)


def random_adapter(model: str, lora: LoraConfig, deviation: float, folder: Path) -> str:
    """Save a random adapter on a model whose B matrices have the given standard deviation; the folder."""
    import torch
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    tuned = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32),
        PeftLora(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules),
    )
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=deviation) if deviation else torch.nn.init.zeros_(weight)
    tuned.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def make_adapter(student: StudentConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], str]:
    """Saves a random adapter whose B matrices have the given standard deviation; the folder."""

    def make(deviation: float) -> str:
        return random_adapter(student.model, LoraConfig(), deviation, tmp_path_factory.mktemp("adapter"))

    return make


@pytest.fixture(scope="session")
def adapter(make_adapter: Callable[[float], str]) -> str:
    """An adapter that changes what the student says."""
    return make_adapter(0.05)


def request_of(prompt: Prompt, **changes: object) -> SampleRequest:
    """Two sampled answers of the base model, unless changed."""
    values: dict[str, object] = {
        "job": "round-1",
        "part": "train-00-000000",
        "policy": "base",
        "adapter": None,
        "prompt": prompt,
        "observations": (KNIFE,),
        "n": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 8,
        "seed": sample_seed(0, prompt.prompt_id, 1),
    }
    return SampleRequest(**(values | changes))  # type: ignore[arg-type]
