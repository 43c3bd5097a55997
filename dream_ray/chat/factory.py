"""From the config to a chat model.

Contract: `make_chat` is the only place that knows which class serves which backend, and imports it only when asked, so
that no run pays for a backend that it does not use. Around a model stand, from the outside in, the response cache and the
meter: what the cache answers is not paid for.
"""

from dataclasses import dataclass
from typing import Any

from dream_ray.chat.meter import Meter, MeteredChat
from dream_ray.chat.protocol import ChatModel
from dream_ray.chat.retry import Retries
from dream_ray.config import ChatConfig, OpenAIConfig, RulesConfig, VllmConfig
from dream_ray.engine.settings import actor_options
from dream_ray.prompts import Templates
from dream_ray.stopwatch import GpuWatch


@dataclass(frozen=True)
class ChatServices:
    """What a run gives to its chat models: the prompts' wording, where replies are kept, who counts the money and the GPUs, and
    who grants retries.

    It travels to actors and replicas. No cache, no meter and no watch where they are None, and retries that each client
    grants itself.
    """

    templates: Templates
    cache_uri: str | None = None
    meter: Meter | None = None
    gpus: GpuWatch | None = None
    retries: Retries | None = None


def chat_name(config: ChatConfig) -> str:
    """What manifests and reports call the model; the rules backend says here that it is rules and not a model."""
    match config:
        case RulesConfig():
            from dream_ray.chat.rules import RulesChat

            return RulesChat().name
        case OpenAIConfig() | VllmConfig():
            return f"{config.model} ({config.backend})"


def chat_digest(config: ChatConfig) -> str:
    """What the model's answers depend on beside its config: the rules' code and word lists. Enters fingerprints."""
    match config:
        case RulesConfig():
            from dream_ray.chat.rules import digest

            return digest()
        case OpenAIConfig() | VllmConfig():
            return ""


def chat_options(config: ChatConfig, count: int) -> dict[str, Any]:
    """Ray's options for each of `count` actors or replicas that hold the model: its GPUs and its environment."""
    match config:
        case VllmConfig():
            return actor_options(config.gpus, count)
        case RulesConfig() | OpenAIConfig():
            return {}


def make_chat(config: ChatConfig, services: ChatServices) -> ChatModel:
    """The chat model that the config names. Call it where the model is to live: in the actor or replica.

    Raises ConfigError where a setting cannot work there, such as a key that the environment does not hold.
    """
    match config:
        case RulesConfig():
            from dream_ray.chat.rules import RulesChat

            return RulesChat()
        case OpenAIConfig():
            from dream_ray.chat.openai_chat import OpenAIChat

            where, ratio = f"{config.model} at {config.base_url}", config.max_retry_ratio
            budget = None if services.retries is None else services.retries.budget(where, ratio)
            endpoint = OpenAIChat(config, services.templates, budget)
            chat: ChatModel = MeteredChat(endpoint, config.price, services.meter, config.max_concurrency)
        case VllmConfig():
            from dream_ray.chat.vllm_chat import VllmChat

            chat = VllmChat(config, services.templates, services.gpus)
    if services.cache_uri is None:
        return chat
    from dream_ray.chat.cache import CachedChat

    return CachedChat(chat, config, services.templates, services.cache_uri)
