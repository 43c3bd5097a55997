"""Up to policy 0 alone: `python jobs/sft.py --config CONFIG`.

What is missing before it (ingest, disentangle, demonstrate) is carried out first. Exit codes, config and run directory are
those of jobs/rlaif.py, which goes on from what this made.
"""

import sys

from dream_ray.job import parser, run_stage

if __name__ == "__main__":
    sys.exit(run_stage("sft", parser(__doc__).parse_args()))
