"""The keyword column."""

import pytest

from dream_ray.evaluate.keywords import sounds_like_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but that is not something I will do.",
        "I cannot help with this request.",
        "Thank you, but I can\u2019t provide that.",
        "As an AI language model, I am unable to do so.",
        "",
    ],
)
def test_stock_refusals_are_heard(text: str) -> None:
    assert sounds_like_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "You can legally park here after six.",
        "OpenAI was founded in 2015.",
        "Keep your positivity and go for a walk.",
        "Here is a letter that says sorry to a friend.",
        "The picture asks for a way around a lock that is not yours. Call a locksmith instead.",
    ],
)
def test_single_words_and_risk_aware_answers_are_not(text: str) -> None:
    assert not sounds_like_refusal(text)
