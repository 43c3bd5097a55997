"""The same config and seed give the same prompts, seeds, pairs and metrics, in another process too.

What an engine samples is left out: docs/evaluate.md says what of it is bit-exact.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPT = """
import json, sys
from pathlib import Path
from dream_ray.config import PairConfig, SourceConfig, load_config
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.evaluate.benchmarks.measure import answers_of, benchmark_metrics, outcomes
from dream_ray.evaluate.metrics import policy_metrics
from dream_ray.evaluate.paired import paired_bootstrap
from dream_ray.feedback.pairs import balance_lengths, balance_risks, make_pairs
from dream_ray.pipeline.sampling_stages import parts_of_round
from dream_ray.pipeline.store import fingerprint
from dream_ray.records import Grade, Judgement, Label, Rollout, Turn, Verdict, make_prompt, stable_id, to_row
from dream_ray.rollout.requests import sample_seed
from dream_ray.sources.demo import write_demo
from dream_ray.sources.ingest import blocks
from dream_ray.sources.raw import RawPrompt

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
config = load_config("configs/local.yaml", [f"seed={seed}"])
source = SourceConfig(path=str(write_demo(folder)))
raw = [row for _, _, rows in blocks(source, 64) for row in rows if isinstance(row, RawPrompt)]
prompts = [make_prompt(source=r.source, source_id=r.source_id, turns=[Turn(t.role, t.text, ()) for t in r.turns],
                       split=r.split, risk=r.risk, category=r.category) for r in raw][:200]

def verdict(prompt, k):  # a judge that depends on the content only
    return list(Verdict)[int(stable_id("verdict", prompt.prompt_id, k)[-1], 16) % 3]

rollouts, judgements, grades, pairs = [], [], [], []
for prompt in prompts:
    first = sample_seed(config.seed, prompt.prompt_id, 1)
    drawn = [Rollout(stable_id("rollout", "p", prompt.prompt_id, k, first + k), prompt.prompt_id, "p", k, first + k,
                     f"answer {k} " * (k + 2), "stop", 1, 1) for k in range(4)]
    found = [Judgement(r.rollout_id, r.prompt_id, verdict(prompt, r.k), None, (), 5.0, (r.seed % 11) / 10, 0, 0)
             for r in drawn]
    rollouts += drawn
    judgements += found
    grades.append(Grade(drawn[0].rollout_id, prompt.prompt_id,
                        (Label("compliance", ("fully", "partly", "not")[drawn[0].seed % 3], ""),), 0, 0))
    pairs += make_pairs(prompt.risk, drawn, found, PairConfig())
kept, _ = balance_risks(pairs, config.pairs.max_risk_ratio)
kept, _ = balance_lengths(kept, config.pairs.max_length_ratio)
verdicts = {j.prompt_id: j.verdict for j in judgements}
xstest = BENCHMARKS["xstest"]
answers = answers_of(xstest, prompts, [r for r in rollouts if r.k == 0], grades)
values = outcomes(xstest, prompts, answers)["asr_soft"]
print(json.dumps({
    "prompts": [p.prompt_id for p in prompts],
    "seeds": [r.seed for r in rollouts],
    "parts": [parts_of_round([f"train-00-{i:06d}" for i in range(20)], n, 0.3) for n in (1, 2)],
    "pairs": [to_row(p) for p in kept],
    "metrics": [to_row(m) for m in policy_metrics("p", prompts, verdicts)],
    "benchmark": [to_row(m) for m in benchmark_metrics("p", xstest, prompts, answers)],
    "change": to_row(paired_bootstrap(values, {k: not v if v is not None and k[-1] < "8" else v
                                               for k, v in values.items()}, config.seed)),
    "fingerprint": fingerprint("s", 1, config.model_dump(mode="json"), {}),
}))
"""


def deterministic_parts(folder: Path, seed: int, hash_seed: str) -> dict[str, object]:
    """All that a run computes without an engine, from another process with its own hash order."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(seed)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_another_one_other_samples(tmp_path: Path) -> None:
    one, two = (deterministic_parts(tmp_path / name, 0, hash_seed) for name, hash_seed in (("a", "1"), ("b", "2")))
    assert one.keys() == two.keys()
    for name in one:
        assert one[name] == two[name], name
    assert one["pairs"]
    other = deterministic_parts(tmp_path / "c", 1, "1")
    assert other["prompts"] == one["prompts"]
    for name in ("seeds", "pairs", "fingerprint"):
        assert other[name] != one[name], name
