"""Direct preference optimisation of one round: policy t -> policy t+1.

Contract: `train_dpo` reads prompts and pairs from parquet and trains one adapter with TRL's DPOTrainer. Two cases: the
start has an adapter, and training goes on with it against any reference on the same base model (`reference: initial`);
or the start is a plain model, a new adapter begins, and the reference is that model itself (`reference: previous`,
after `merge_adapter`). The reference is a frozen adapter beside the policy's, never a second copy of the model. It runs once
over the pairs (reference.py); the steps run the policy alone. Without LoRA, policy and reference are models of their own, and
the reference leaves the memory before the first step.

DPO: Rafailov et al. 2023, loss -log sigmoid(beta * ((log p/p_ref)(chosen) - (log p/p_ref)(rejected))).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dream_ray import files
from dream_ray.config import ClusterConfig, ConfigError, DpoConfig, ImageConfig, LoraConfig, StudentConfig
from dream_ray.records import PreferencePair, Prompt
from dream_ray.scratch import ScratchFolder
from dream_ray.train import data, ray_adapter
from dream_ray.train.batches import of_like_length
from dream_ray.train.policy import Policy, check_model_folder, fetch_folder
from dream_ray.train.ray_adapter import TrainResult
from dream_ray.train.reference import reference_key, use_stored_reference
from dream_ray.train.sft import for_whole_model, load_model, new_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from trl import DPOTrainer

REFERENCE_ADAPTER = "ref"
"""The name that TRL gives the frozen adapter of a PeftModel without ref_model, and by which it finds it again."""


def train_dpo(
    *,
    prompts: list[str],
    pairs: list[str],
    start: Policy,
    reference: Policy,
    student: StudentConfig,
    lora: LoraConfig | None,
    dpo: DpoConfig,
    images: ImageConfig,
    seed: int,
    output: str,
    stored: str | None = None,
    probes: Sequence[Prompt] = (),
    max_failure_rate: float = 0.0,
    cluster: ClusterConfig | None = None,
) -> TrainResult:
    """Train on preference pairs of train-split prompts (parquet uris of Prompt and PreferencePair).

    `stored` is the folder of the reference's log-probabilities; beside the pairs, every training on them finds it. Unset:
    in `output`. `probes` are the benign prompts that `dpo.stop` asks about. Pairs that cannot be learnt from
    (data.unusable_rows) are left out and counted, up to a share of `max_failure_rate`. Raises ConfigError before anything
    loads where the policies do not fit together or a setting cannot work, and TrainingBroken.
    """
    check_model_folder(start.model)
    _check_policies(start, reference, whole=lora is None)
    if dpo.stop.asks and not probes:
        raise ConfigError(
            "dpo.stop bounds the answers to benign prompts, but there are none in the development split that a source labels "
            "as benign. Take a source that labels its prompts, or unset dpo.stop.max_length_ratio and "
            "dpo.stop.max_benign_refusal."
        )
    skip, skipped = data.unusable_rows(PreferencePair, prompts, pairs, max_failure_rate)
    folder = files.join(stored or files.join(output, "reference"), reference_key(reference, dpo.bf16))
    settings = {
        "prompts": [ray_adapter.absolute(uri) for uri in prompts],
        "pairs": [ray_adapter.absolute(uri) for uri in pairs],
        "skip": skip,
        "stored": ray_adapter.absolute(folder),
        "output": ray_adapter.absolute(output),
        "probes": tuple(probes),
        "model": ray_adapter.absolute(start.model),
        "reference_model": ray_adapter.absolute(reference.model),
        "start_adapter": start.adapter and ray_adapter.absolute(start.adapter),
        "reference_adapter": reference.adapter and ray_adapter.absolute(reference.adapter),
        "student": student,
        "lora": lora,
        "dpo": dpo,
        "images": images,
        "seed": seed,
    }
    result = ray_adapter.fit(build_trainer, settings, dpo, output, cluster or ClusterConfig())
    return dataclasses.replace(result, skipped=skipped)


def _check_policies(start: Policy, reference: Policy, whole: bool) -> None:
    if whole:
        if adapters := [policy for policy in (start, reference) if policy.adapter is not None]:
            raise ConfigError(
                f"lora is null, so all weights are trained, but the policy {adapters[0].name} has the adapter "
                f"{adapters[0].adapter}. Merge it first, or set lora."
            )
        return
    if ray_adapter.absolute(start.model) != ray_adapter.absolute(reference.model):
        raise ConfigError(
            f"The policy {start.name} stands on {start.model} and the reference {reference.name} on {reference.model}. "
            "They share one model in memory and have to stand on the same base: pass the merged start as its own "
            "reference (dpo.reference: previous), or an adapter on the initial base (dpo.reference: initial)."
        )
    if start.adapter is None and reference.adapter is not None:
        raise ConfigError(
            f"The policy {start.name} has no adapter but the reference {reference.name} has {reference.adapter}. A new "
            "adapter starts at its base model, and that is its reference: pass the start itself as the reference."
        )


def build_trainer(settings: dict[str, Any], arguments: dict[str, Any]) -> "DPOTrainer":
    """On a worker: the model with its adapters, the data and TRL's trainer."""
    import trl
    from peft import PeftModel

    from dream_ray.train.collapse import CollapseWatch

    dpo: DpoConfig = settings["dpo"]
    whole = settings["lora"] is None
    model, reader = load_model(settings, arguments["bf16"] and not whole)
    reference = None
    if whole:
        arguments |= for_whole_model(model, arguments)
        reference, _ = load_model(settings | {"model": settings["reference_model"]}, arguments["bf16"])
    with ScratchFolder("train") as scratch:
        new = settings["start_adapter"] is None
        if not new:
            folder = fetch_folder(settings["start_adapter"], Path(scratch))
            model = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
        dataset = data.preference_dataset(settings["prompts"], settings["pairs"], reader, settings["skip"])
        # A round has few batches, and the last ones would decide whether the policy refuses more or less.
        trainer = of_like_length(trl.DPOTrainer, data.sizes(dataset), data.kinds(dataset), settings["seed"])(
            model=model,
            ref_model=reference,
            args=trl.DPOConfig(seed=settings["seed"], **loss_arguments(dpo), **arguments),
            train_dataset=dataset,
            processing_class=reader.processor,
            peft_config=new_adapter(settings["lora"]) if new and not whole else None,
        )
        if not new:
            adapter = settings["reference_adapter"]
            set_reference(trainer.model, adapter and fetch_folder(adapter, Path(scratch)))
    use_stored_reference(trainer, settings["stored"], settings["output"])
    trainer.add_callback(CollapseWatch(trainer, dpo.beta, dpo.stop, settings["probes"], reader))
    return trainer


