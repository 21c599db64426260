"""What schedules are predicted to lose and cost, which of them are evaluated for real, and which one is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from structsam_export.config import ExportConfig
from structsam_export.evaluate.statistics import Interval
from structsam_export.methods import method_class
from structsam_export.tune import measure, search
from structsam_export.tune.space import DENSE, KEEP, Choice, Space, read_off

NEAR = 0.02  # of the cost: uniform schedules no farther from a tuned one are compared with it


@dataclass(frozen=True)
class Curve:
    """How the loss of mIoU follows from how far masks are from the unpatched model's.

    A mask that moved a little is as often better as worse: to first order differences to the true masks cancel, and
    what stays grows with the square of the disagreement. Errors of blocks are about independent, so that squares add up
    over blocks, too. Without true masks the loss is the disagreement itself.

    Args:
        growth: square of a schedule's disagreement, as a multiple of the sum over its blocks' own.
        loss: loss as a multiple of the disagreement's square (with true masks) or of itself.
        spread: standard deviation of real losses about the curve, beyond their errors.
        true: whether there are true masks.
    """

    growth: float = 1.0
    loss: float = 1.0
    spread: float = 0.0
    true: bool = True

    @classmethod
    def through(cls, sums: np.ndarray, apart: np.ndarray, losses: np.ndarray, errors: np.ndarray, true: bool) -> Curve:
        """Least squares, through zero.

        Args:
            sums: of the blocks' squared disagreements, for each schedule; NaN where that is not known.
            apart, losses, errors: the schedules' own disagreement and loss, and the loss' standard error.
            true: whether there are true masks.
        """
        known = ~np.isnan(sums)
        growth = slope(sums[known], apart[known] ** 2)
        shape = apart**2 if true else apart
        factor = slope(shape, losses)
        rest = losses - factor * shape
        spread = float(np.sqrt(max(np.mean(rest**2) - np.mean(errors**2), 0.0))) if len(rest) else 0.0
        return cls(growth, factor, spread, true)

    def predicted(self, total: float) -> float:
        """Loss, by the sum of the blocks' squared disagreements."""
        return self.expected(float(np.sqrt(self.growth * total)))

    def expected(self, apart: float) -> float:
        """Loss, by a schedule's own disagreement."""
        return self.loss * (apart**2 if self.true else apart)

    def total(self, loss: float) -> float:
        """The sum of the blocks' squared disagreements that a loss allows."""
        square = loss / self.loss if self.true else (loss / self.loss) ** 2
        return square / self.growth

    def drawn(self, apart: np.ndarray, losses: np.ndarray, errors: np.ndarray) -> list[float]:
        """Losses drawn towards the curve, the more the larger their standard errors (`search.shrunk`)."""
        rows = zip(map(float, apart), map(float, losses), map(float, errors))
        return [search.shrunk(loss, error, self.expected(a), self.spread) for a, loss, error in rows]


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """b of y = b x by least squares, above zero; 1 where nothing says it."""
    found = float(x @ y / (x @ x)) if len(x) and float(x @ x) else 1.0
    return max(found, 1e-6)


@dataclass
class Table:
    """Disagreement and cost of every option of every block of a space, alone.

    Args:
        space: the options.
        apart: disagreement with the unpatched model's masks, by block and option.
        losses: mIoU lost, as measured.
        costs: what an option adds to the cost, as a share of the unpatched model's (negative: saves).
    """

    space: Space
    apart: list[list[float]]
    losses: list[list[float]]
    costs: list[list[float]]
    _made: dict[ExportConfig, search.Point] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        space: Space,
        alone: Mapping[tuple[int, Choice], ExportConfig],
        values: Mapping[ExportConfig, tuple[np.ndarray, np.ndarray]],
        costs: list[list[float]],
    ) -> Table:
        """From what options did alone (`space.read_off`); a rate with residual consistency has the sums of both.

        Args:
            space, alone: the options, and the configuration of each that was tried.
            values: loss and disagreement of each configuration, by image.
            costs: of all options (`costs.Cost.table`).
        """
        lost, moved = ([{DENSE: 0.0} for _ in space.options] for _ in range(2))
        for (block, choice), config in alone.items():
            lost[block][choice], moved[block][choice] = (float(value.mean()) for value in values[config])

        def figures(block: int, choice: Choice) -> tuple[float, float]:
            if choice.rate and choice.mlp == KEEP:
                rate, keep = figures(block, Choice(choice.rate)), figures(block, Choice(0.0, KEEP))
                return rate[0] + keep[0], float(np.hypot(rate[1], keep[1]))
            return read_off(lost[block], choice), read_off(moved[block], choice, power=True)

        every = [[figures(block, choice) for choice in options] for block, options in enumerate(space.options)]
        losses, apart = ([[pair[k] for pair in row] for row in every] for k in range(2))
        return cls(space, apart, losses, costs)

    @property
    def squares(self) -> list[list[float]]:
        """What the search adds up."""
        return [[value**2 for value in row] for row in self.apart]

    def config(self, point: search.Point) -> ExportConfig:
        """The configuration of a point of the search."""
        made = self.space.config([options[i] for options, i in zip(self.space.options, point.picks)])
        self._made[made] = point
        return made

    @cached_property
    def front(self) -> list[search.Point]:
        """Schedules of the least sum of squared disagreements (`Point.loss`) for every cost."""
        return search.front(self.costs, self.squares)

    def knows(self, config: ExportConfig) -> bool:
        """Whether the configuration was made of a point of this table."""
        return config in self._made

    def grown(self, curve: Curve, tried: Mapping[ExportConfig, float]) -> Curve:
        """The curve, with what schedules of this table (and their disagreements) tell of how its squares add up."""
        known = {config: apart for config, apart in tried.items() if self.knows(config)}
        sums = np.array([self.point(config).loss for config in known])
        return replace(curve, growth=slope(sums, np.array(list(known.values())) ** 2)) if known else curve

    def point(self, config: ExportConfig) -> search.Point:
        """That point; its cost is not shifted yet."""
        return self._made[config]

    def uniform(self, rate: float) -> search.Point:
        """The point of one rate in all blocks; `search.UNKNOWN` where that is no option."""
        picks = [next((i for i, c in enumerate(row) if c == Choice(rate)), -1) for row in self.space.options]
        if -1 in picks:
            return search.UNKNOWN
        loss, cost = (sum(row[i] for row, i in zip(rows, picks)) for rows in (self.squares, self.costs))
        return search.Point(cost, loss, tuple(picks))

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
                        "loss": self.losses[b][i],
                        "disagreement": self.apart[b][i],
                        "cost": self.costs[b][i],
                        "tried": self.space.tried(choice),
                    }
                    for i, choice in enumerate(options)
                ]
                for b, options in enumerate(self.space.options)
            ],
        }


