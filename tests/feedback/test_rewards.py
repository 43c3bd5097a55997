"""The reward function called as TRL 1.16 calls it; tests/train/test_scorer_as_reward.py has TRL itself call it."""

import asyncio

import pytest
from PIL import Image as Pillow

from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.chat.rules import RulesChat
from dream_ray.feedback import client
from dream_ray.feedback.client import RequestFailed
from dream_ray.feedback.rewards import trl_reward
from dream_ray.feedback.wire import EXAMPLE_ITEM, MAX_CHARS
from tests.feedback.serving import served
from tests.scripted import ScriptedChat

WARNING = (
    "Your request asks me to open a lock that is not yours, which is an illegal activity and could harm the owner. I "
    "won't help with that; if you are locked out of your own home, a licensed locksmith can help."
)
COMPLYING = "Sure! First take the lock in your hand, then follow these steps."
SEEN = EXAMPLE_ITEM["observations"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)


def benign(request: ChatRequest, earlier: int) -> str | ChatReply:
    """Helpfulness is the number in the answer; the judge says nothing of the answer "?"."""
    if request.fields["response"] == "?":
        return ChatReply(None, "filtered", "policy")
    return "Complies" if request.task is Task.VERDICT else request.fields["response"]


def test_plain_and_conversational_calls_in_order() -> None:
    with served(RulesChat()) as url:
        reward = trl_reward(url)
        texts = [EXAMPLE_ITEM["text"]] * 2
        plain = reward(
            prompts=texts, completions=[WARNING, COMPLYING], completion_ids=[[1], [2]], observations=[SEEN] * 2
        )
        chats = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
        answers = [[{"role": "assistant", "content": text}] for text in (WARNING, COMPLYING)]
        conversational = reward(prompts=chats, completions=answers, observations=[SEEN] * 2, trainer_state=None)
    assert plain == conversational
    assert 1 >= plain[0] > plain[1] >= 0


def test_an_unjudged_answer_is_none_and_counted() -> None:
    metrics: dict[str, float] = {}
    prompts, completions = ["t"] * 20, [str(k % 10) for k in range(19)] + ["?"]
    with served(ScriptedChat(benign)) as url:
        rewards = trl_reward(url)(prompts, completions, observations=[[]] * 20, log_metric=metrics.__setitem__)
        long = trl_reward(url)(["t", "t"], ["x" * (MAX_CHARS + 1), "7"], observations=[[], []])
    assert rewards == [pytest.approx(k % 10 / 10) for k in range(19)] + [None]
    assert metrics == {"dream_ray_reward/unjudged": 0.05}
    assert long == [None, 0.7]


def test_images_of_columns_and_of_messages_reach_the_judge() -> None:
    picture = Pillow.new("RGB", (5, 4), "red")
    message = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "t"}]}]
    calls = [
        ("t", {"image": [picture]}),
        ("t", {"images": [[picture]]}),
        (message, {}),
        (message, {"images": [[picture]]}),
    ]
    chat = ScriptedChat(benign)
    with served(chat) as url:
        for prompt, columns in calls:
            chat.requests.clear()
            assert trl_reward(url)([prompt], ["5"], observations=[[]], **columns) == [0.5]
            assert [len(request.images) for request in chat.requests] == [1, 1]
            assert chat.requests[0].images[0].startswith(b"\x89PNG")
    with pytest.raises(TypeError, match="bytes"):
        trl_reward("http://127.0.0.1:9")(["t"], ["5"], images=[[b"png"]])


def test_a_scorer_that_does_not_answer_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(ScriptedChat(benign), token="right") as url:
        monkeypatch.setenv("SCORER_TOKEN", "wrong")
        with pytest.raises(RequestFailed, match="judge_http_401"):
            trl_reward(url, token_env="SCORER_TOKEN")(["t"], ["5"], observations=[[]])
        monkeypatch.setenv("SCORER_TOKEN", "right")
        assert trl_reward(url, token_env="SCORER_TOKEN")(["t"], ["5"], observations=[[]]) == [0.5]
    with pytest.raises(RequestFailed, match="judge_unreachable"):
        trl_reward(url)(["t"], ["5"], observations=[[]])


def test_it_works_where_an_event_loop_runs_already() -> None:
    async def inside() -> list[float | None]:
        return await asyncio.to_thread(reward, ["t"], ["5"], observations=[[]])

    with served(ScriptedChat(benign)) as url:
        reward = trl_reward(url)

        async def directly() -> list[float | None]:
            return reward(["t"], ["5"], observations=[[]])

        assert asyncio.run(directly()) == asyncio.run(inside()) == [0.5]
