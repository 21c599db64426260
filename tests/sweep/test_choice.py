"""The Pareto front and the recommendation, on rows made by hand; the mean over sets."""

from __future__ import annotations

import numpy as np
import pytest

from structsam_export.evaluate.statistics import figures, interval, intervals
from structsam_export.sweep.choice import front, recommend
from structsam_export.sweep.show import choice_lines


def test_front():
    points = [(1.0, 0.0), (0.8, 0.01), (0.8, 0.02), (0.7, 0.01), (0.5, 0.3), (0.5, 0.3), (0.9, -0.01)]
    assert front(points) == [False, False, False, True, True, True, True]
    assert front([(1.0, 0.0)]) == [True]


def row(name, ratio, mean, low=None, **groups):
    found = {group: {"difference": {"iou": {"mean": value}}} for group, value in groups.items()}
    return {
        "name": name,
        "macs_ratio": ratio,
        "mean": {"difference": {"iou": {"mean": mean, "low": low, "high": None if low is None else mean}}},
        "groups": found,
    }


DENSE = {"name": "dense", "macs_ratio": 1.0, "mean": {"difference": None}, "groups": {}}
ROWS = [
    DENSE,
    row("mild", 0.9, -0.001, -0.004),
    row("good", 0.7, -0.0100, -0.03, coins=-0.02, thin=0.0),
    row("equal", 0.7, -0.0101, -0.02),
    row("sure", 0.8, -0.002, -0.009),
    row("greedy", 0.5, -0.2, -0.3),
]


def test_recommendation():
    best = recommend(ROWS, 0.01)
    assert best["name"] == "good" and best["saved"] == pytest.approx(0.3)  # exactly at the limit
    assert best["worst"] == {"group": "coins", "difference": -0.02}
    assert recommend(ROWS, 0.01, sure=True)["name"] == "sure"
    assert recommend(ROWS, 0.005)["name"] == "sure"
    assert recommend(ROWS, 0.005, sure=True)["name"] == "mild"
    assert recommend(ROWS, 0.011)["name"] == "good"  # saves the same and loses less
    assert recommend(ROWS, 1)["name"] == "greedy"
    assert recommend(ROWS, 0) is None
    assert recommend([DENSE, row("one image", 0.5, 0.0)], 0.01, sure=True) is None
    assert recommend([DENSE, row("saves nothing", 1.0, 0.0)], 0.01) is None


def test_in_words():
    def said(loss):
        given = {"rows": ROWS, "loss": loss, "groups": {"coins": {}, "thin": {}}}
        choice = {"recommendation": recommend(ROWS, loss), "cautious": recommend(ROWS, loss, sure=True)}
        return "\n".join(choice_lines({**given, **choice}))

    assert "at most 1 point of mIoU (mean over sets): good, 30.0% of the MACs" in said(0.01)
    assert "worst set coins, -.0200" in said(0.01) and "whole interval keeps to that: sure" in said(0.01)
    assert "Its whole interval keeps to that." in said(0.5)
    assert "No configuration saves MACs" in said(0) and "mild, mIoU -.0010" in said(0)


def test_a_mean_over_sets_weighs_sets_alike():
    rng = np.random.default_rng(1)
    large, small = rng.normal(0.5, 0.1, (200, 2)), rng.normal(0.1, 0.1, (10, 2))
    found = intervals([large, small])[0]
    assert found["mean"] == pytest.approx((large[:, 0].mean() + small[:, 0].mean()) / 2)
    error = np.hypot(large[:, 0].std() / np.sqrt(200), small[:, 0].std() / np.sqrt(10)) / 2
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)
    alone = intervals([large, small[:1]])[0]  # one image shifts the mean and widens nothing
    assert alone["high"] - alone["low"] == pytest.approx((lambda i: i["high"] - i["low"])(interval(large[:, 0])) / 2)
    assert intervals([large[:1], small[:1]])[0]["low"] is None


def test_figures_of_one_set_are_those_of_its_images():
    images = [
        {"box_filled": 0.5, "scores": {n: {"iou": v, "boundary_iou": v, "dice": v} for n, v in models.items()}}
        for models in ({"dense": 0.9, "fast": 0.8}, {"dense": 0.7, "fast": 0.7})
    ]
    found = figures([images], "dense")
    assert found["dense"]["difference"] is None
    assert found["fast"]["iou"] == interval([0.8, 0.7])
    assert found["fast"]["difference"]["dice"]["mean"] == pytest.approx(-0.05)
    assert found["fast"]["box_filled"] == interval([0.5, 0.5])
