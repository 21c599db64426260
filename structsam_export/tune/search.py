"""Schedules of least loss for every cost, where losses and costs of the blocks add up: exact, for all budgets at once.

Dynamic programming over Pareto fronts: what is dominated in the first k blocks stays so whatever follows (multiple-
choice knapsack; Kellerer, Pferschy and Pisinger 2004, chapter 11). Only schedules whose costs agree to `GRAIN` are
taken for one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

GRAIN = 1e-4  # of the cost of the dense model: many blocks with many choices would make millions of points


@dataclass(frozen=True)
class Point:
    """A choice (number of an option) for each block, with what they cost and lose together."""

    cost: float
    loss: float
    picks: tuple[int, ...]


UNKNOWN = Point(float("nan"), float("nan"), ())  # of a schedule whose parts were not tried


def front(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], grain: float = GRAIN) -> list[Point]:
    """The Pareto front over all schedules, least cost first.

    Args:
        costs, losses: of every option of every block; a block's cost is a difference to the dense one, or anything
            else that adds up.
        grain: costs are told apart by steps of this size, and of those that are not the least loss is kept; 0: all.

    Returns:
        Points such that none costs and loses no more than another. Of equal ones the first found.
    """
    points = [Point(0.0, 0.0, ())]
    for cost, loss in zip(costs, losses):
        grown = [
            Point(p.cost + c, p.loss + lost, (*p.picks, i))
            for p in points
            for i, (c, lost) in enumerate(zip(cost, loss))
        ]
        points = undominated(grown, grain)
    return points


def undominated(points: Sequence[Point], grain: float = 0.0) -> list[Point]:
    """Points that no other beats in cost and loss, least cost first; see `front`."""

    def rank(point: Point) -> tuple[float, float, float]:
        step = round(point.cost / grain) if grain else point.cost
        return step, point.loss, point.cost

    kept: list[Point] = []
    for point in sorted(points, key=rank):
        if not kept or point.loss < kept[-1].loss - 1e-15:
            kept.append(point)
    return kept


def cheapest(points: Sequence[Point], most: float) -> Point:
    """The point of a front that costs least among those that lose at most `most`; the one that loses least if none."""
    fit = [point for point in points if point.loss <= most]
    return min(fit, key=lambda p: (p.cost, p.loss)) if fit else min(points, key=lambda p: (p.loss, p.cost))


def safest(points: Sequence[Point], most: float) -> Point:
    """The point that loses least among those that cost at most `most`; the cheapest if none."""
    fit = [point for point in points if point.cost <= most + 1e-12]
    return min(fit, key=lambda p: (p.loss, p.cost)) if fit else min(points, key=lambda p: (p.cost, p.loss))


def shrunk(measured: float, error: float, expected: float, spread: float) -> float:
    """A noisy difference drawn towards what is expected of it: the posterior mean of a normal prior.

    Args:
        measured, error: mean difference over images, and its standard error.
        expected, spread: mean and standard deviation of the prior.
    """
    weight = spread**2 / (spread**2 + error**2) if spread or error else 1.0
    return weight * measured + (1 - weight) * expected


def at_random(
    costs: Sequence[Sequence[float]], wanted: float, width: float, count: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Schedules drawn at random among those of about equal cost, to compare a found one with.

    Args:
        costs: as in `front`.
        wanted, width: their costs lie within `wanted` +- `width`.
        count: how many different ones.
        seed: of the draw.

    Returns:
        An option's number for each block, `count` times; fewer where 1000 * count draws did not give so many.
    """
    draw = random.Random(seed)
    found: dict[tuple[int, ...], None] = {}
    for _ in range(1000 * count):
        picks = tuple(draw.randrange(len(options)) for options in costs)
        if abs(sum(options[i] for options, i in zip(costs, picks)) - wanted) <= width:
            found[picks] = None
        if len(found) == count:
            break
    return list(found)
