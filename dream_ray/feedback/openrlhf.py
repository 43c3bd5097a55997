"""OpenRLHF's remote reward: its request to items, results to its reply.

Contract: pure. What OpenRLHF posts to its remote_rm_url is in openrlhf/utils/agent.py (SingleTurnAgentExecutor, read at
commit 04655bc) and, in earlier versions, in openrlhf/utils/remote_rm_utils.py: {"query": [...], "prompts": [...],
"labels": [...]}. It wants {"rewards": [...], "scores": [...]}, numbers only, and repeats a request that got an error
status, five times in all.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from dream_ray.feedback.rubric import reward_share
from dream_ray.feedback.wire import PromptNotes, RewardRequest, RewardResponse, ScoreItem, ScoreResult, explain

END_MARKS = re.compile(r"(\s*(<\|[^<>|]{1,40}\|>|</s>|<eos>|<pad>|<end_of_turn>|<end_of_utterance>))+\s*$")
"""What models end an answer with; the query holds it because OpenRLHF decodes it with the special tokens."""


class BadRewardRequest(ValueError):
    """A request that cannot be told apart into prompts and answers; the message says which entry and why."""


class Unrewarded(RuntimeError):
    """Some answers have no judgement: there is no number to send in their place."""


def items_of(request: RewardRequest) -> tuple[ScoreItem, ...]:
    """One item per query. Raises BadRewardRequest."""
    labels = request.labels if request.labels is not None else (None,) * len(request.query)
    if not len(request.query) == len(request.prompts) == len(labels):
        raise BadRewardRequest(
            f"There are {len(request.query)} queries, {len(request.prompts)} prompts and {len(labels)} labels; send one "
            "prompt, and one label or no labels at all, per query."
        )
    return tuple(
        _item(number, *entry) for number, entry in enumerate(zip(request.query, request.prompts, labels, strict=True))
    )


def rewards_of(results: Sequence[ScoreResult]) -> RewardResponse:
    """The rewards. Raises Unrewarded, with the reasons, unless every answer has one."""
    judged = [result.judgement for result in results if result.judgement is not None]
    if len(judged) < len(results):
        reasons = sorted({result.reason or "no_reason" for result in results if result.judgement is None})
        raise Unrewarded(
            f"{len(results) - len(judged)} of {len(results)} answers were not judged: {', '.join(reasons)}. OpenRLHF "
            "takes numbers only, and any number would be a lie."
        )
    shares = tuple(reward_share(judgement) for judgement in judged)
    return RewardResponse(rewards=shares, scores=shares)


def _item(number: int, query: str, prompt: str, label: Any) -> ScoreItem:
    if not query.startswith(prompt):
        raise BadRewardRequest(
            f"query {number} does not begin with prompt {number}, so where the answer begins is not known. OpenRLHF cuts "
            "prompts that are too long: raise its prompt length, or leave such prompts out."
        )
    try:
        notes = _notes(label)
        return ScoreItem(
            rollout_id=f"query-{number}",
            prompt_id=f"prompt-{number}",
            text=prompt if notes.text is None else notes.text,
            response=END_MARKS.sub("", query[len(prompt) :]),
            images=notes.images,
            observations=notes.observations,
        )
    except (ValidationError, json.JSONDecodeError) as error:
        why = explain(error.errors()) if isinstance(error, ValidationError) else "it is not JSON"
        raise BadRewardRequest(
            f"label {number} cannot be read: {why}. A label is empty, or a JSON object with any of text, images and "
            "observations."
        ) from None


def _notes(label: Any) -> PromptNotes:
    if label is None or label == "":
        return PromptNotes()
    return PromptNotes.model_validate(json.loads(label) if isinstance(label, str) else label)
