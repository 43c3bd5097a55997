"""Whether this process works on a cluster that others started.

Contract: `joined_cluster` says what `cluster.connected` does, before and after it does it; imports nothing of Ray.
"""

import os


def joined_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster to join; otherwise Ray is started on this machine."""
    return "RAY_ADDRESS" in os.environ
