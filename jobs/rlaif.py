"""The DREAM loop as a job: `python jobs/rlaif.py --config configs/local.yaml`, or the same behind `ray job submit … --`.

Composes nothing itself: dream_ray/pipeline/driver.py is the loop. Exit codes: 0 done, 1 a stage failed, 2 a setting or an
input cannot work, 130 stopped by a signal. After 1 and 130 the same command goes on where the run ended.
"""

import sys

from dream_ray.commands import run_loop
from dream_ray.job import parser


def main() -> int:
    """Parse the command line and run."""
    arguments = parser(__doc__).parse_args()
    return run_loop(arguments.config, arguments.overrides, arguments.run_dir)


if __name__ == "__main__":
    sys.exit(main())
