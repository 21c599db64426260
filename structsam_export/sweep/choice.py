"""Which configurations are worth having: the Pareto front, and the one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at least as good in both (cost, loss) and better in one; equal points stay together."""
    return [not any(dominates(other, point) for other in points) for point in points]


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether a costs and loses no more than b, and less of one."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def recommend(rows: Sequence[Mapping[str, Any]], loss: float, *, sure: bool = False) -> dict[str, Any] | None:
    """The row that saves most MACs among those that lose at most `loss` mIoU; of equal ones, the one that loses least.

    Args:
        rows: with `name`, `macs_ratio` (to the unpatched model) and `mean`, whose `difference` (None: the unpatched
            model) has an interval for "iou".
        loss: 0.01 is one point of mIoU.
        sure: the whole interval has to keep to the limit, not only the mean. Where there is none, no row does.

    Returns:
        `name`, `saved` (share of MACs), `difference` (the interval) and `worst` (set and mean difference of the one
        that loses most, where sets are known); None if no row saves MACs within the limit.
    """
    key = "low" if sure else "mean"
    fit = [r for r in rows if r["mean"]["difference"] and r["macs_ratio"] < 1 and keeps(r, key, loss)]
    if not fit:
        return None
    best = min(fit, key=lambda r: (r["macs_ratio"], -r["mean"]["difference"]["iou"]["mean"]))
    sets = {group: found["difference"]["iou"]["mean"] for group, found in best.get("groups", {}).items()}
    worst = min(sets, key=lambda group: sets[group], default=None)
    return {
        "name": best["name"],
        "saved": 1 - best["macs_ratio"],
        "difference": best["mean"]["difference"]["iou"],
        "worst": None if worst is None else {"group": worst, "difference": sets[worst]},
    }


def keeps(row: Mapping[str, Any], key: str, loss: float) -> bool:
    """Whether a row's mean, or the low end of its interval, loses at most `loss`."""
    value = row["mean"]["difference"]["iou"][key]
    return value is not None and value >= -loss - 1e-12
