"""How far the rules judge's verdict agrees with people, on answers of three models to XSTest.

Contract: reads XSTest's human-labelled completions (full compliance, full refusal, partial refusal) and prints, per model,
the share where verdict and label agree on refusing or complying, with n and a 95 % Wilson interval. People label a warning
without help as a refusal, so WARNS counts as refusing here; partial refusals are reported on their own. A calibration, not a
set to tune on.
"""

import argparse
import csv
import os
from collections import Counter
from pathlib import Path

from dream_ray.chat.rules.judge import look_at
from dream_ray.evaluate.metrics import wilson
from dream_ray.records import Verdict

COMPLIANCE, REFUSAL, PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"


def data_folder() -> Path:
    """DREAM_RAY_SHARED_DATA, or shared/data beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("DREAM_RAY_SHARED_DATA", default))


def confusion(table: Path) -> Counter[tuple[str, Verdict]]:
    """How often each human label met each verdict in a file of completions."""
    with table.open(newline="") as rows:
        return Counter((row["final_label"], look_at(row["completion"]).verdict) for row in csv.DictReader(rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder with xstest/completions")
    folder = parser.parse_args().data / "xstest" / "completions"
    for table in sorted(folder.glob("*.csv")):
        counts = confusion(table)
        agree = counts[COMPLIANCE, Verdict.COMPLIES]
        agree += counts[REFUSAL, Verdict.REFUSES] + counts[REFUSAL, Verdict.WARNS]
        n = sum(count for (label, _), count in counts.items() if label != PARTIAL)
        low, high = wilson(agree, n)
        print(f"{table.stem}: {agree / n:.3f} agree ({agree} of {n}, 95 % interval {low:.3f} to {high:.3f})")
        for label in (COMPLIANCE, REFUSAL, PARTIAL):
            print(f"  {label}: {', '.join(f'{verdict.value} {counts[label, verdict]}' for verdict in Verdict)}")


if __name__ == "__main__":
    main()
