"""What `dream-ray calibrate` does: read, judge, print, write.

Contract: `run_calibration` prints the numbers and returns whether the judge gave enough verdicts for them to count. Settings
and data are checked before the judge is made. Prompts and answers reach no log and no terminal, only the file in `out`.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console

from dream_ray import files
from dream_ray.chat.ask import Usage
from dream_ray.chat.factory import ChatServices, chat_digest, chat_name, make_chat
from dream_ray.chat.meter import cost_usd
from dream_ray.chat.protocol import Task
from dream_ray.config import ChatConfig, Config, ConfigError, ImageConfig, OpenAIConfig, RulesConfig, load_config
from dream_ray.evaluate.calibrate import SetResult, calibrate, numbers
from dream_ray.evaluate.calibration_report import as_json, disagreements, render_labels, render_numbers
from dream_ray.evaluate.labelled import LabelledSet, column_names, label_map, read_labelled
from dream_ray.evaluate.metrics import MAX_UNJUDGED
from dream_ray.prompts import load_templates

ALL_SETS = "all sets together"


class JudgeChoice(StrEnum):
    """Whose verdicts are compared with people's."""

    RULES = "rules"
    CONFIG = "config"


def run_calibration(
    paths: Sequence[str], config_path: Path | None, choice: JudgeChoice, labels: str, columns: str, out: str | None
) -> bool:
    """False where more answers went without a verdict than a stage may fail on: then the numbers are about other answers.

    Raises ConfigError, TemplateError or LabelledDataError where something given cannot work.
    """
    config = load_config(config_path) if config_path else None
    if config is None and choice is JudgeChoice.CONFIG:
        raise ConfigError("--judge config needs the config whose judge is meant. Name it with --config.")
    chat = config.judge.chat if config and choice is JudgeChoice.CONFIG else RulesConfig()
    services = ChatServices(
        templates=load_templates(config.templates if config else None), cache_uri=config.cache if config else None
    )
    sets = read_labelled(paths, label_map(labels), column_names(columns))
    usage = Usage()
    results = _judge(chat, services, sets, config.images if config else ImageConfig(), usage)

    every = [numbers(result.data.name, [result]) for result in results]
    if len(results) > 1:
        every.append(numbers(ALL_SETS, results))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(render_labels(sets))
    for part in every:
        console.print(render_numbers(part))
    console.print(f"judge: {chat_name(chat)}", highlight=False, markup=False)
    if usage.prompt_tokens or usage.completion_tokens:
        console.print(_tokens(chat, usage), highlight=False)
    if out is not None:
        judge: dict[str, Any] = {
            "name": chat_name(chat),
            **chat.identity(),
            "digest": chat_digest(chat),
            "templates": services.templates.digests(Task),
        }
        for name, content in (
            ("calibration.json", as_json(judge, sets, every)),
            ("disagreements.csv", disagreements(results)),
        ):
            files.write_atomic(files.join(out, name), content)
            console.print(f"written: {files.join(out, name)}", soft_wrap=True, markup=False, highlight=False)
    return _enough(results, config, console)


def _judge(
    chat: ChatConfig, services: ChatServices, sets: Sequence[LabelledSet], images: ImageConfig, usage: Usage
) -> list[SetResult]:
    async def ask_all() -> list[SetResult]:
        # Made inside the loop that it answers in.
        return await calibrate(
            make_chat(chat, services), sets, images, usage, _progress(sum(len(s.rows) for s in sets))
        )

    return asyncio.run(ask_all())


def _progress(total: int) -> Callable[[], None]:
    """Says on stderr, about twenty times, how many answers are judged; a log shows as much as a terminal."""
    done = 0
    step = max(total // 20, 1)

    def advance() -> None:
        nonlocal done
        done += 1
        if done % step == 0 or done == total:
            print(f"judged {done} of {total} answers", file=sys.stderr, flush=True)

    return advance


def _tokens(chat: ChatConfig, usage: Usage) -> str:
    text = f"tokens: {usage.prompt_tokens} in ({usage.cached_tokens} of them cached), {usage.completion_tokens} out"
    if not isinstance(chat, OpenAIConfig):
        return text
    cost = cost_usd(chat.price, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return f"{text}; {cost:.2f} USD by the config's prices"


def _enough(results: Sequence[SetResult], config: Config | None, console: Console) -> bool:
    """Whether the share without a verdict is within the limit; says why not, or how many there are."""
    reasons = Counter(item.reason for result in results for item in result.outcomes if item.verdict is None)
    total = sum(len(result.outcomes) for result in results)
    limit = config.max_failure_rate if config else MAX_UNJUDGED
    if not reasons:
        return True
    found = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    console.print(f"without a verdict: {reasons.total()} of {total} ({found})", markup=False, highlight=False)
    return reasons.total() <= limit * total
