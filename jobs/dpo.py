"""Up to the policy of one round alone: `python jobs/dpo.py --config CONFIG --round 1`.

What is missing before it is carried out first; the new policy is not evaluated. Exit codes, config and run directory are
those of jobs/rlaif.py, which goes on from what this made.
"""

import sys

from dream_ray.job import round_parser, run_stage

if __name__ == "__main__":
    sys.exit(run_stage("dpo", round_parser(__doc__).parse_args()))