def loss_arguments(dpo: DpoConfig) -> dict[str, Any]:
    """The loss as TRL's DPOConfig takes it."""
    mix = {"loss_type": [dpo.loss, "sft"], "loss_weights": [1.0, dpo.sft_weight]}
    loss = mix if dpo.sft_weight else {"loss_type": [dpo.loss]}
    return {"beta": dpo.beta, "label_smoothing": dpo.label_smoothing, **loss}


def set_reference(model: "PeftModel", adapter: Path | None) -> None:
    """Make `adapter` the frozen reference of a model that DPOTrainer prepared; None makes it the base model.

    TRL starts the reference as a copy of the policy. With the adapter gone it switches adapters off instead. Raises
    ConfigError where the reference's LoRA shape is not the policy's: TRL gave it that shape.
    """
    from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict

    if REFERENCE_ADAPTER not in model.peft_config:
        raise RuntimeError(
            f"DPOTrainer made no adapter named {REFERENCE_ADAPTER!r}; it has {', '.join(model.peft_config)}. This TRL "
            "keeps its reference elsewhere, so training would use the wrong one: install the pinned version."
        )
    if adapter is None:
        model.delete_adapter(REFERENCE_ADAPTER)
        return
    ours, theirs = model.peft_config[REFERENCE_ADAPTER], PeftConfig.from_pretrained(str(adapter))
    for name in ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ConfigError(
                f"The reference adapter {adapter} has {name} = {getattr(theirs, name)}, the policy's has "
                f"{getattr(ours, name)}. The reference takes the policy's shape: train both with the same lora section."
            )
    loaded = set_peft_model_state_dict(model, load_peft_weights(str(adapter), device="cpu"), REFERENCE_ADAPTER)
    if loaded.unexpected_keys:
        raise RuntimeError(
            f"The reference adapter {adapter} has weights that the model has no place for, first "
            f"{loaded.unexpected_keys[0]}. It belongs to another base model."
        )
