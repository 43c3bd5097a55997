"""Asking the scorer: `ScorerClient` from anywhere, `JudgeActor` from Ray Data.

Contract: `ScorerClient.score` gives one result per item, or raises `RequestFailed` after the tries that the config allows.
Only what may pass by itself is retried: no connection, no answer in time, 408, 409, 429, 5xx. `JudgeActor` takes and
returns pyarrow tables with the columns `prompt` (Prompt), `observations` (list of Observation), `rollout` (Rollout or
null), `error` (ErrorRow or null), `job` (string), and adds `judgement` (Judgement or null). A row that came with an error
passes through; one that cannot be judged keeps its rollout and gets an error with stage "judge".
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pyarrow as pa
from pydantic import ValidationError

from dream_ray.chat.ask import all_of
from dream_ray.chat.fields import transcript
from dream_ray.config import JudgeConfig, secret
from dream_ray.feedback.wire import ScoreItem, ScoreRequest, ScoreResponse, ScoreResult, explain
from dream_ray.outcomes import require_same_rows, struct_of
from dream_ray.records import ErrorRow, Judgement, Observation, Prompt, Rollout, from_row, to_row

STAGE = "judge"
"""The stage's name in error rows."""
ITEMS_PER_REQUEST = 8
"""Answers sent at once: few, so that a lost request costs little and the deadline is about answers, not about
batches."""
REQUESTS_AT_ONCE = 4
"""Requests of one actor under way: enough to keep a replica busy while others wait for the judge. There may be an actor for
each replica."""
PARTS_AT_ONCE = 2
"""Parts in an actor at a time: the second one fills the places of a part whose last answers are long in being judged."""
RETRIED_STATUS = frozenset({408, 409, 429})
"""Statuses below 500 that may pass by themselves."""
FIRST_PAUSE_S = 0.5
"""Pause after the first failed try, before jitter; doubles with each."""
LONGEST_PAUSE_S = 20.0
"""Most that the pause grows to."""
DETAIL_CHARS = 500
"""How much of a server's message an error row keeps."""


@dataclass(frozen=True)
class Failed:
    """A try that got no results."""

    reason: str
    detail: str


