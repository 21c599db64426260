"""Means over images, and how far they can be trusted: percentile bootstrap, resampling images.

Efron and Tibshirani 1993, chapters 13 and 8.3 (pairs): one image is one observation, whatever objects it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from structsam_export.evaluate.metrics import METRICS

Interval = dict[str, float | None]
LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
CHUNK = 1_000  # resamples drawn at once: thousands of images stay in memory


def interval(values: Sequence[float]) -> Interval:
    """Mean of `values`, one an image, with its bootstrap interval: {"mean", "low", "high"}.

    Seeded: equal values give equal intervals. One image alone has none (low and high are None).
    """
    x = np.asarray(values, np.float64)
    if len(x) == 1:
        return {"mean": float(x[0]), "low": None, "high": None}
    rng = np.random.default_rng(SEED)
    means = [x[rng.integers(0, len(x), (CHUNK, len(x)))].mean(1) for _ in range(RESAMPLES // CHUNK)]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(x.mean()), "low": float(low), "high": float(high)}


def summary(images: Sequence[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """One row for each group of images and model; groups are never pooled.

    Args:
        images: results of `evaluate`.
        reference: the model that differences are taken to.

    Returns:
        Rows with `group`, `images` and `objects` (counts), `name` of the model, an interval for every metric,
        `difference` (intervals of the paired differences to the reference; None for the reference itself) and
        `box_filled`.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for image in images:
        groups.setdefault(image["group"], []).append(image)
    return [
        {
            "group": group,
            "images": len(members),
            "objects": sum(image["objects"] for image in members),
            "name": name,
            **{m: interval(column(members, name, m)) for m in METRICS},
            "difference": difference(members, name, reference),
            "box_filled": interval([image["box_filled"] for image in members]),
        }
        for group, members in groups.items()
        for name in members[0]["scores"]
    ]


def column(images: Sequence[dict[str, Any]], name: str, metric: str) -> list[float]:
    """One model's values of one metric."""
    return [image["scores"][name][metric] for image in images]


def difference(images: Sequence[dict[str, Any]], name: str, reference: str) -> dict[str, Interval] | None:
    """Intervals of the paired differences of a model to the reference, by metric."""
    if name == reference:
        return None
    pairs = {m: zip(column(images, name, m), column(images, reference, m)) for m in METRICS}
    return {m: interval([a - b for a, b in values]) for m, values in pairs.items()}
