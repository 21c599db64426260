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
CHUNKS = RESAMPLES // CHUNK


def interval(values: Sequence[float]) -> Interval:
    """Mean of `values`, one an image, with its bootstrap interval: {"mean", "low", "high"}.

    Seeded: equal values give equal intervals. One image alone has none (low and high are None).
    """
    return intervals([np.asarray(values, np.float64)[:, None]])[0]


def intervals(groups: Sequence[np.ndarray]) -> list[Interval]:
    """Plain means over groups of images, of several quantities at once, with their bootstrap intervals.

    Images are drawn anew within each group. A group of one image has nothing to draw: it shifts the mean, but adds
    nothing to the interval; if all groups are so, there is none.

    Args:
        groups: float64 (images of the group, quantities); the same quantities in each.

    Returns:
        One interval for each quantity.
    """
    means = np.mean([x.mean(0) for x in groups], axis=0)
    if all(len(x) == 1 for x in groups):
        return [{"mean": float(mean), "low": None, "high": None} for mean in means]
    drawn = np.mean([resampled(x, SEED + i) for i, x in enumerate(groups)], axis=0)
    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [{"mean": float(m), "low": float(a), "high": float(b)} for m, a, b in zip(means, *ends)]


def resampled(x: np.ndarray, seed: int) -> np.ndarray:
    """Means (RESAMPLES, quantities) of images drawn with replacement from x (images, quantities)."""
    rng, n = np.random.default_rng(seed), len(x)
    if n == 1:
        return np.broadcast_to(x, (RESAMPLES, x.shape[1]))
    rows = np.arange(CHUNK)[:, None] * n
    # How often each image was drawn, times its values: all quantities by one product.
    times = (np.bincount((rows + rng.integers(0, n, (CHUNK, n))).ravel(), minlength=CHUNK * n) for _ in range(CHUNKS))
    return np.concatenate([drawn.reshape(CHUNK, n) @ (x / n) for drawn in times])


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
    return [
        {
            "group": group,
            "images": len(members),
            "objects": sum(image["objects"] for image in members),
            "name": name,
            **found,
        }
        for group, members in by_group(images).items()
        for name, found in figures([members], reference).items()
    ]


def by_group(images: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results of `evaluate`, by the part of the data set they belong to."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for image in images:
        groups.setdefault(image["group"], []).append(image)
    return groups


def figures(groups: Sequence[Sequence[dict[str, Any]]], reference: str) -> dict[str, dict[str, Any]]:
    """Plain means over groups of every model: its metrics, `difference` and `box_filled`, as intervals."""
    names = list(groups[0][0]["scores"])
    columns = [[column(members, name, m) for name in names for m in METRICS] for members in groups]
    base = names.index(reference) * len(METRICS)
    tables = []
    for members, table in zip(groups, columns):
        x = np.asarray(table, np.float64).T
        against = x - np.tile(x[:, base : base + len(METRICS)], len(names))
        tables.append(np.hstack([x, against, [[image["box_filled"]] for image in members]]))
    found = iter(intervals(tables))
    own = {name: {m: next(found) for m in METRICS} for name in names}
    paired = {name: {m: next(found) for m in METRICS} for name in names}
    filled = next(found)
    return {
        name: {**own[name], "difference": None if name == reference else paired[name], "box_filled": filled}
        for name in names
    }


def column(images: Sequence[dict[str, Any]], name: str, metric: str) -> list[float]:
    """One model's values of one metric."""
    return [image["scores"][name][metric] for image in images]
