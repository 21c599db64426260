"""What schedules are predicted to lose and cost, which of them are evaluated for real, and which one is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from structsam_export.config import ExportConfig
from structsam_export.datasets import Sample
from structsam_export.evaluate.statistics import Interval
from structsam_export.tune import measure, search
from structsam_export.tune.space import DENSE, KEEP, Choice, Space


@dataclass
class Table:
    """Loss and cost of every option of every block of a space, alone.

    Args:
        space: the options.
        losses: mIoU lost, by block and option, drawn towards what the disagreement with the unpatched model tells.
        costs: what an option adds to the cost, as a share of the unpatched model's (negative: saves).
        measured: mean mIoU lost as measured, and `disagreement`, by block and option.
    """

    space: Space
    losses: list[list[float]]
    costs: list[list[float]]
    measured: list[list[float]]
    disagreement: list[list[float]]
    _made: dict[ExportConfig, search.Point] = field(default_factory=dict)

    def config(self, point: search.Point) -> ExportConfig:
        """The configuration of a point of the search."""
        made = self.space.config([options[i] for options, i in zip(self.space.options, point.picks)])
        self._made[made] = point
        return made

    def front(self) -> list[search.Point]:
        """Schedules of least predicted loss for every cost."""
        return search.front(self.costs, self.losses)

    def knows(self, config: ExportConfig) -> bool:
        """Whether the configuration was made of a point of this table."""
        return config in self._made

    def point(self, config: ExportConfig) -> search.Point:
        """That point: predicted loss, before it is scaled, and cost, before it is shifted."""
        return self._made[config]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, one entry a block and option."""
        return {
            "method": self.space.method,
            "density": self.space.base.mlp_density,
            "blocks": [
                [
                    {
                        "rate": choice.rate,
                        "mlp": choice.mlp,
                        "loss": self.measured[b][i],
                        "expected": self.losses[b][i],
                        "disagreement": self.disagreement[b][i],
                        "cost": self.costs[b][i],
                    }
                    for i, choice in enumerate(options)
                ]
                for b, options in enumerate(self.space.options)
            ],
        }


def predicted(
    space: Space,
    alone: Mapping[tuple[int, Choice], ExportConfig],
    values: Mapping[ExportConfig, tuple[np.ndarray, np.ndarray]],
    samples: Sequence[Sample],
    costs: list[list[float]],
) -> Table:
    """Losses of all options from what each did alone, beside their costs.

    A difference of a thousandth is within the noise of a few images, and the disagreement with the unpatched model is
    not: a loss is drawn towards `slope` x disagreement, the more the larger its standard error. Losses below 0 count
    as 0: they would not add up over blocks.

    Args:
        space, alone: the options, and the configuration of each that was tried.
        values: loss and disagreement of each configuration, by image.
        samples: those images.
        costs: of all options (`costs.Cost.table`).
    """
    keys = list(alone)
    loss, error = measure.errors(np.stack([values[alone[key]][0] for key in keys]), samples)
    apart, _ = measure.errors(np.stack([values[alone[key]][1] for key in keys]), samples)
    slope = max(float(apart @ loss / max(apart @ apart, 1e-12)), 0.0)
    rest = loss - slope * apart
    wide = float(np.sqrt(max(np.mean(rest**2) - np.mean(error**2), 0.0)))
    means = {
        k: (float(m), max(search.shrunk(float(m), float(e), slope * float(a), wide), 0.0), float(a))
        for k, m, e, a in zip(keys, loss, error, apart)
    }
    zero = (0.0, 0.0, 0.0)

    def figures(block: int, choice: Choice) -> tuple[float, float, float]:
        if choice == DENSE:
            return zero
        if (block, choice) in means:
            return means[block, choice]
        pair = means[block, Choice(choice.rate)], means[block, Choice(0.0, KEEP)]
        return (pair[0][0] + pair[1][0], pair[0][1] + pair[1][1], pair[0][2] + pair[1][2])

    every = [[figures(block, choice) for choice in options] for block, options in enumerate(space.options)]
    measured, losses, disagreement = ([[f[k] for f in row] for row in every] for k in range(3))
    return Table(space, losses, costs, measured, disagreement)


