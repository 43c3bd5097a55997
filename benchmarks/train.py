"""How long a training step takes here, beside a plain TRL script on the same model, data and batch.

    python benchmarks/train.py [--model build/student] [--rounds 4] [--steps 4] [--gpu]

Contract: prompts with a picture each, and answers of 10 to 60 words, are drawn from our own words. One process trains the same
LoRA adapter by turns with dream_ray's trainers and with TRL's own, `--steps` timed steps a turn after one that is not; a step
is from the end of the one before to its own end, data included. Prints medians, quartiles and the ratio of the medians. For
DPO, whose steps here read stored log-probabilities of the reference, also what a step costs with its share of computing
them, as in a single epoch. With --gpu in bfloat16 on one GPU, else in float32 on the CPU.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image as PilImage
from transformers import Trainer, TrainerCallback

from dream_ray import images
from dream_ray.config import DpoConfig, ImageConfig, LoraConfig, SftConfig, StudentConfig, TrainConfig
from dream_ray.records import (
    Demonstration,
    Image,
    PreferencePair,
    Prompt,
    Risk,
    Shift,
    Turn,
    make_prompt,
    stable_id,
    to_table,
)
from dream_ray.train import dpo, ray_adapter, sft
from dream_ray.train.answer_logits import score_answers_only

WORDS = "garden river market window kettle bicycle lantern meadow harbour pencil orchard winter".split()


class Clock(TrainerCallback):
    """Seconds of each step but the first of a turn, and from the start of training to the first step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.before: list[float] = []

    def begin(self) -> None:
        """A turn begins."""
        self._last, self._fresh = time.perf_counter(), True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._fresh and state.global_step == 0:
            self.before.append(time.perf_counter() - self._last)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if not self._fresh:
            self.steps.append(now - self._last)
        self._last, self._fresh = now, False


def write_rows(folder: Path, count: int) -> dict[str, list[str]]:
    """`count` prompts with a picture, their demonstrations and pairs; the files' names."""
    chooser = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(chooser.choice(WORDS) for _ in range(chooser.randint(least, most))).capitalize() + "."

    prompts, demonstrations, pairs = [], [], []
    for number in range(count):
        path = folder / f"{number}.jpg"
        PilImage.effect_noise((320, 240), 20 + number % 80).convert("RGB").save(path)
        shown = Image(images.sha256(path.read_bytes()), str(path), 320, 240, "drawn")
        prompt = make_prompt(source="bench", source_id=str(number), turns=[Turn("user", words(10, 30), (shown,))])
        chosen, rejected = words(10, 60), words(10, 60)
        prompts.append(prompt)
        demonstrations.append(Demonstration(prompt.prompt_id, chosen, Risk.RISKY, 0, 0))
        pair_id = stable_id("pair", prompt.prompt_id, chosen, rejected)
        pairs.append(PreferencePair(pair_id, prompt.prompt_id, chosen, rejected, 1.0, 0.0, Risk.RISKY, Shift.NONE))
    found = {}
    for name, kind, rows in (
        ("prompts", Prompt, prompts),
        ("demonstrations", Demonstration, demonstrations),
        ("pairs", PreferencePair, pairs),
    ):
        pq.write_table(to_table(kind, rows), folder / f"{name}.parquet")
        found[name] = [str(folder / f"{name}.parquet")]
    return found


def plain_rows(rows: Any, folder: Path) -> Any:
    """The same rows as a script would hold them for TRL: texts, and pictures as files that `datasets` opens."""
    from datasets import Dataset, Image, List

    names = [name for name in rows[0] if name not in ("pair_id", "images")]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in names}
    columns["images"] = [[str(folder / f"{number}.jpg")] for number in range(len(rows))]
    return Dataset.from_dict(columns).cast_column("images", List(Image()))


def plain_arguments(train: TrainConfig, folder: Path) -> dict[str, Any]:
    """What such a script sets: the same batch, rate, schedule and precision, and no cut through image tokens."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": train.micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // train.micro_batch_size,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup_ratio,
        "bf16": train.bf16,
        "use_cpu": not train.use_gpu,
        "gradient_checkpointing": train.checkpointing,
        "dataloader_pin_memory": train.use_gpu,
        "max_length": None,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 0,
    }


class Side:
    """One of the two that take turns; `around` gives the context of a turn."""

    def __init__(self, trainer: Trainer, steps: int, around: Callable[[], AbstractContextManager[None]]):
        self.trainer, self.clock, self._around = trainer, Clock(), around
        trainer.args.max_steps, trainer.args.save_strategy, trainer.args.logging_steps = steps + 1, "no", 1
        trainer.add_callback(self.clock)

    def turn(self) -> None:
        with self._around():
            self.clock.begin()
            self.trainer.train()


def compare(name: str, ours: Side, theirs: Side, rounds: int, batch: int, pairs: int | None) -> None:
    """Take turns and print a row; with `pairs`, one more for a step with its share of the reference's log-probabilities."""
    for _ in range(rounds):
        ours.turn()
        theirs.turn()
    mine, plain = ours.clock.steps, theirs.clock.steps
    row(name, mine, plain)
    if pairs:
        share = (ours.clock.before[0] - statistics.median(ours.clock.before[1:])) * batch / pairs
        row(f"{name}, and its share of the reference's log-probabilities", [step + share for step in mine], plain)


