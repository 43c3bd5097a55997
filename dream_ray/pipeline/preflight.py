"""What can be found wrong before anything is loaded or started.

Contract: `check` raises ConfigError within seconds for settings that cannot work: a student that is not there, a prompt
file that is not there or holds no prompt. It imports neither Ray nor torch. A single bad row is no error here: it goes to
the errors table.
"""

from dream_ray import files
from dream_ray.config import Config, ConfigError, secret
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
