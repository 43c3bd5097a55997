"""The stopwatch: what runs counts, while it still runs, and once."""

import time

from dream_ray.stopwatch import Stopwatch


def test_it_counts_while_it_runs_and_pauses() -> None:
    watch = Stopwatch()
    time.sleep(0.05)
    assert watch.seconds == 0.0
    watch.run(True)
    time.sleep(0.05)
    watch.run(True)  # no second clock beside the first
    before = watch.seconds
    assert before >= 0.05
    time.sleep(0.05)
    assert watch.seconds >= before + 0.05
    watch.run(False)
    watch.run(False)
    paused = watch.seconds
    time.sleep(0.05)
    assert watch.seconds == paused
