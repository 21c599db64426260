"""Calls in turn, and percentiles of what they took."""

from __future__ import annotations

import numpy as np
import pytest

from structsam_export.timing import interleaved, percentiles


def test_percentiles_are_milliseconds_interpolated_between_samples():
    # By hand: of 1..5 the median is 3, the 90th percentile lies 0.6 between 4 and 5, the 99th 0.96.
    assert percentiles([0.005, 0.001, 0.004, 0.002, 0.003]) == {"p50": 3.0, "p90": 4.6, "p99": 4.96, "n": 5}
    assert percentiles([0.25]) == {"p50": 250.0, "p90": 250.0, "p99": 250.0, "n": 1}


def test_percentiles_are_numpys():
    seconds = list(np.random.default_rng(0).uniform(0.001, 0.2, 40))
    found = percentiles(seconds)
    for name, q in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert found[name] == pytest.approx(1e3 * np.percentile(seconds, q), abs=6e-4)


def test_calls_take_turns_after_one_warm_up_each():
    log, said = [], []
    calls = {name: lambda name=name: log.append(name) for name in "abc"}
    taken = interleaved(calls, 3, said.append)
    assert "".join(log) == "abc" + "abc" * 3
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3, "c": 3}
    assert said[:4] == ["warm-up, a", "warm-up, b", "warm-up, c", "round 1/3, a"]
    assert said[-1] == "round 3/3, c"


def test_a_call_that_times_itself_is_believed():
    """Also numpy's floats; a call that returns something else is timed, and its warm-up never counts."""
    own = iter([99.0, 1.5, np.float64(2.5)])
    other = iter([7, 8, 9])
    taken = interleaved({"own": lambda: next(own), "timed": lambda: next(other)}, 2)
    assert taken["own"] == [1.5, 2.5]
    assert all(0 <= seconds < 1 for seconds in taken["timed"])
