"""The machines of the autoscaling tests: Ray's fake ones, each with files of its own.

Contract: loaded by Ray's autoscaler, by the name that tests/cluster/autoscaling.py gives it. Ray's fake machines share the
folder into which a job's working directory is unpacked, and each one unpacks it anew: a machine that comes up would take
the code from under a process that begins to read it on another. Real machines share no disk.
"""

from typing import Any

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Machines(FakeMultiNodeProvider):  # type: ignore[misc]
    """Ray's provider, with a folder for the working directories of each machine."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with self.lock:
            # What `RayParams` takes where nobody names a folder; the provider names none and lets nobody name one.
            ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = f"runtime_resources_{self._next_node_id}"
            super()._create_node_with_resources_and_labels(*arguments)
