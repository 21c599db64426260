"""Percentiles of times, and calls timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 in milliseconds and the number of samples."""
    import numpy as np

    p50, p90, p99 = (float(np.percentile(seconds, q)) * 1e3 for q in (50, 90, 99))
    return {"p50": round(p50, 3), "p90": round(p90, 3), "p99": round(p99, 3), "n": len(seconds)}


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Seconds of every call, once per round after one warm-up each: a busy machine slows all of them alike.

    A call that returns a float has timed itself.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        say(f"warm-up, {name}")
        call()
    for i in range(rounds):
        for name, call in calls.items():
            say(f"round {i + 1}/{rounds}, {name}")
            began = time.perf_counter()
            own = call()
            taken[name].append(own if isinstance(own, float) else time.perf_counter() - began)
    return taken