def first_finalists(tables: Sequence[Table], budget: Any, curve: Curve, shift: float) -> list[ExportConfig]:
    """The best schedule of every table at the budget: which method is best, a few images do not say.

    Args:
        tables: one for each method and density.
        budget: `steps.Budget`.
        curve: what losses follow from.
        shift: real costs less predicted ones.
    """
    return list(dict.fromkeys(table.config(at(table, budget, curve, shift)) for table in tables))


def further_finalists(
    tables: Sequence[Table],
    tried: Mapping[ExportConfig, float],
    chosen: ExportConfig,
    budget: Any,
    curve: Curve,
    shift: float,
    room: int,
) -> list[ExportConfig]:
    """Schedules about the budget, `room` at most, by what the tables' finalists showed.

    Of a cost, those of the chosen one's table. Of a loss, one at a time: the first ones may be far from it, and how far
    corrects the next; it is of the table that then promises to save most.

    Args:
        tables, budget, curve, shift: as in `first_finalists`.
        tried: disagreements of the finalists so far.
        chosen: the one of them that would be taken.
    """
    curves = [table.grown(curve, tried) for table in tables]
    if budget.cost is not None:
        best = next(i for i, table in enumerate(tables) if table.knows(chosen))
    else:
        best = min(range(len(tables)), key=lambda i: at(tables[i], budget, curves[i], shift).cost)
        room = min(room, 1)
    near = [tables[best].config(at(tables[best], budget, curves[best], shift, step)) for step in (0, 1, -1, 2, -2, 3)]
    return [config for config in dict.fromkeys(near) if config not in tried][: max(room, 0)]


def at(table: Table, budget: Any, curve: Curve, shift: float, step: int = 0) -> search.Point:
    """The schedule of a table that keeps to the budget best; `step` above 0 saves less than that, below 0 more.

    A step is .01 of the cost, or a quarter of the loss.
    """
    points = [point for point in table.front if point.cost < 0]
    if budget.cost is not None:
        return search.safest(points, budget.cost - 1 - shift + 0.01 * step)
    return search.cheapest(points, curve.total(budget.loss * (1 - 0.25 * step)))


def choose(ratios: Sequence[float], losses: Sequence[float], budget: Any) -> int:
    """The finalist to take, by what they lose on the selection half (`Curve.drawn`): its number.

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
    variant = config.variant if config.variant != next(iter(method_class(config.method).VARIANTS)) else None
    mlp = "" if config.mlp == "none" else f", mlp {config.mlp}"
    density = "" if config.mlp_density is None else f" ({config.mlp_density:g})"
    rate = (
        "" if config.rate is None else f" {config.rate if isinstance(config.rate, str) else format(config.rate, 'g')}"
    )
    return f"{config.method}{f':{variant}' if variant else ''}{rate}{mlp}{density}"


def verdict_of(
    chosen: dict[str, Any],
    uniform: Sequence[dict[str, Any]],
    losses: np.ndarray,
    others: np.ndarray,
    budget: Any,
    title: str,
) -> dict[str, Any]:
    """Whether the chosen schedule keeps to its budget on the held-out half, and whether it beats a uniform one there.

    It is compared with the uniform schedules of about its cost (`title` says in what), paired by image.
    """
    from structsam_export.evaluate.command import spread

    own = chosen["held_out"]
    lines = [
        f"{chosen['name']}: {1 - chosen['cost']:.1%} of the {title} saved, mIoU lost {spread(own)} on {len(losses)} "
        "held-out images."
    ]
    distances = [abs(row["cost"] - chosen["cost"]) for row in uniform]
    near = [i for i, distance in enumerate(distances) if distance <= max(NEAR, min(distances))]
    against = []
    for row, gain in zip((uniform[i] for i in near), measure.summary(others[near] - losses)):
        against.append({"name": row["name"], "cost": row["cost"], "gain": gain, "significant": differs(gain)})
        lines.append(
            f"Against {row['name']} ({1 - row['cost']:.1%} saved, lost {spread(row['held_out'])}): "
            f"{spread(gain, '+')} mIoU" + ("." if differs(gain) else ", no significant difference.")
        )
    if own["low"] is not None and not differs(own):
        lines.append("Its loss is no significant difference to the unpatched model.")
    kept = own["mean"] <= budget.loss if budget.cost is None else chosen["cost"] <= budget.cost + budget.slack
    if not kept:
        lines.append("It does not keep to the budget on held-out images: ask for less, or pass more images.")
    return {"keeps": kept, "against": against, "lines": lines}


def differs(gain: Interval) -> bool:
    """Whether an interval excludes 0."""
    low, high = gain["low"], gain["high"]
    return low is not None and high is not None and not low <= 0 <= high