def finalists_of(tables: Sequence[Table], budget: Any, scale: float, shift: float, count: int) -> list[ExportConfig]:
    """Schedules to evaluate for real, around the budget and along the front of all tables.

    Args:
        tables: one a method.
        budget: `command.Budget`.
        scale: real losses as a multiple of predicted ones.
        shift: real costs less predicted ones.
        count: how many, at most.
    """
    points = [(point, table) for table in tables for point in table.front()]
    points.sort(key=lambda pair: (pair[0].cost, pair[0].loss))
    if budget.cost is not None:
        wanted = [budget.cost - 1 - shift + step for step in (0.0, 0.0, -0.02, 0.02, -0.05)]
        near = [best(points, cost, rank) for rank, cost in enumerate(wanted[:2])] + [
            best(points, c) for c in wanted[2:]
        ]
    else:
        near = [least(points, budget.loss * share / scale) for share in (1.0, 0.75, 1.3, 0.5, 1.6, 0.25)]
    made = [table.config(point) for point, table in near if point.cost < 0]
    return list(dict.fromkeys(made))[: max(count, 2)]


def best(points: Sequence[tuple[search.Point, Table]], cost: float, rank: int = 0) -> tuple[search.Point, Table]:
    """The schedule of least loss at a cost; `rank` 1: that of the next best method, where there is one."""
    by_table = {id(table): (search.safest([p for p, t in points if t is table], cost), table) for _, table in points}
    ordered = sorted(by_table.values(), key=lambda pair: (pair[0].cost > cost + 1e-12, pair[0].loss))
    return ordered[min(rank, len(ordered) - 1)]


def least(points: Sequence[tuple[search.Point, Table]], loss: float) -> tuple[search.Point, Table]:
    """The schedule of least cost at a loss."""
    point = search.cheapest([point for point, _ in points], loss)
    return next(pair for pair in points if pair[0] is point)


def choose(ratios: Sequence[float], losses: Sequence[float], budget: Any) -> int:
    """The finalist to take, by what they lose on the selection half: its number.

    Of those within the budget the one that costs (of a loss) or loses (of a cost) least; if none is within, the
    one that comes nearest.
    """
    order = range(len(ratios))
    if budget.cost is not None:
        fit = [i for i in order if ratios[i] <= budget.cost + budget.slack]
        return min(fit, key=lambda i: losses[i]) if fit else min(order, key=lambda i: ratios[i])
    fit = [i for i in order if losses[i] <= budget.loss]
    return min(fit, key=lambda i: ratios[i]) if fit else min(order, key=lambda i: losses[i])


def row_of(config: ExportConfig, cost: float, macs: float, selection: Interval, held: Interval) -> dict[str, Any]:
    """One schedule of a report; `cost` and `macs` as shares of the unpatched model's."""
    return {
        "schedule": measure.plain(config),
        "name": name_of(config),
        "cost": cost,
        "macs_ratio": macs,
        "selection": selection,
        "held_out": held,
    }


def name_of(config: ExportConfig) -> str:
    """A schedule in a table."""
    mlp = "" if config.mlp == "none" else f", mlp {config.mlp}"
    density = "" if config.mlp_density is None else f" ({config.mlp_density:g})"
    rate = (
        "" if config.rate is None else f" {config.rate if isinstance(config.rate, str) else format(config.rate, 'g')}"
    )
    return f"{config.method}{rate}{mlp}{density}"


def verdict_of(
    chosen: dict[str, Any],
    uniform: Sequence[dict[str, Any]],
    losses: np.ndarray,
    others: np.ndarray,
    held: Sequence[Sample],
    budget: Any,
    title: str,
) -> dict[str, Any]:
    """Whether the chosen schedule keeps to its budget on the held-out half, and whether it beats a uniform one there.

    It is compared with the uniform schedule next to it in cost (`title` says in what), paired by image.
    """
    near = min(range(len(uniform)), key=lambda i: abs(uniform[i]["cost"] - chosen["cost"]))
    gain = measure.summary((others[near] - losses)[None], held)[0]
    low, high = gain["low"], gain["high"]
    sure = low is not None and high is not None and not low <= 0 <= high
    own = chosen["held_out"]
    from structsam_export.evaluate.command import spread

    lines = [
        f"{chosen['name']}: {1 - chosen['cost']:.1%} of the {title} saved, mIoU lost {spread(own)} on {len(held)} "
        "held-out images.",
        f"Against {uniform[near]['name']} ({1 - uniform[near]['cost']:.1%} saved, lost "
        f"{spread(uniform[near]['held_out'])}): {spread(gain, '+')} mIoU"
        + ("." if sure else ", no significant difference."),
    ]
    if own["low"] is not None and own["high"] is not None and own["low"] <= 0 <= own["high"]:
        lines.append("Its loss is no significant difference to the unpatched model.")
    kept = own["mean"] <= budget.loss if budget.cost is None else chosen["cost"] <= budget.cost + budget.slack
    if not kept:
        lines.append("It does not keep to the budget on held-out images: ask for less, or pass more images.")
    return {"keeps": kept, "against": uniform[near]["name"], "gain": gain, "significant": sure, "lines": lines}
