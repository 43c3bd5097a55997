"""The scorer for those who deploy by Serve's own config files, as a RayService does.

Contract: `build` is the import path of such a config; its `args` name a config file that the head can read. The judge,
its replicas and its token come from there; listener and address are those of the Serve config.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dream_ray.chat.factory import ChatServices
from dream_ray.config import load_config
from dream_ray.feedback.scorer import scorer_application
from dream_ray.prompts import load_templates


class Arguments(BaseModel):
    """The `args` of the application in Serve's config; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    config: str
    """YAML file of a run; its judge section, `images`, `templates` and `cache` count."""
    overrides: list[str] = Field(default_factory=list)
    """Settings, dotted, as on the command line."""


def build(arguments: Arguments) -> Any:
    """The Serve application. Raises ConfigError for settings that cannot work.

    Where the config names no `cache`, replies are not kept: a service has no run directory.
    """
    config = load_config(arguments.config, arguments.overrides)
    return scorer_application(
        config.judge, config.images, ChatServices(load_templates(config.templates), cache_uri=config.cache)
    )
