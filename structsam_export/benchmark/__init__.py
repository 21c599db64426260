"""Latency of several runners side by side: interleaved rounds, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 in milliseconds and the number of samples."""
    import numpy as np

    p50, p90, p99 = (float(np.percentile(seconds, q)) * 1e3 for q in (50, 90, 99))
    return {"p50": round(p50, 3), "p90": round(p90, 3), "p99": round(p99, 3), "n": len(seconds)}


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Time every call once per round, after one warm-up each; {name: percentiles}."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - began)
    return {name: percentiles(seconds) for name, seconds in taken.items()}