class RequestFailed(RuntimeError):
    """No results after `attempts` tries: a short `reason` and a `detail` for the errors table."""

    def __init__(self, reason: str, detail: str, attempts: int):
        super().__init__(f"The scorer gave no results after {attempts} tries; the last one ended as {reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.attempts = attempts


def authorization(token_env: str) -> dict[str, str]:
    """The header that carries the token of the variable `token_env`; empty where that is "". Raises ConfigError."""
    token = secret(token_env, "judge.token_env")
    return {} if token is None else {"authorization": f"Bearer {token}"}


class ScorerClient:
    """One HTTP client of a scorer, for one event loop. Reads the token, where there is one, from the environment."""

    def __init__(self, url: str, config: JudgeConfig):
        self._url = f"{url.rstrip('/')}/v1/score"
        self._config = config
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        # No proxy of the environment may see these texts; the deadline of the whole call is set in _attempt.
        self._client = httpx.AsyncClient(trust_env=False, timeout=None, headers=authorization(config.token_env))

    async def score(self, items: Sequence[ScoreItem]) -> tuple[tuple[ScoreResult, ...], int]:
        """The results of one request, in the order of the items, and the tries that it took. Raises RequestFailed."""
        body = ScoreRequest(items=tuple(items)).model_dump_json()
        for attempt in range(1, self._config.attempts + 1):
            async with self._slots:
                outcome, retry = await self._attempt(body)
            if not isinstance(outcome, Failed):
                return outcome, attempt
            failed = outcome
            if not retry or attempt == self._config.attempts:
                break
            # Jitter, so that actors that failed together do not come back together.
            pause = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        raise RequestFailed(failed.reason, failed.detail, attempt)

    async def _attempt(self, body: str) -> tuple[tuple[ScoreResult, ...] | Failed, bool]:
        """The results, or why there are none, and whether another try may help."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                headers = {"content-type": "application/json"}
                response = await self._client.post(self._url, content=body, headers=headers)
        except TimeoutError:
            return Failed("judge_timeout", f"no answer within {self._config.timeout_s:g} s"), True
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            return Failed("judge_unreachable", repr(error)), True
        if response.status_code == 200:
            return ScoreResponse.model_validate_json(response.content).results, False
        status = response.status_code
        retry = status in RETRIED_STATUS or status >= 500
        return Failed(f"judge_http_{status}", response.text[:DETAIL_CHARS]), retry

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()


class JudgeActor:
    """Ray Data actor class (batch_format="pyarrow") around one client; see the module's contract for the columns."""

    def __init__(self, url: str, config: JudgeConfig):
        self._client = ScorerClient(url, config)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with `judgement` added. Raises ValueError where a row has neither rollout nor error, or an id
        twice."""
        rows = batch.select(["prompt", "observations", "rollout", "error"]).to_pylist()
        positions = [position for position, row in enumerate(rows) if row["error"] is None]
        outcomes = await self._judge([rows[position] for position in positions])
        errors: list[dict[str, Any] | None] = [row["error"] for row in rows]
        judgements: list[dict[str, Any] | None] = [None] * len(rows)
        for position, outcome in zip(positions, outcomes, strict=True):
            target = errors if isinstance(outcome, ErrorRow) else judgements
            target[position] = to_row(outcome)
        table = _set_column(batch, "error", pa.array(errors, type=struct_of(ErrorRow)))
        return table.append_column("judgement", pa.array(judgements, type=struct_of(Judgement)))

    async def _judge(self, rows: Sequence[dict[str, Any]]) -> list[Judgement | ErrorRow]:
        """One outcome per sampled row, in order."""
        items = [_item(row) for row in rows]
        sent = [item for item in items if isinstance(item, ScoreItem)]
        answered = iter(
            [outcome for chunk in await all_of([self._score(chunk) for chunk in chunked(sent)]) for outcome in chunk]
        )
        outcomes = [item if isinstance(item, ErrorRow) else next(answered) for item in items]
        found = [outcome.row_id if isinstance(outcome, ErrorRow) else outcome.rollout_id for outcome in outcomes]
        require_same_rows(STAGE, [row["rollout"]["rollout_id"] for row in rows], found)
        return outcomes

    async def _score(self, items: Sequence[ScoreItem]) -> list[Judgement | ErrorRow]:
        """One outcome per item, in order."""
        try:
            results, attempts = await self._client.score(items)
        except RequestFailed as failed:
            return [ErrorRow(STAGE, item.rollout_id, failed.reason, failed.detail, failed.attempts) for item in items]
        return _outcomes(items, results, attempts)


def chunked(items: Sequence[ScoreItem]) -> list[Sequence[ScoreItem]]:
    """Items as requests of a good size."""
    return [items[start : start + ITEMS_PER_REQUEST] for start in range(0, len(items), ITEMS_PER_REQUEST)]


def _item(row: dict[str, Any]) -> ScoreItem | ErrorRow:
    """The request's item for a sampled row, checked here so that a row over the limits does not cost its neighbours."""
    if row["rollout"] is None or row["observations"] is None:
        raise ValueError(
            f"The row of prompt {row['prompt']['prompt_id']} has no error, but None for its rollout or its "
            "observations, so there is nothing to judge it by. Give each sampled row a rollout or an error, and a list "
            "of observations, empty where nothing was found."
        )
    prompt, rollout = from_row(Prompt, row["prompt"]), from_row(Rollout, row["rollout"])
    try:
        return ScoreItem(
            rollout_id=rollout.rollout_id,
            prompt_id=prompt.prompt_id,
            text=transcript(prompt.turns),
            images=tuple(image.uri for image in prompt.images),
            observations=tuple(from_row(Observation, item) for item in row["observations"]),
            response=rollout.text,
        )
    except ValidationError as error:
        return ErrorRow(STAGE, rollout.rollout_id, "judge_item_over_limits", explain(error.errors()), 1)


def _outcomes(items: Sequence[ScoreItem], results: Sequence[ScoreResult], attempts: int) -> list[Judgement | ErrorRow]:
    """Results beside their items; a result without judgement becomes an error row."""
    outcomes: list[Judgement | ErrorRow] = []
    for item, result in zip(items, results, strict=True):
        if result.judgement is not None:
            outcomes.append(result.judgement)
        else:
            outcomes.append(
                ErrorRow(
                    stage=STAGE,
                    row_id=item.rollout_id,
                    reason=result.reason or "no_reason",
                    detail=result.detail,
                    attempts=result.attempts or attempts,
                    fingerprint=result.fingerprint,
                    prompt_tokens=result.prompt_tokens,
                    completion_tokens=result.completion_tokens,
                    cached_tokens=result.cached_tokens,
                )
            )
    return outcomes


def _set_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
