"""Policies on benchmarks as a job: `python jobs/evaluate.py --config CONFIG --policy RUN_DIR --benchmark NAME=PATH`.

The same as `dream-ray evaluate`; results live in <run_dir>/evaluate unless --run-dir is given. Exit codes are those of
jobs/rlaif.py.
"""

import sys

from dream_ray.commands import evaluate_policies
from dream_ray.job import parser


def main() -> int:
    """Parse the command line and measure."""
    command = parser(__doc__)
    command.add_argument(
        "--policy", action="append", default=[], help="run directory, model or adapter folder; may be given again"
    )
    command.add_argument("--benchmark", metavar="NAME[=PATH],...", help="those of the config unless given")
    arguments = command.parse_args()
    return evaluate_policies(
        arguments.config, arguments.overrides, arguments.policy, arguments.benchmark, arguments.run_dir
    )


if __name__ == "__main__":
    sys.exit(main())
