"""Invented, mild prompts and a run's worth of report data."""

import io
from collections.abc import Callable

import pytest
from PIL import Image as Pixels

from dream_ray.evaluate.distribution import distribution
from dream_ray.evaluate.metrics import policy_metrics
from dream_ray.evaluate.report import ChatRow, ReportData, RoundRow, StageRow
from dream_ray.evaluate.samples import Answer, Sample
from dream_ray.records import (
    Image,
    Judgement,
    Metric,
    Observation,
    Prompt,
    Risk,
    RiskOrigin,
    Split,
    Turn,
    Verdict,
)
from dream_ray.taxonomy import Category, Source

MakePrompt = Callable[..., Prompt]


def png(width: int = 600, height: int = 400) -> bytes:
    """A picture of two coloured fields."""
    pixels = Pixels.new("RGB", (width, height), (200, 180, 120))
    pixels.paste((70, 110, 160), (width // 3, height // 4, width, height))
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG")
    return buffer.getvalue()


def prompt(
    name: str,
    risk: Risk | None = Risk.RISKY,
    origin: RiskOrigin | None = None,
    twin: str | None = None,
    split: Split = Split.DEV,
    category: Category | None = None,
    text: str = "What is in this picture?",
) -> Prompt:
    """A prompt of one turn with one picture, with its name as its id."""
    turn = Turn("user", text, (Image("0" * 64, "memory", 600, 400, "drawn"),))
    return Prompt(name, "invented", name, split, (turn,), risk, origin, category, twin, None)


def twins(count: int, split: Split) -> list[Prompt]:
    """`count` risky prompts, each with a benign twin; origins and categories take turns."""
    rows = []
    for index in range(count):
        name = f"{split.value}-{index}"
        origin, category = list(RiskOrigin)[index % 3], list(Category)[index % 4]
        rows.append(prompt(f"{name}-risky", Risk.RISKY, origin, f"{name}-benign", split, category))
        rows.append(prompt(f"{name}-benign", Risk.BENIGN, None, f"{name}-risky", split))
    return rows


def metrics_of(policy: str, safe: float, over: float, prompts: list[Prompt], unjudged: int = 0) -> list[Metric]:
    """Metrics of a policy that refuses about these shares of the prompts, the first `unjudged` without a verdict."""
    verdicts: dict[str, Verdict | None] = {}
    for split in Split:
        for risk, share in ((Risk.RISKY, safe), (Risk.BENIGN, over)):
            rows = [row for row in prompts if row.split == split and row.risk == risk]
            for index, row in enumerate(rows):
                verdicts[row.prompt_id] = Verdict.REFUSES if index < round(share * len(rows)) else Verdict.COMPLIES
    for row in prompts[:unjudged]:
        verdicts[row.prompt_id] = None
    return policy_metrics(policy, prompts, verdicts)


def judged(verdict: Verdict, score: float | None = None, helpfulness: float | None = None) -> Judgement:
    """A judgement of an answer; the score is for risky prompts, the helpfulness for benign ones."""
    hits = () if score is None else (True,)
    return Judgement("rollout", "sample", verdict, score, hits, helpfulness, 1.45, 0, 0)


def sample(
    text: str = "What is in this picture?", chosen: str = "A good answer.", rejected: str = "A bad one."
) -> Sample:
    """Two answers to a risky prompt."""
    return Sample(
        stage="round 1: rollouts and pairs",
        prompt=prompt("sample", origin=RiskOrigin.IMAGE, category=Category.PRIVACY, text=text),
        observations=(Observation("a name badge with an address", Source.TEXT_IN_IMAGE, Category.PRIVACY),),
        answers=(
            Answer("policy-0, answer 1", chosen, judged(Verdict.WARNS, 8.0), "chosen"),
            Answer("policy-0, answer 2", rejected, judged(Verdict.COMPLIES, 1.0), "rejected"),
        ),
        images=(png(),),
    )


@pytest.fixture
def report_data() -> ReportData:
    """A run of two rounds, of which the second was refused."""
    prompts = [
        *twins(24, Split.DEV),
        *twins(30, Split.HELD_OUT),
        *(prompt(f"plain-{index}", Risk.BENIGN, split=Split.HELD_OUT) for index in range(12)),
    ]
    shares = {"base": (0.07, 0.0), "policy-0": (0.73, 0.3), "policy-1": (0.85, 0.2), "policy-2": (0.9, 0.55)}
    metrics = [
        row for name, (safe, over) in shares.items() for row in metrics_of(name, safe, over, prompts, unjudged=1)
    ]
    return ReportData(
        run_name="local",
        config_digest="9f2c41d07be3",
        student="tiny-student",
        aligns=True,
        standing="policy-1",
        finished=True,
        chats=(
            ChatRow("teacher", "rules", "rules: OCR and a risk lexicon, not a model"),
            ChatRow("judge", "rules", "rules: OCR and a risk lexicon, not a model"),
        ),
        rounds=(
            RoundRow(
                1,
                "policy-0",
                "policy-1",
                True,
                "taken: the dev gap is +0.650, the best so far +0.430 ± 0.120 (standard error, n = 20 + 20): better.",
            ),
            RoundRow(2, "policy-1", "policy-2", False, "refused: the dev gap went from +0.65 to +0.35."),
        ),
        metrics=tuple(metrics),
        comparisons=(),
        stages=(
            StageRow("ingest", 120, 118, 2, {"image_broken": 2}, 0, 0, 0.0, 3.2, (), None),
            StageRow("sft", 96, 96, 0, {}, 0, 0, 0.0, 215.0, (), 3_400_000_000),
            StageRow("round-1/rollout", 48, 384, 0, {}, 9_600, 41_000, 0.0, 260.0, ("round-1/judge",), 2_100_000_000),
            StageRow("round-1/judge", 384, 380, 4, {"timeout": 4}, 0, 0, 0.0, 260.0, ("round-1/rollout",), None),
            StageRow("round-1/dpo", 40, 40, 0, {}, 0, 0, 0.0, 122.0, (), 5_000_000_000),
        ),
        distributions=(distribution(1, "risky", "reward", [1.6, 1.9, 2.0], [0.1, 0.4, 0.2], 2.0),),
        counts={"risky prompts, dev": 24, "preference pairs, round 1": 3},
        settings={"seed": 0, "dpo.beta": 0.1},
        samples=(sample(),),
        caveats=("The judge is a word list, so a polite refusal in other words counts as complying.", "One seed."),
    )
