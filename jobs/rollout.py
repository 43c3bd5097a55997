"""The rollouts of one round with their judgements alone: `python jobs/rollout.py --config CONFIG --round 1`.

What is missing before them is carried out first. Exit codes, config and run directory are those of jobs/rlaif.py, which
goes on from what this made.
"""

import sys

from dream_ray.job import round_parser, run_stage

if __name__ == "__main__":
    sys.exit(run_stage("rollout", round_parser(__doc__).parse_args()))
