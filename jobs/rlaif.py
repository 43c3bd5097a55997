"""The DREAM loop as a job: `python jobs/rlaif.py --config configs/local.yaml`, or the same behind `ray job submit … --`.

Composes nothing itself: dream_ray/pipeline/driver.py is the loop. Exit codes: 0 done, 1 a stage failed, 2 a setting or an
input cannot work, 130 stopped by a signal. After 1 and 130 the same command goes on where the run ended.
"""

import argparse
import sys

from dream_ray.cli import run_loop


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file; configs/ has examples")
    parser.add_argument(
        "--run-dir", help="where results live: a folder, s3:// or gs://; the config's run_dir unless set"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, dotted, e.g. rollout.k=4")
    arguments = parser.parse_args()
    return run_loop(arguments.config, arguments.overrides, arguments.run_dir)


if __name__ == "__main__":
    sys.exit(main())
