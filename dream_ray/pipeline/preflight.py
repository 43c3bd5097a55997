"""What can be found wrong before anything is loaded or started.

Contract: `check` raises ConfigError within seconds for settings that cannot work: a student that is not there, a prompt
file that is not there or holds no prompt. It imports neither Ray nor torch. A single bad row is no error here: it goes to
the errors table.
"""

from collections.abc import Sequence

from dream_ray import files
from dream_ray.chat.rules.backend import CANNOT_JUDGE
from dream_ray.config import BenchmarkConfig, ChatConfig, Config, ConfigError
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.sources import jsonl
from dream_ray.sources.raw import BadRow
from dream_ray.train.policy import check_model_folder


def check(config: Config) -> None:
    """Raise ConfigError for the first setting that cannot work."""
    check_model_folder(config.student.model)
    check_benchmarks(config.evaluate.benchmarks, config.judge.chat)
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


def check_benchmarks(chosen: Sequence[BenchmarkConfig], judge: ChatConfig) -> None:
    """Raise ConfigError for a benchmark that is chosen twice, whose data is not there or that the judge cannot judge."""
    names = [item.name for item in chosen]
    for item in chosen:
        if names.count(item.name) > 1:
            raise ConfigError(
                f"evaluate.benchmarks names {item.name!r} {names.count(item.name)} times, so its numbers would be mixed. Name "
                "it once; to measure on other data, use another run directory."
            )
        if item.source.format != "huggingface" and not files.exists(item.source.path):
            raise ConfigError(
                f"The data of the benchmark {item.name} is to lie in {item.source.path!r}, but there is nothing. "
                "docs/evaluate.md says what to download; name the folder or file as it was published."
            )
        cannot = BENCHMARKS[item.name].tasks & CANNOT_JUDGE
        if judge.backend == "rules" and cannot:
            raise ConfigError(
                f"The benchmark {item.name} asks the judge what an answer means ({', '.join(sorted(cannot))}), and the rules "
                "judge, which is no model, sees only how it is worded: every answer would end as rules_cannot_judge. Set "
                "judge.chat to a model, or leave this benchmark out."
            )
