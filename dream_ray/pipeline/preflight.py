"""What can be found wrong before anything is loaded or started.

Contract: `check` raises ConfigError within seconds for settings that cannot work: a student that is not there, a template
that cannot be used, a prompt file that is not there or holds no prompt. It imports neither Ray nor torch. A single bad row
is no error here: it goes to the errors table.
"""

from dream_ray import files
from dream_ray.chat import cache
from dream_ray.config import ChatConfig, Config, ConfigError, OpenAIConfig, RulesConfig, secret
from dream_ray.pipeline.payments import run_is_paid
from dream_ray.prompts import TemplateError, load_templates
from dream_ray.sources import jsonl
from dream_ray.sources.raw import BadRow
from dream_ray.train.policy import check_model_folder


def check(config: Config) -> None:
    """Raise ConfigError for the first setting that cannot work."""
    check_model_folder(config.student.model)
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
    for index, source in enumerate(config.sources):
        where = f"sources.{index}.path = {source.path!r}"
        if not files.exists(source.path):
            raise ConfigError(
                f"{where}: there is no such file. It is read from the folder that the command runs in; name an existing "
                "prompt file. The demo's prompts are written by `dream-ray demo-prompts`."
            )
        rows = jsonl.read(source)
        first = next(rows, None)
        if first is None or (isinstance(first, BadRow) and all(isinstance(row, BadRow) for row in rows)):
            problem = f"; the first line: {first.detail}" if isinstance(first, BadRow) else ""
            raise ConfigError(
                f"{where}: the file holds no usable prompt{problem}. It needs one JSON object a line; docs/prompts.md "
                "describes the keys."
            )


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
