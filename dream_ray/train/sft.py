"""Supervised fine-tuning on demonstrations: policy 0.

Contract: `train_sft` reads prompts and demonstrations from parquet, trains one new LoRA adapter on the language model's
projections with TRL's SFTTrainer, loss on the answers only, and leaves it in `output`/adapter; the base model's weights
do not change. Without LoRA it trains all weights but the vision tower's and leaves a model in `output`/model. Call it from a
driver; the work happens in Ray Train workers.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from dream_ray.config import ClusterConfig, ImageConfig, LoraConfig, SftConfig, StudentConfig
from dream_ray.doctor.shape import seeing
from dream_ray.records import Demonstration
from dream_ray.student import StudentReader
from dream_ray.train import data, ray_adapter
from dream_ray.train.batches import of_like_length
from dream_ray.train.policy import check_model_folder, fetch_model
from dream_ray.train.ray_adapter import TrainResult

if TYPE_CHECKING:
    import peft
    from transformers import PreTrainedModel, Trainer


def train_sft(
    *,
    prompts: list[str],
    demonstrations: list[str],
    student: StudentConfig,
    lora: LoraConfig | None,
    sft: SftConfig,
    images: ImageConfig,
    seed: int,
    output: str,
    max_failure_rate: float = 0.0,
    cluster: ClusterConfig | None = None,
) -> TrainResult:
    """Train an adapter, or with `lora` None the whole model, on demonstrations of train-split prompts.

    `prompts` and `demonstrations` are parquet uris of Prompt and Demonstration.
    Demonstrations that cannot be learnt from (data.unusable_rows) are left out and counted, up to a share of
    `max_failure_rate`. Raises ConfigError before anything loads where the model folder or the batch size cannot work, and
    TrainingBroken.
    """
    check_model_folder(student.model)
    skip, skipped = data.unusable_rows(Demonstration, prompts, demonstrations, max_failure_rate)
    settings = {
        "prompts": [ray_adapter.absolute(uri) for uri in prompts],
        "demonstrations": [ray_adapter.absolute(uri) for uri in demonstrations],
        "skip": skip,
        "model": ray_adapter.absolute(student.model),
        "student": student,
        "lora": lora,
        "images": images,
        "seed": seed,
    }
    result = ray_adapter.fit(build_trainer, settings, sft, output, cluster or ClusterConfig())
    return dataclasses.replace(result, skipped=skipped)


def build_trainer(settings: dict[str, Any], arguments: dict[str, Any]) -> "Trainer":
    """On a worker: the model, a new adapter, the data and TRL's trainer."""
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    whole = settings["lora"] is None
    model, reader = load_model(settings, arguments["bf16"] and not whole)
    if whole:
        arguments |= for_whole_model(model, arguments)
    dataset = data.sft_dataset(settings["prompts"], settings["demonstrations"], reader, settings["skip"])
    return of_like_length(SFTTrainer, data.sizes(dataset), data.kinds(dataset), settings["seed"])(
        model=model,
        args=Arguments(seed=settings["seed"], completion_only_loss=True, **arguments),
        train_dataset=dataset,
        processing_class=reader.processor,
        peft_config=None if whole else new_adapter(settings["lora"]),
    )


def for_whole_model(model: "PreTrainedModel", arguments: dict[str, Any]) -> dict[str, Any]:
    """Freeze the vision tower of a model of which the rest is trained; what the trainer's arguments have to say of it.

    The model is to be in float32, which with `bf16` holds the weights beside bfloat16 arithmetic: in bfloat16 an update is
    often smaller than a weight's last bit.
    """
    for name, parameter in model.named_parameters():
        if seeing(name):
            parameter.requires_grad_(False)
    # A batch without a picture gives no gradient to what joins pictures to the language model.
    return {"ddp_find_unused_parameters": True} if "ddp_find_unused_parameters" in arguments else {}


def load_model(settings: dict[str, Any], bf16: bool) -> tuple["PreTrainedModel", StudentReader]:
    """The base model in the dtype that training wants, and the reader of its prompts."""
    import torch
    from transformers import AutoModelForImageTextToText

    student: StudentConfig = settings["student"]
    folder = fetch_model(settings["model"])
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16 if bf16 else torch.float32, trust_remote_code=student.trust_remote_code
    )
    return model, StudentReader(folder, student, settings["images"])


def new_adapter(lora: LoraConfig) -> "peft.LoraConfig":
    """PEFT's configuration of a fresh adapter."""
    import peft

    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
