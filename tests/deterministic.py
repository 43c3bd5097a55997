"""Print all that a run computes without an engine, as JSON: `python -m tests.deterministic FOLDER SEED`."""

import json
import sys
from pathlib import Path

from dream_ray.config import PairConfig, SourceConfig, load_config
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.evaluate.benchmarks.measure import answers_of, benchmark_metrics, outcomes
from dream_ray.evaluate.metrics import policy_metrics
from dream_ray.evaluate.paired import paired_bootstrap
from dream_ray.feedback.pairs import balance_lengths, balance_shifts, make_pairs
from dream_ray.pipeline.plans import parts_of_round
from dream_ray.pipeline.store import fingerprint
from dream_ray.records import Grade, Judgement, Label, Rollout, Turn, Verdict, make_prompt, stable_id, to_row
from dream_ray.rollout.requests import sample_seed
from dream_ray.sources.demo import write_demo
from dream_ray.sources.raw import RawPrompt
from dream_ray.sources.registry import read

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
config = load_config("configs/local.yaml", [f"seed={seed}"])
source = SourceConfig(path=str(write_demo(folder)))
raw = [row for row in read(source) if isinstance(row, RawPrompt)]
prompts = [
    make_prompt(
        source=r.source,
        source_id=r.source_id,
        turns=[Turn(t.role, t.text, ()) for t in r.turns],
        split=r.split,
        risk=r.risk,
        category=r.category,
    )
    for r in raw
][:200]


def verdict(prompt, k):  # a judge that depends on the content only
    return list(Verdict)[int(stable_id("verdict", prompt.prompt_id, k)[-1], 16) % 3]


rollouts, judgements, grades, pairs = [], [], [], []
for prompt in prompts:
    first = sample_seed(config.seed, prompt.prompt_id, 1)
    drawn = [
        Rollout(
            stable_id("rollout", "p", prompt.prompt_id, k, first + k),
            prompt.prompt_id,
            "p",
            k,
            first + k,
            f"answer {k} " * (k + 9),
            "stop",
            1,
            1,
        )
        for k in range(4)
    ]
    found = [
        Judgement(r.rollout_id, r.prompt_id, verdict(prompt, r.k), None, (), 5.0, (r.seed % 11) / 10, 0, 0)
        for r in drawn
    ]
    rollouts += drawn
    judgements += found
    grades.append(
        Grade(
            drawn[0].rollout_id,
            prompt.prompt_id,
            (Label("compliance", ("fully", "partly", "not")[drawn[0].seed % 3], ""),),
            0,
            0,
        )
    )
    pairs += make_pairs(prompt.risk, drawn, found, PairConfig())
kept, _ = balance_shifts(pairs, config.pairs.max_shift_ratio)
kept, _ = balance_lengths(kept, config.pairs.max_length_ratio)
verdicts = {j.prompt_id: j.verdict for j in judgements}
xstest = BENCHMARKS["xstest"]
answers = answers_of(xstest, prompts, [r for r in rollouts if r.k == 0], grades)
values = outcomes(xstest, prompts, answers)["asr_soft"]
print(
    json.dumps(
        {
            "prompts": [p.prompt_id for p in prompts],
            "seeds": [r.seed for r in rollouts],
            "parts": [parts_of_round([f"train-00-{i:06d}" for i in range(20)], n, 0.3) for n in (1, 2)],
            "pairs": [to_row(p) for p in kept],
            "metrics": [to_row(m) for m in policy_metrics("p", prompts, verdicts)],
            "benchmark": [to_row(m) for m in benchmark_metrics("p", xstest, prompts, answers)],
            "change": to_row(
                paired_bootstrap(
                    values, {k: not v if v is not None and k[-1] < "8" else v for k, v in values.items()}, config.seed
                )
            ),
            "fingerprint": fingerprint("s", 1, config.model_dump(mode="json"), {}),
        }
    )
)
