"""The one private name of TRL that training touches still does what it is touched for."""

import pytest

pytestmark = pytest.mark.slow


def test_only_answer_tokens_reach_the_vocabulary_and_the_numbers_stay(tiny_model, monkeypatch: pytest.MonkeyPatch):
    import torch
    from transformers import AutoModelForImageTextToText
    from trl.trainer import utils

    from dream_ray.train.answer_logits import score_answers_only

    scored: list[int] = []
    kernel = utils._ChunkedLogProbFunction

    class Spy:
        @staticmethod
        def apply(hidden, *rest):
            scored.append(len(hidden))
            return kernel.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Spy)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
    utils.add_fused_lm_head(model)
    ids = torch.arange(20).reshape(2, 10)
    labels = ids.masked_fill(torch.arange(10) < 6, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "fused_lm_head": True}

    everywhere = model(**inputs)
    with score_answers_only():
        answers = model(**inputs)
    model(**inputs)

    assert scored == [18, 8, 18]
    torch.testing.assert_close(answers.log_probs, everywhere.log_probs)
    torch.testing.assert_close(answers.loss, everywhere.loss)
