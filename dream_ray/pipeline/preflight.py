"""What can be found wrong before anything is loaded or started.

Contract: `check` raises ConfigError within seconds for settings that cannot work: a student that is not there or would be
trained in vain, a template that cannot be used, a prompt file that is not there or holds no prompt. It imports neither Ray nor
torch. A single bad row is no error here: it goes to the errors table.
"""

import logging
from collections.abc import Iterator

from dream_ray import files
from dream_ray.chat import cache
from dream_ray.chat.rules.backend import CANNOT_JUDGE
from dream_ray.config import ChatConfig, Config, ConfigError, OpenAIConfig, RulesConfig, SourceConfig, secret
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.pipeline.payments import run_is_paid
from dream_ray.prompts import TemplateError, load_templates
from dream_ray.sources.generic import is_hub_name
from dream_ray.sources.raw import BadRow, RawPrompt, Row
from dream_ray.sources.registry import check_terms, read
from dream_ray.train.families import check_student
from dream_ray.train.policy import check_model_folder

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Raise ConfigError for the first setting that cannot work."""
    check_model_folder(config.student.model)
    check_student(config.student, config.lora, config.rollout)
    secret(config.judge.token_env, "judge.token_env")
    if not config.judge.opens_uris:
        raise ConfigError(
            "judge.image_uris is off (unset, it is on for a judge.host of loopback only), but a run names its images to "
            "the scorer by uri. Set judge.image_uris=true, or listen on 127.0.0.1."
        )
    _check_budget(config)
    try:
        load_templates(config.templates)
    except TemplateError as error:
        raise ConfigError(f"templates = {config.templates!r}: {error}") from None
    check_benchmarks(config)
    for index, source in enumerate(config.sources):
        if warning := check_terms(source, f"sources.{index}"):
            log.warning(warning)
        _check_source(source, f"sources.{index}")


def _check_source(source: SourceConfig, where: str) -> None:
    """Raise ConfigError for a source that is not there or holds no prompt."""
    where += f".path = {source.path!r}"
    if not files.exists(source.path) and not is_hub_name(source):
        raise ConfigError(
            f"{where}: there is no such file or folder. It is read from the folder that the command runs in; name an "
            "existing one. The demo's prompts are written by `dream-ray demo-prompts`."
        )
    first, problem = _first(read(source))
    if first is None:
        raise ConfigError(
            f"{where}: it holds no usable prompt of the format {source.format}{problem}. `dream-ray sources` says what "
            "each format expects; docs/prompts.md describes the keys of jsonl."
        )


def check_benchmarks(config: Config) -> None:
    """Raise ConfigError for a benchmark that is chosen twice, whose data is not there, whose answers have no room or that the
    judge cannot judge."""
    names = [item.name for item in config.evaluate.benchmarks]
    for item in config.evaluate.benchmarks:
        benchmark = BENCHMARKS[item.name]
        if names.count(item.name) > 1:
            raise ConfigError(
                f"evaluate.benchmarks names {item.name!r} {names.count(item.name)} times, so its numbers would be mixed. Name "
                "it once; to measure on other data, use another run directory."
            )
        cannot = benchmark.tasks & CANNOT_JUDGE
        if config.judge.chat.backend == "rules" and cannot:
            raise ConfigError(
                f"The benchmark {item.name} asks the judge what an answer means ({', '.join(sorted(cannot))}), and the rules "
                "judge, which is no model, sees only how it is worded: every answer would end as rules_cannot_judge. Set "
                "judge.chat to a model, or leave this benchmark out."
            )
        tokens = config.evaluate.answer_tokens(benchmark.max_tokens)
        if tokens >= config.student.max_model_len:
            raise ConfigError(
                f"The benchmark {item.name} allows answers of {tokens} tokens, but student.max_model_len = "
                f"{config.student.max_model_len} has to hold prompt and answer: every prompt would be too long. Raise it, or "
                "set evaluate.max_tokens lower."
            )
        _check_source(item.source, f"evaluate.benchmarks, {item.name}, source")


def check_cache(config: Config) -> None:
    """Raise ConfigError where replies could not be kept in the folder that the config names. Writes a probe there."""
    if config.cache is not None and any(not isinstance(chat, RulesConfig) for chat in _chats(config)):
        cache.check_cache(config.cache)


def _check_budget(config: Config) -> None:
    """A budget stops nothing where an endpoint is asked and none has a price."""
    endpoints = [chat for chat in _chats(config) if isinstance(chat, OpenAIConfig)]
    if config.budget.max_cost_usd is not None and endpoints and not run_is_paid(config):
        raise ConfigError(
            f"budget.max_cost_usd = {config.budget.max_cost_usd}, but neither teacher nor judge has a price, so the budget "
            "would never be reached. Set teacher.chat.price and judge.chat.price (USD per million tokens), or leave the "
            "budget out if the endpoints cost nothing."
        )


def _chats(config: Config) -> tuple[ChatConfig, ChatConfig]:
    return config.teacher.chat, config.judge.chat


def _first(rows: Iterator[Row]) -> tuple[RawPrompt | None, str]:
    """The first prompt, None where there is none; and what is wrong with the first bad row before it."""
    problem = ""
    for row in rows:
        if isinstance(row, RawPrompt):
            return row, problem
        if isinstance(row, BadRow) and not problem:
            problem = f"; the first row: {row.detail}"
    return None, problem
