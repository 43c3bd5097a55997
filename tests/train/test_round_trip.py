"""What training writes, vLLM serves: the adapter and the merged model give transformers' own greedy answers."""

from pathlib import Path

import pytest
from PIL import Image

from dream_ray import files
from dream_ray.config import ImageConfig, LoraConfig, SftConfig, StudentConfig
from dream_ray.train.policy import Policy, merge_adapter
from dream_ray.train.sft import train_sft
from tests.train.conftest import QUESTIONS

pytestmark = pytest.mark.slow

TOKENS = 24


def test_vllm_answers_as_transformers_does(
    tiny_model: Path, run_files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train_sft(
        prompts=[run_files["prompts"]],
        demonstrations=[run_files["demonstrations"]],
        student=StudentConfig(model=str(tiny_model)),
        lora=LoraConfig(rank=16),
        sft=SftConfig(learning_rate=1e-2, epochs=2, batch_size=4, micro_batch_size=4, num_workers=0),
        images=ImageConfig(),
        seed=2,
        output=str(tmp_path),
    )
    merged = merge_adapter(Policy("policy-0", str(tiny_model), result.adapter), str(tmp_path / "merged"))
    wanted = in_transformers(tiny_model, result.adapter)
    # Equal answers of a model that repeats itself would prove nothing.
    assert len(set(wanted)) == len(wanted)
    assert all(len(set(answer)) > 5 for answer in wanted)

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    base, adapted = in_vllm(str(tiny_model), str(files.as_path(result.adapter)))
    assert adapted == wanted
    assert base != wanted
    assert in_vllm(merged, None) == [wanted]


def rendered() -> tuple[list[str], list[Image.Image]]:
    texts = [f"<|im_start|>user\n<image>{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS]
    return texts, [Image.new("RGB", (48, 60), (60 * number, 90, 120)) for number in range(len(texts))]


def in_transformers(model: Path, adapter: str) -> list[tuple[int, ...]]:
    """Greedy token ids of each prompt, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, str(files.as_path(adapter))).eval()
    processor = AutoProcessor.from_pretrained(model)
    answers = []
    for text, image in zip(*rendered(), strict=True):
        inputs = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)
        output = policy.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answers.append(tuple(output[0, inputs["input_ids"].shape[1] :].tolist()))
    return answers


def in_vllm(model: str, adapter: str | None) -> list[list[tuple[int, ...]]]:
    """The same from an engine: without an adapter and, where one is given, with it."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        limit_mm_per_prompt={"image": 1},
        enable_lora=adapter is not None,
        max_lora_rank=16,
    )
    prompts = [{"prompt": text, "multi_modal_data": {"image": image}} for text, image in zip(*rendered(), strict=True)]
    requests = [None] + ([LoRARequest("adapter", 1, adapter)] if adapter else [])
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS)
    answers = [
        [tuple(output.outputs[0].token_ids) for output in engine.generate(prompts, greedy, lora_request=request)]
        for request in requests
    ]
    engine.llm_engine.engine_core.shutdown()
    return answers
