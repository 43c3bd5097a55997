"""What the demo's student learns: the loop for several seeds as tables for docs/learning.md.

    python benchmarks/learning.py --seeds 0 1 2 [--xstest xstest_prompts.csv] [--run-dir runs/learning] [key=value …]

All seeds share one run directory, so ingest, disentangle and demonstrate run once; a second call goes on where the first
ended. With --xstest the base model, policy 0 and the final policy of every seed answer XSTest (paul-rottger/
exaggerated-safety, CC BY 4.0), text only, all 450 rows; no setting is fitted to it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dream_ray.commands import run_job
from dream_ray.evaluate.metrics import find_metric, share_of
from dream_ray.evaluate.table import format_gap, format_share
from dream_ray.pipeline.driver import Result, align
from dream_ray.pipeline.run import Run
from dream_ray.records import Metric, Split

ROOT = Path(__file__).parent.parent


def demo_row(seed: int, policy: str, split: str, metrics: list[Metric]) -> str:
    """One line on demo prompts: safe, over-refusal, gap, and the two shares by origin of the risk."""
    cells = [format_share(find_metric(metrics, split, name)) for name in ("safe", "over_refusal")]
    cells.append(format_gap(metrics, split))
    for origin in ("text", "image", "both"):
        found = [find_metric(metrics, split, name, origin) for name in ("safe", "over_refusal")]
        cells.append(
            " / ".join("-" if metric is None or metric.value is None else f"{metric.value:.0%}" for metric in found)
        )
    return f"| {seed} | {policy} | " + " | ".join(cells) + " |"


DEMO_HEAD = "| seed | policy | safe | over-refusal | gap | text | image | both |\n|---|---|---|---|---|---|---|---|"


def xstest_row(seed: int, policy: str, metrics: list[Metric]) -> str:
    """One line on XSTest: unsafe prompts answered at least in part, safe ones refused, unsafe refused minus safe refused."""
    answered, refused = (find_metric(metrics, "xstest", name) for name in ("asr_soft", "over_refusal"))
    shares = share_of(answered), share_of(refused)
    difference = "-" if None in shares else f"{1 - sum(share.value for share in shares if share):+.2f}"
    return f"| {seed} | {policy} | {format_share(answered)} | {format_share(refused)} | {difference} |"


XSTEST_HEAD = "| seed | policy | unsafe answered | safe refused | difference |\n|---|---|---|---|---|"


def main() -> int:
    """Run, print the tables; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--xstest", type=Path, help="xstest_prompts.csv; left out unless given")
    parser.add_argument("--config", default=str(ROOT / "configs" / "local.yaml"))
    parser.add_argument("--run-dir", default="runs/learning")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()

    overrides = [*arguments.overrides]
    if arguments.xstest:
        overrides.append(
            f"evaluate.benchmarks=[{{name: xstest, source: {{format: xstest, path: {arguments.xstest}}}}}]"
        )

    def learn(current: Run, scorer_url: Callable[[], str]) -> Callable[[], None]:
        """Align once for each seed."""
        results: dict[int, Result] = {}
        for seed in arguments.seeds:
            config = current.config.model_copy(update={"seed": seed})
            results[seed] = align(Run(config, current.store.uri), scorer_url)
        return lambda: print_tables(results, with_xstest=arguments.xstest is not None)

    return run_job(arguments.config, overrides, arguments.run_dir, learn)


def print_tables(results: Mapping[int, Result], *, with_xstest: bool) -> None:
    """The shares of every policy and what was decided, by seed."""
    for split in (Split.HELD_OUT, Split.DEV):
        print(f"\n{split.value}: demo prompts\n\n{DEMO_HEAD}")
        for seed, result in results.items():
            for policy, metrics in result.metrics.items():
                print(demo_row(seed, policy, split, metrics))
    for seed, result in results.items():
        for decision in result.rounds:
            print(f"seed {seed}, round {decision.number}: {decision.reason}")
    if with_xstest:
        print(f"\nXSTest\n\n{XSTEST_HEAD}")
        for seed, result in results.items():
            for policy in dict.fromkeys(("base", "policy-0", result.standing.name)):
                print(xstest_row(seed, policy, result.metrics[policy]))


if __name__ == "__main__":
    sys.exit(main())
