"""The money of a run that can be seen without Ray: where replies and payments lie, what was paid, who is paid at all.

Contract: reads, without Ray; ledger.py writes.
"""

import json
from collections import defaultdict

from dream_ray import files
from dream_ray.config import ChatConfig, Config, OpenAIConfig, PriceConfig


def ledger_uri(run_uri: str) -> str:
    """The folder of a run's payments."""
    return files.join(run_uri, "ledger")


def cache_uri(config: Config, run_uri: str) -> str:
    """Where replies are kept."""
    return config.cache or files.join(run_uri, "cache")


def paid_before(folder_uri: str) -> dict[str, float]:
    """USD by stage, over all attempts; empty where nothing was paid."""
    paid: dict[str, float] = defaultdict(float)
    for path in files.list_files(folder_uri, ".json"):
        content = json.loads(files.read_bytes(files.join(folder_uri, path.rsplit("/", 1)[1])))
        for stage, usd in content["paid_usd"].items():
            paid[stage] += usd
    return dict(paid)


def price_of(chat: ChatConfig | None) -> PriceConfig:
    """What the model's tokens cost: nothing where there is no endpoint."""
    return chat.price if isinstance(chat, OpenAIConfig) else PriceConfig()


def is_paid(chat: ChatConfig) -> bool:
    """True where tokens cost money."""
    return any(value for value in price_of(chat).model_dump().values())


def run_is_paid(config: Config) -> bool:
    """True where the teacher or the judge costs money."""
    return is_paid(config.teacher.chat) or is_paid(config.judge.chat)
