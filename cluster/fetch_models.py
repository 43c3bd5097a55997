"""Copy model folders from a bucket to this machine, once: `python cluster/fetch_models.py s3://BUCKET/models /models`.

Contract: standard library and pyarrow only, so that it runs wherever the pinned requirements are installed. Credentials are the
node's own. A copy that is whole says so in a marker that names its source, and is not made again; a copy that was cut off is
started anew. Exit codes: 0 the models are there, 1 they could not be copied.
"""

import argparse
import shutil
import sys
from pathlib import Path

import pyarrow.fs as pafs

MARKER = ".fetched-from"


def fetch(source: str, destination: Path) -> bool:
    """Make `destination` a copy of the folder `source`; False where it was one already. Raises OSError."""
    marker = destination / MARKER
    if marker.is_file() and marker.read_text() == source:
        return False
    # The folder itself may be a mount point, which cannot be removed.
    destination.mkdir(parents=True, exist_ok=True)
    for entry in destination.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    pafs.copy_files(source, str(destination))
    if not any(entry.is_dir() for entry in destination.iterdir()):
        raise FileNotFoundError(
            f"{source} holds no folder. It has to hold one folder per model, as in {source}/student/config.json."
        )
    marker.write_text(source)
    return True


def main() -> int:
    """Parse the command line and copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder with one folder per model: s3://, gs:// or a path")
    parser.add_argument("destination", type=Path, help="folder on this machine")
    arguments = parser.parse_args()
    try:
        copied = fetch(arguments.source, arguments.destination)
    except OSError as error:
        print(
            f"The models in {arguments.source} could not be copied to {arguments.destination}: {error}. Check that the node's "
            "role may read the bucket, and that the disk has room.",
            file=sys.stderr,
        )
        return 1
    print(f"models: {arguments.destination} ({'copied from' if copied else 'already copied from'} {arguments.source})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
