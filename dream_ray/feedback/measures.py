"""What the scorer tells Prometheus, through Ray's metrics endpoint, where it is added up over all replicas.

Contract: `Measures.record` counts each item under what became of it and keeps how long requests took. Ray adds the
replica's tags and the prefix `ray_`.
"""

from collections.abc import Sequence

from ray.serve import metrics

from dream_ray.feedback.wire import ScoreResult

ITEMS = "dream_ray_scorer_items_total"
"""Items by `outcome`: "judged", or the reason why there is no judgement."""
SECONDS = "dream_ray_scorer_request_seconds"
"""Seconds from a request's arrival in the replica to its results."""
BOUNDS_S = [0.1, 0.3, 1, 3, 10, 30, 60, 120]
"""Up to twice the default deadline of a request."""


class Measures:
    """The metrics of one replica; make it inside the replica."""

    def __init__(self) -> None:
        self._items = metrics.Counter(ITEMS, description="Items of scoring requests.", tag_keys=("outcome",))
        self._seconds = metrics.Histogram(SECONDS, description="Seconds of a scoring request.", boundaries=BOUNDS_S)

    def record(self, results: Sequence[ScoreResult], seconds: float) -> None:
        """Count one request's results."""
        for result in results:
            outcome = "judged" if result.judgement is not None else result.reason or "no_reason"
            self._items.inc(tags={"outcome": outcome})
        self._seconds.observe(seconds)
