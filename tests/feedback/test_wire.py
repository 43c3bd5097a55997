import pytest
from pydantic import ValidationError

from dream_ray.feedback.wire import MAX_CHARS, MAX_IMAGES, MAX_ITEMS, MAX_OBSERVATIONS, ScoreRequest, explain

ITEM = {"rollout_id": "r", "prompt_id": "p", "text": "t", "images": [], "observations": [], "response": "a"}
SEEN = {"content": "c", "source": "image content", "category": "Violence"}


def test_a_request_as_documented_is_read() -> None:
    request = ScoreRequest.model_validate({"items": [{**ITEM, "images": ["/a.png"], "observations": [SEEN]}]})
    assert request.items[0].observations[0].category == "Violence"
    assert ScoreRequest.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"response": "x" * (MAX_CHARS + 1)}, "items.0.response"),
        ({"text": "x" * (MAX_CHARS + 1)}, "items.0.text"),
        ({"images": ["/a.png"] * (MAX_IMAGES + 1)}, "items.0.images"),
        ({"observations": [SEEN] * (MAX_OBSERVATIONS + 1)}, "items.0.observations"),
        ({"observations": [{**SEEN, "content": "x" * (MAX_CHARS + 1)}]}, "items.0.observations"),
        ({"observations": [{**SEEN, "source": "the air"}]}, "items.0.observations.0.source"),
        ({"rollout_id": ""}, "items.0.rollout_id"),
        ({"extra": 1}, "items.0.extra"),
    ],
)
def test_limits_say_where_and_not_what(change: dict[str, object], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ScoreRequest.model_validate({"items": [{**ITEM, **change}]})
    message = explain(caught.value.errors())
    assert message.startswith(f"{where}: ")
    assert "xxx" not in message


@pytest.mark.parametrize("count", [0, MAX_ITEMS + 1])
def test_a_request_has_a_bounded_number_of_items(count: int) -> None:
    with pytest.raises(ValidationError):
        ScoreRequest.model_validate({"items": [ITEM] * count})
