"""The scorer as a job, until it is stopped: `python jobs/serve_scorer.py --config CONFIG judge.port=8000`.

The same as `dream-ray serve`. `ray job stop` takes it down. Exit codes: 0 stopped, 1 the judge does not answer, 2 a setting
cannot work.
"""

import sys

from dream_ray.commands import serve_scorer
from dream_ray.job import parser


def main() -> int:
    """Parse the command line and serve; results of a run have no place here."""
    command = parser(__doc__)
    arguments = command.parse_args()
    if arguments.run_dir is not None:
        command.error(
            "--run-dir has no meaning here: the scorer writes no results. Its response cache is config.cache."
        )
    return serve_scorer(arguments.config, arguments.overrides)


if __name__ == "__main__":
    sys.exit(main())
