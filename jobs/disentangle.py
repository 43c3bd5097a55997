"""Ingest and disentangle alone: `python jobs/disentangle.py --config CONFIG`.

Reads the prompts, asks the teacher what is risky in each, and stops. Exit codes, config and run directory are those of
jobs/rlaif.py, which goes on from what this made.
"""

import sys

from dream_ray.job import parser, run_stage

if __name__ == "__main__":
    sys.exit(run_stage("disentangle", parser(__doc__).parse_args()))
