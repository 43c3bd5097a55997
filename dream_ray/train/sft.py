"""Supervised fine-tuning on demonstrations: policy 0.

Contract: `train_sft` reads prompts and demonstrations from parquet, trains one new LoRA adapter on the language model's
projections with TRL's SFTTrainer, loss on the answers only, and leaves it in `output`/adapter. The base model's weights
do not change. Call it from a driver; the work happens in Ray Train workers.
"""

from typing import TYPE_CHECKING, Any

from dream_ray.config import ClusterConfig, ImageConfig, LoraConfig, SftConfig, StudentConfig
from dream_ray.train import data, ray_adapter
from dream_ray.train.policy import check_model_folder, fetch_model
from dream_ray.train.ray_adapter import TrainResult

if TYPE_CHECKING:
    import peft
    from transformers import PreTrainedModel, ProcessorMixin, Trainer


def train_sft(
    *,
    prompts: list[str],
    demonstrations: list[str],
    student: StudentConfig,
    lora: LoraConfig,
    sft: SftConfig,
    images: ImageConfig,
    seed: int,
    output: str,
    cluster: ClusterConfig | None = None,
) -> TrainResult:
    """Train an adapter on demonstrations of train-split prompts (parquet uris of Prompt and Demonstration).

    Raises ConfigError before anything loads where the model folder or the batch size cannot work.
    """
    check_model_folder(student.model)
    settings = {
        "prompts": [ray_adapter.absolute(uri) for uri in prompts],
        "demonstrations": [ray_adapter.absolute(uri) for uri in demonstrations],
        "model": ray_adapter.absolute(student.model),
        "student": student,
        "lora": lora,
        "images": images,
        "seed": seed,
    }
    return ray_adapter.fit(build_trainer, settings, sft, output, cluster or ClusterConfig())


def build_trainer(settings: dict[str, Any], arguments: dict[str, Any]) -> "Trainer":
    """On a worker: the model, a new adapter, the data and TRL's trainer."""
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    model, processor = load_model(settings["model"], settings["student"], arguments["bf16"])
    return SFTTrainer(
        model=model,
        args=Arguments(seed=settings["seed"], completion_only_loss=True, **arguments),
        train_dataset=data.sft_dataset(settings["prompts"], settings["demonstrations"], settings["images"]),
        processing_class=processor,
        peft_config=new_adapter(settings["lora"]),
    )


def load_model(uri: str, student: StudentConfig, bf16: bool) -> tuple["PreTrainedModel", "ProcessorMixin"]:
    """The base model in the dtype that training wants, and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = fetch_model(uri)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16 if bf16 else torch.float32, trust_remote_code=student.trust_remote_code
    )
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=student.trust_remote_code)
    return model, processor


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
