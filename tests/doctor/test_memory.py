"""The formulas against numbers calculated by hand."""

import dataclasses
from pathlib import Path

import pytest

from dream_ray.config import LoraConfig
from dream_ray.doctor import memory
from dream_ray.doctor.memory import EngineUse, Training
from dream_ray.doctor.shape import ModelShape, read_shape
from tests.doctor.published import publish

STEP = Training(
    sequences=4, tokens=1024, bf16=True, checkpointing=True, workers=8, rank=16,
    target_modules=LoraConfig().target_modules, reference=False, on_gpu=True,
)  # fmt: skip


@pytest.fixture
def llava(tmp_path: Path) -> ModelShape:
    return read_shape(str(publish(tmp_path, "llava-1.5-7b-hf")), "student.model")


def test_lora_holds_weights_once_and_an_adapter_in_float32(llava: ModelShape) -> None:
    parts = memory.lora_training(llava, STEP)
    assert parts["weights"] == 2 * 7_063_427_072
    assert parts["adapter"] == 4 * 39_976_960
    assert parts["gradients"] == 2 * 4 * 39_976_960  # and once more in DDP's buckets
    assert parts["optimiser"] == 8 * 39_976_960
    alone = memory.lora_training(llava, dataclasses.replace(STEP, workers=1, bf16=False, reference=True))
    assert alone["weights"] == 4 * 7_063_427_072
    assert alone["gradients"] == 4 * 39_976_960
    assert alone["adapter"] == 2 * 4 * 39_976_960


def test_activations_with_and_without_checkpointing(llava: ModelShape) -> None:
    # A token in a layer: 10 x 4096 + 2 x 4096 + 2 x 4096 + 4 x 11008 elements, and LoRA's copies of the inputs of q, k, v,
    # o, gate, up (4096 each) and down (11008): 101,376 + 35,584 elements of 2 bytes.
    layer = 4096 * (101_376 + 35_584) * 2
    assert memory.activations(llava, dataclasses.replace(STEP, checkpointing=False)) == 32 * layer
    assert memory.activations(llava, STEP) == 32 * 4096 * 4096 * 2 + layer
    upper = dataclasses.replace(STEP, checkpointing=False, target_modules=r".*\.(24|25|26|27|28|29|30|31)\..*\.q_proj")
    assert memory.activations(llava, upper) == 8 * 4096 * (101_376 + 8 * 4096 / 32) * 2


def test_the_vocabulary_is_scored_in_tiles(llava: ModelShape) -> None:
    assert memory.vocabulary_tiles(llava, STEP) == 3 * 4096 * 32064 * 4
    assert memory.vocabulary_tiles(llava, dataclasses.replace(STEP, sequences=1)) == 3 * 1024 * 32064 * 4


def test_training_all_weights_takes_sixteen_bytes_a_parameter(llava: ModelShape) -> None:
    trained = 7_063_427_072 - 303_507_456
    parts = memory.full_training(llava, dataclasses.replace(STEP, workers=1, target_modules=""))
    assert parts["weights"] + parts["gradients"] + parts["optimiser"] == 16 * trained + 2 * 303_507_456


def test_a_model_that_is_cut_takes_a_share_and_what_is_gathered(llava: ModelShape) -> None:
    cut = dataclasses.replace(STEP, shards=8)
    parts, whole = memory.lora_training(llava, cut), memory.lora_training(llava, STEP)
    assert parts["weights"] == whole["weights"] / 8
    assert parts["gradients"] == 4 * 39_976_960 / 8  # no buckets
    # Two of 32 layers, and the embedding and the vocabulary's matrix of 32064 x 4096, 2 bytes each.
    ends = 2 * 32064 * 4096
    layer = (7_063_427_072 - 303_507_456 - ends) / 32
    assert parts["gathered"] == pytest.approx((2 * layer + ends) * 2)
    assert "gathered" not in whole
    assert parts["activations"] == whole["activations"]
    full = memory.full_training(llava, dataclasses.replace(cut, target_modules=""))
    trained = 7_063_427_072 - 303_507_456
    assert full["weights"] + full["gradients"] + full["optimiser"] == (16 * trained + 2 * 303_507_456) / 8
    assert full["gathered"] == pytest.approx((2 * layer + ends) * 6)


def test_kv_cache_of_a_token(llava: ModelShape) -> None:
    use = EngineUse(gpus=1, dtype="bfloat16", max_model_len=1024)
    assert memory.kv_bytes_per_token(llava, use) == 2 * 32 * 4096 * 2
    assert memory.kv_bytes_per_token(llava, dataclasses.replace(use, gpus=4)) == 2 * 32 * 1024 * 2
    opt = dataclasses.replace(llava, layers=40, key_value=5120)
    assert memory.kv_bytes_per_token(opt, use) == 800 * 1024  # the example of the PagedAttention paper


def test_a_rank_holds_at_least_one_head_of_keys(tmp_path: Path) -> None:
    qwen = read_shape(str(publish(tmp_path, "Qwen2.5-VL-3B-Instruct")), "student.model")
    use = EngineUse(gpus=4, dtype="bfloat16", max_model_len=1024)
    assert memory.kv_bytes_per_token(qwen, use) == 2 * 36 * 128 * 2


def test_engine_weights_are_split_and_quantised_ones_counted_as_stored(llava: ModelShape) -> None:
    use = EngineUse(gpus=2, dtype="bfloat16", max_model_len=1024, adapters=2, rank=16)
    parts = memory.engine(llava, use)
    assert parts["weights"] == 7_063_427_072
    assert parts["adapters"] == 2 * 39_976_960 * 2 / 2
    packed = dataclasses.replace(llava, quantised=True, stored_bytes=4_000_000_000)
    assert memory.engine(packed, use)["weights"] == 2_000_000_000
