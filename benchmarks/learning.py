"""What the demo's student learns: the loop for several seeds, and every policy on XSTest, as a table for docs/learning.md.

    python benchmarks/learning.py --seeds 0 1 2 [--xstest xstest_prompts.csv] [--run-dir runs/learning] [key=value …]

All seeds share one run directory, so ingest, disentangle and demonstrate run once; a second call goes on where the first
ended. XSTest (paul-rottger/exaggerated-safety, CC BY 4.0) is text only and measured as it is published, all 450 rows;
nothing was tuned on it. Its rows enter a run of their own, of which only the policies' answers are made.
"""

import argparse
import csv
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from dream_ray.config import Config, load_config
from dream_ray.evaluate.metrics import find_metric
from dream_ray.evaluate.table import format_gap, format_share
from dream_ray.pipeline.cluster import connected, scorer
from dream_ray.pipeline.data_stages import disentangle, ingest
from dream_ray.pipeline.driver import Result, align
from dream_ray.pipeline.plans import answers_job
from dream_ray.pipeline.run import Run
from dream_ray.pipeline.sampling_stages import evaluate, sample
from dream_ray.records import Metric, Split
from dream_ray.train.policy import Policy

ROOT = Path(__file__).parent.parent


def write_xstest(table: Path, folder: Path) -> Path:
    """XSTest's CSV as a prompt file, every row held out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "xstest.jsonl"
    with table.open(newline="", encoding="utf-8") as source, path.open("w", encoding="utf-8") as target:
        for row in csv.DictReader(source):
            risk = {"safe": "benign", "unsafe": "risky"}[row["label"]]
            line = {"id": row["id"], "turns": [{"text": row["prompt"]}], "split": "held_out", "risk": risk}
            target.write(json.dumps(line) + "\n")
    return path


def policies(seed: int, result: Result) -> list[Policy]:
    """The policies of a seed, under names that tell the seeds apart; the base model is the same for all."""
    return [Policy(public_name(seed, name), policy.model, policy.adapter) for name, policy in result.policies.items()]


def public_name(seed: int, policy: str) -> str:
    """What a policy is called among those of all seeds."""
    return policy if policy == "base" else f"seed-{seed}-{policy}"


def xstest_metrics(
    config: Config, table: Path, run_dir: str, wanted: list[Policy], scorer_url: Callable[[], str]
) -> list[Metric]:
    """Every policy's metrics on XSTest."""
    prompts_file = write_xstest(table, Path(run_dir))
    settings = config.model_dump() | {
        "name": f"{config.name}-xstest",
        "sources": [{"path": str(prompts_file), "name": "xstest"}],
        "evaluate": {"splits": [Split.HELD_OUT]},
    }
    run = Run(Config.model_validate(settings), f"{run_dir}/xstest")
    run.store.claim(run.config)
    prompts = ingest(run)
    observed = disentangle(run, prompts)
    sampled = sample(run, [answers_job(run.config, policy, None) for policy in wanted], prompts, observed, scorer_url)
    return [metric for policy in wanted for metric in evaluate(run, policy, prompts, sampled[policy.name])[1]]


def row(seed: int, policy: str, split: str, metrics: list[Metric]) -> str:
    """One line of the table: safe, over-refusal, gap, and the held-out shares by origin where there are any."""
    cells = [format_share(find_metric(metrics, split, name)) for name in ("safe", "over_refusal")]
    cells.append(format_gap(metrics, split))
    for origin in ("text", "image", "both"):
        found = [find_metric(metrics, split, name, origin) for name in ("safe", "over_refusal")]
        cells.append(
            " / ".join("-" if metric is None or metric.value is None else f"{metric.value:.0%}" for metric in found)
        )
    return f"| {seed} | {policy} | " + " | ".join(cells) + " |"


HEAD = "| seed | policy | safe | over-refusal | gap | text | image | both |\n|---|---|---|---|---|---|---|---|"


def main() -> int:
    """Run, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--xstest", type=Path, help="xstest_prompts.csv; left out unless given")
    parser.add_argument("--config", default=str(ROOT / "configs" / "local.yaml"))
    parser.add_argument("--run-dir", default="runs/learning")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    for name in ("httpx", "httpcore", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)

    config = load_config(arguments.config, arguments.overrides)
    results: dict[int, Result] = {}
    public: list[Metric] = []
    first = Run(config, arguments.run_dir)
    with connected(config), scorer(first) as scorer_url:
        for seed in arguments.seeds:
            run = Run(config.model_copy(update={"seed": seed}), arguments.run_dir)
            run.store.claim(run.config)
            results[seed] = align(run, scorer_url)
        if arguments.xstest:
            wanted = list({p.name: p for seed, result in results.items() for p in policies(seed, result)}.values())
            public = xstest_metrics(config, arguments.xstest, arguments.run_dir, wanted, scorer_url)

    for split in (Split.HELD_OUT, Split.DEV):
        print(f"\n{split.value}: demo prompts\n\n{HEAD}")
        for seed, result in results.items():
            for policy, metrics in result.metrics.items():
                print(row(seed, policy, split, metrics))
    for seed, result in results.items():
        for decision in result.rounds:
            print(f"seed {seed}, round {decision.number}: {decision.reason}")
    if public:
        print(f"\nXSTest\n\n{HEAD}")
        for seed, result in results.items():
            for name in result.metrics:
                own = [metric for metric in public if metric.policy == public_name(seed, name)]
                print(row(seed, name, Split.HELD_OUT, own))
    return 0


if __name__ == "__main__":
    sys.exit(main())
