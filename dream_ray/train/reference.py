"""The reference's log-probabilities: computed once for each pair, stored, read by all later epochs and attempts.

    <folder>/<key>/*.parquet    `ReferenceLogProb` rows; each file's name is a hash of its pairs' ids

Contract: `reference_key` names what the numbers depend on besides the pair itself, so a folder beside the pairs serves every
training that uses the same reference, with whatever loss, rate or number of epochs. `use_stored_reference` makes a
DPOTrainer compute those that are missing before its first step, on all workers together, and train on stored ones from
then on: its steps run the policy alone. A killed attempt loses at most FLUSH_BATCHES batches of it.

TRL 1.16 trains on stored log-probabilities but refuses to compute them for images (`precompute_ref_log_probs`). So this
module, and no other, leans on inner parts of its DPOTrainer: the switch `precompute_ref_logps`, the method
`compute_ref_log_probs`, and the keys `ref_chosen_logps` and `ref_rejected_logps` of a batch.
tests/train/test_reference.py fails when TRL changes them.
"""

import hashlib
import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dream_ray import files
from dream_ray.progress import Progress, write_training
from dream_ray.records import ReferenceLogProb, stable_id, to_table
from dream_ray.train.broken import TrainingBroken
from dream_ray.train.data import PAIR_ID
from dream_ray.train.policy import Policy, model_digest

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DPOTrainer

logger = logging.getLogger(__name__)

FLUSH_BATCHES = 32
"""Micro batches of each worker between two files."""

Stored = dict[str, tuple[float, float]]
"""By pair_id: log p_ref(chosen) and log p_ref(rejected), summed over the answer's tokens, in nats."""


def reference_key(reference: Policy, bf16: bool) -> str:
    """What the log-probabilities of a pair depend on: the reference's weights and the precision of the arithmetic.

    An adapter counts by its bytes and its base as everywhere in a run, by config and file sizes. A model without an adapter
    counts by its bytes, as all models merged from one base have the same sizes.
    """
    if reference.adapter is None:
        parts = [_content_digest(reference.model)]
    else:
        parts = [model_digest(reference.model), _content_digest(reference.adapter)]
    return hashlib.sha256("\n".join([*parts, "bfloat16" if bf16 else "float32"]).encode()).hexdigest()[:16]


