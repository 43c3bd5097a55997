"""From the config to a chat model.

Contract: `make_chat` is the only place that knows which class serves which backend, and imports it only when asked, so
that no run pays for a backend that it does not use.
"""

from dream_ray.chat.protocol import ChatModel
from dream_ray.config import ChatConfig


def chat_digest(config: ChatConfig) -> str:
    """What the model's answers depend on beside its config: the rules' code and word lists. Enters fingerprints."""
    match config.backend:
        case "rules":
            from dream_ray.chat.rules import digest

            return digest()


def make_chat(config: ChatConfig) -> ChatModel:
    """The chat model that the config names. Call it where the model is to live: in the actor or replica."""
    match config.backend:
        case "rules":
            from dream_ray.chat.rules import RulesChat

            return RulesChat()