def row(name: str, mine: Sequence[float], plain: Sequence[float]) -> None:
    cells = []
    for values in (mine, plain):
        low, middle, high = statistics.quantiles(values, n=4)
        cells.append(f"{middle:.2f} s ({low:.2f} to {high:.2f})")
    ratio = statistics.median(mine) / statistics.median(plain)
    print(f"| {name} | {cells[0]} | {cells[1]} | {ratio:.2f} | {len(mine)} |", flush=True)


def main() -> None:
    """Train by turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="build/student", help="a folder of a multimodal model")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a turn")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--only", choices=("sft", "dpo"))
    parser.add_argument("--gpu", action="store_true")
    chosen = parser.parse_args()
    where: dict[str, Any] = {"use_gpu": chosen.gpu, "bf16": chosen.gpu, "num_workers": 0, "schedule": "linear"}
    batch = {"batch_size": chosen.batch, "micro_batch_size": chosen.batch}
    student, lora = StudentConfig(model=chosen.model), LoraConfig()
    device = torch.cuda.get_device_name() if chosen.gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{chosen.model}, batch {chosen.batch}, LoRA rank {lora.rank}, {device}\n")
    print("| step | dream_ray | plain TRL | ratio | steps |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        rows = write_rows(folder, chosen.rows)
        settings = {
            **rows, "skip": (), "model": chosen.model, "student": student, "lora": lora, "images": ImageConfig(), "seed": 0,
        }  # fmt: skip

        def sides(
            build: Any, settings: dict[str, Any], train: TrainConfig, plain: Callable[[Any], Trainer]
        ) -> list[Side]:
            trainer = build(settings, ray_adapter._arguments(train, folder / "ours"))
            ray_adapter.equip(trainer, train, str(folder / "run"), folder)
            script = plain(plain_rows(trainer.train_dataset, folder))
            return [Side(trainer, chosen.steps, around), Side(script, chosen.steps, nullcontext)]

        around = nullcontext if chosen.gpu else score_answers_only
        if chosen.only != "dpo":
            train: TrainConfig = SftConfig(**where, **batch)
            ours, theirs = sides(
                sft.build_trainer, settings, train, lambda data: plain_sft(chosen.model, lora, train, data, folder)
            )
            compare("SFT", ours, theirs, chosen.rounds, chosen.batch, None)
            adapter = folder / "adapter"
            ours.trainer.model.save_pretrained(adapter)
        else:
            adapter = folder / "adapter"
            model, _ = sft.load_model(settings, bf16=False)
            from peft import get_peft_model

            get_peft_model(model, sft.new_adapter(lora)).save_pretrained(adapter)
        if chosen.only != "sft":
            more = DpoConfig(**where, **batch)
            here = {
                "dpo": more, "probes": (), "stored": str(folder / "stored"), "output": str(folder / "run"),
                "start_adapter": str(adapter), "reference_adapter": str(adapter),
            }  # fmt: skip
            ours, theirs = sides(
                dpo.build_trainer,
                settings | here,
                more,
                lambda data: plain_dpo(chosen.model, adapter, more, data, folder),
            )
            compare("DPO", ours, theirs, chosen.rounds, chosen.batch, chosen.rows)


def plain_sft(model: str, lora: LoraConfig, train: TrainConfig, data: Any, folder: Path) -> Trainer:
    """SFT as a script writes it."""
    import peft
    import trl
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype = torch.bfloat16 if train.bf16 else torch.float32
    return trl.SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(model, dtype=dtype),
        args=trl.SFTConfig(**plain_arguments(train, folder / "plain")),
        train_dataset=data,
        processing_class=AutoProcessor.from_pretrained(model),
        peft_config=peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"
        ),
    )


def plain_dpo(model: str, adapter: Path, train: DpoConfig, data: Any, folder: Path) -> Trainer:
    """DPO of an adapter as a script writes it; TRL takes the adapter's start as the reference."""
    import peft
    import trl
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype = torch.bfloat16 if train.bf16 else torch.float32
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
    return trl.DPOTrainer(
        model=peft.PeftModel.from_pretrained(base, str(adapter), is_trainable=True),
        args=trl.DPOConfig(beta=train.beta, **plain_arguments(train, folder / "plain")),
        train_dataset=data,
        processing_class=AutoProcessor.from_pretrained(model),
    )


if __name__ == "__main__":
    main()
