"""What several tests of the pipeline run on."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture
def cluster() -> Iterator[None]:
    """A Ray of the test's own."""
    ray.init(address="local", num_cpus=4, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()