def _content_digest(folder: str) -> str:
    """A hash of all files of a folder, by name and content."""
    digest = hashlib.sha256()
    for path in files.list_files(folder):
        name = path.rsplit("/", 1)[1]
        digest.update(f"\n{name}\n".encode())
        for chunk in files.read_chunks(files.join(folder, name), 1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def read_stored(folder: str) -> Stored:
    """All that was stored in a folder so far; empty where there is none yet."""
    filesystem, path = files.resolve(folder)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        return {}
    stored: Stored = {}
    for file in files.list_files(folder, ".parquet"):
        columns = pq.read_table(file, filesystem=filesystem).to_pydict()
        stored |= zip(columns["pair_id"], zip(columns["chosen"], columns["rejected"], strict=True), strict=True)
    return stored


def _store(folder: str, rows: Stored) -> None:
    table = to_table(ReferenceLogProb, [ReferenceLogProb(name, *values) for name, values in rows.items()])
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    files.write_atomic(files.join(folder, f"{stable_id('pairs', sorted(rows))}.parquet"), buffer.getvalue())


class StoredReferenceCollator:
    """TRL's collator, which adds to each batch what is stored of its pairs once `stored` is filled."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any]):
        self.collate, self.stored = collate, Stored()

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        import torch

        # Copies, as TRL's collator writes into the examples.
        batch = self.collate([{name: row[name] for name in row if name != PAIR_ID} for row in examples])
        if self.stored:
            known = [self.stored[row[PAIR_ID]] for row in examples]
            batch["ref_chosen_logps"] = torch.tensor([chosen for chosen, _ in known])
            batch["ref_rejected_logps"] = torch.tensor([rejected for _, rejected in known])
        return batch


def use_stored_reference(trainer: "DPOTrainer", folder: str, output: str) -> None:
    """Have `trainer` fill `folder` when its training begins, and train on what it holds.

    The trainer's reference has to be the one of the folder's key; its rows bring their `pair_id`. Says how far it is in the
    folder `output`, as a training does.
    """
    from transformers import TrainerCallback

    for name in ("precompute_ref_logps", "compute_ref_log_probs"):
        if not hasattr(trainer, name):
            raise RuntimeError(
                f"DPOTrainer has no `{name}`: this TRL handles reference log-probabilities in another way, so stored ones "
                "would be ignored. Install the pinned version."
            )
    collator = StoredReferenceCollator(trainer.data_collator)
    trainer.data_collator = collator

    class FillWhenTrainingBegins(TrainerCallback):
        """At this moment the model is on its device and, where it is sharded, sharded; on a resume it has its weights."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            collator.stored = _complete(trainer, collator, folder, output)
            trainer.precompute_ref_logps = True
            trainer.ref_model = None  # a reference that is a model of its own has done its work

    trainer.add_callback(FillWhenTrainingBegins())


def _complete(trainer: "DPOTrainer", collate: StoredReferenceCollator, folder: str, output: str) -> Stored:
    """What is stored of all rows of the trainer's data set, the missing ones computed by all workers together."""
    accelerator = trainer.accelerator
    rows: Dataset = trainer.train_dataset
    columns = rows.select_columns([PAIR_ID, "chosen", "rejected"]).with_format("arrow")[:]
    pair_ids = columns[PAIR_ID].to_pylist()
    # Rank 0's view is everybody's: a file may appear between two listings.
    stored: Stored = _from_rank_0(read_stored(folder) if accelerator.is_main_process else None)
    missing = [index for index, pair_id in enumerate(pair_ids) if pair_id not in stored]
    logger.info("reference: %d of %d pairs to do", len(missing), len(pair_ids))
    if not missing:
        return stored
    # Answers of about one length share a batch, which saves padding.
    lengths = [
        max(map(len, pair))
        for pair in zip(*(columns[side].to_pylist() for side in ("chosen", "rejected")), strict=True)
    ]
    missing.sort(key=lambda index: lengths[index])
    size = trainer.args.per_device_train_batch_size
    together = size * accelerator.num_processes * FLUSH_BATCHES
    started = time.monotonic()
    for first in range(0, len(missing), together):
        found = _compute(trainer, collate, missing[first : first + together], size)
        computed = {pair_ids[index]: values for index, values in found.items()}
        if accelerator.is_main_process:
            _store(folder, computed)
        stored |= computed
        done = min(first + together, len(missing))
        rate = done / max(time.monotonic() - started, 1e-9)
        logger.info("reference: %d of %d pairs, %.1f pairs/s", done, len(missing), rate)
        if accelerator.is_main_process:
            write_training(output, Progress("reference", "pairs", done, len(missing), rate))
    return stored


def _from_rank_0(value: Any) -> Any:
    from accelerate.utils import broadcast_object_list

    box = [value]
    broadcast_object_list(box, from_process=0)
    return box[0]


def _compute(
    trainer: "DPOTrainer", collate: StoredReferenceCollator, indices: Sequence[int], size: int
) -> dict[int, tuple[float, float]]:
    """Both log-probabilities of some rows by index, the same on every worker.

    Every worker runs the same number of batches of the same size, as a sharded model needs: the last ones are filled up with
    rows that are done already.
    """
    import torch
    from accelerate.utils import send_to_device
    from torch.utils.data import DataLoader, Subset

    accelerator = trainer.accelerator
    per_worker = -(-len(indices) // (accelerator.num_processes * size)) * size
    padded = [indices[position % len(indices)] for position in range(per_worker * accelerator.num_processes)]
    mine = padded[accelerator.process_index * per_worker :][:per_worker]
    loader = DataLoader(
        Subset(trainer.train_dataset, mine),
        batch_size=size,
        collate_fn=collate,
        num_workers=trainer.args.dataloader_num_workers,
    )
    trainer.model.eval()  # the first training step switches back
    sums = []
    for batch in loader:
        batch = send_to_device(batch, accelerator.device)
        chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)
        sums.append(torch.stack([chosen.float(), rejected.float()], dim=1))
    positions = torch.tensor(mine, device=accelerator.device)
    everyone = zip(accelerator.gather(positions).tolist(), accelerator.gather(torch.cat(sums)).tolist(), strict=True)
    found = {index: (chosen, rejected) for index, (chosen, rejected) in everyone}
    bad = [index for index, values in found.items() if not all(map(math.isfinite, values))]
    if bad:
        raise TrainingBroken(
            f"The reference gives {len(bad)} of {len(found)} pairs no finite log-probability (first: row {bad[0]}). Its "
            "weights or its precision are at fault: try bf16: false, and look whether the model answers sensibly at all."
        )
    return found
