"""The work of a tuning in order: a plan that fits the time, sensitivity, search and finalists, held-out figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from structsam_export.config import ExportConfig
from structsam_export.datasets import Sample
from structsam_export.errors import UsageError
from structsam_export.evaluate.statistics import LEVEL, RESAMPLES, SEED
from structsam_export.evaluate.store import Store, read
from structsam_export.methods import method_class
from structsam_export.tune import measure
from structsam_export.tune.costs import Cost, Macs
from structsam_export.tune.finalists import (
    Curve,
    Table,
    choose,
    first_finalists,
    further_finalists,
    row_of,
    verdict_of,
)
from structsam_export.tune.measure import Measurer
from structsam_export.tune.search import UNKNOWN, Point
from structsam_export.tune.space import Choice, Space

PLAN = "plan.json"
UNIFORM = (0.25, 0.5, 0.75)
PUBLISHED = ("structsam", "cell")
# Shares of the work of a run: what is not sensitivity is finalists, uniform schedules and held-out images.
SENSITIVITY = 0.45
MARGIN = 0.85  # of the time is planned: models are loaded and results written, too, and machines do other things
FEWEST = 4  # images of the sensitivity
FEWEST_JUDGED = 8  # images of either half
NEAREST = 3  # schedules that tell how far real costs are from predicted ones
PLAN_VERSION = 2  # raise it whenever a plan says something else


@dataclass(frozen=True)
class Budget:
    """What a tuned schedule has to keep to: a loss or a cost; the other one is None.

    Args:
        loss: mIoU that may be lost.
        macs, latency: share of the unpatched encoder's MACs or latency that may be left.
    """

    loss: float | None = None
    macs: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.loss, self.macs, self.latency)) != 1:
            raise UsageError("Pass one of --max-loss, --target-macs and --target-latency.")
        for name in ("macs", "latency"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"--target-{name} {value:g} is no share. Pass one above 0 and below 1.")

    @property
    def cost(self) -> float | None:
        """The share of the cost that may be left."""
        return self.macs if self.latency is None else self.latency

    @property
    def slack(self) -> float:
        """How far above it counts as within: MACs are rounded, times are measured."""
        return 5e-4 if self.latency is None else 0.01


@dataclass(frozen=True)
class Steps:
    """Losses by `meter`, and what schedules cost."""

    meter: Measurer
    cost: Cost


def singles(space: Space) -> dict[tuple[int, Choice], ExportConfig]:
    """Every choice of every block that is tried, alone."""
    return {
        (block, choice): space.single(block, choice)
        for block, options in enumerate(space.options)
        for choice in options
        if space.tried(choice)
    }


def uniforms(spaces: Sequence[Space]) -> list[ExportConfig]:
    """What a user would try without tuning: each method, and the published default, at one rate everywhere."""
    bases = [replace(space.base, mlp_density=None) for space in spaces]
    bases += [replace(base, method=PUBLISHED[0], variant=PUBLISHED[1]) for base in bases[:1]]
    return [
        replace(base, rate=rate)
        for base in dict.fromkeys(bases)
        for rate in UNIFORM
        if rate <= method_class(base.method).VARIANTS[str(base.variant)]
    ]


def planned(
    store: Store,
    steps: Steps,
    spaces: Sequence[Space],
    selection: Sequence[Sample],
    held: Sequence[Sample],
    minutes: float,
) -> dict[str, Any]:
    """How many images the steps get, and how many finalists there are; a run that continues keeps its plan."""
    alone = list(dict.fromkeys(config for space in spaces for config in singles(space).values()))
    facts = {"version": PLAN_VERSION, "minutes": minutes, "schedules": len(alone)}
    facts["images"] = len(selection) + len(held)
    kept = read(store.folder / PLAN)
    if kept and all(kept.get(name) == value for name, value in facts.items()):
        return kept
    steps.meter.measure(
        "time of one encoder call", uniforms(spaces)[:1], measure.spread(selection, 2 * steps.meter.workers)
    )
    # The unpatched model ran as often. Where all figures were known, nothing was timed but by an earlier plan.
    timed = steps.meter.seconds / max(steps.meter.done, 1) / steps.meter.workers / 2
    each = max(timed or (kept or {}).get("seconds_each", 1.0), 1e-3)
    found = counts(60 * minutes / each, len(alone), len(uniforms(spaces)), len(spaces) + 3, len(selection), len(held))
    plan = {**facts, **found, "seconds_each": round(each, 3)}
    store.write(PLAN, plan)
    return plan


def counts(calls: float, alone: int, common: int, finalists: int, selection: int, held: int) -> dict[str, int]:
    """What `calls` of the encoder pay for: images of the sensitivity and of both halves, and finalists.

    Every image of a half is seen by the unpatched model, by all uniform schedules and by all finalists.

    Args:
        calls: that fit into the time.
        alone: schedules of the sensitivity.
        common: uniform schedules.
        finalists: at least so many; up to three more where time is left.
        selection, held: images there are.
    """
    calls *= MARGIN
    sensitivity = min(max(int(SENSITIVITY * calls / alone), FEWEST), selection)
    rest = calls - sensitivity * alone
    total = max(int(rest / (1 + common + finalists)), 2 * FEWEST_JUDGED)
    chosen_on = min(max(total // 2, total - held), selection)
    judged_on = min(total - chosen_on, held)
    more = int(rest / (chosen_on + judged_on)) - 1 - common - finalists
    return {
        "sensitivity": min(sensitivity, chosen_on),
        "selection": chosen_on,
        "held_out": judged_on,
        "finalists": finalists + min(max(more, 0), 3),
    }


class Tried:
    """Schedules evaluated on the selection half: `configs`, and their `losses` and `apart` (configs, images)."""

    def __init__(self, steps: Steps, selection: Sequence[Sample]) -> None:
        self.steps, self.selection = steps, selection
        self.configs: list[ExportConfig] = []
        self.losses = self.apart = np.zeros((0, len(selection)))

    def add(self, title: str, configs: Sequence[ExportConfig]) -> None:
        """Evaluate what is new."""
        new = [config for config in configs if config not in self.configs]
        if new:
            losses, apart = self.steps.meter.measure(title, new, self.selection)
            self.configs += new
            self.losses, self.apart = np.vstack([self.losses, losses]), np.vstack([self.apart, apart])

    def curve(self, sums: Sequence[float]) -> Curve:
        """What the losses follow from; `sums` of the blocks' squared disagreements, by schedule."""
        true = self.steps.meter.true
        return Curve.through(np.asarray(sums), self.apart.mean(1), *measure.errors(self.losses), true)

    def likely(self, curve: Curve) -> list[float]:
        """Losses drawn towards the curve."""
        return curve.drawn(self.apart.mean(1), *measure.errors(self.losses))


def sensitivity(steps: Steps, spaces: Sequence[Space], few: Sequence[Sample]) -> list[Table]:
    """What every choice of every block does alone."""
    alone = [singles(space) for space in spaces]
    every = list(dict.fromkeys(config for each in alone for config in each.values()))
    values = dict(zip(every, zip(*steps.meter.measure("one block alone", every, few))))
    return [Table.of(space, each, values, steps.cost.table(space)) for space, each in zip(spaces, alone)]


def found(
    steps: Steps,
    spaces: Sequence[Space],
    selection: Sequence[Sample],
    held: Sequence[Sample],
    budget: Budget,
    plan: dict[str, Any],
) -> dict[str, Any]:
    """Sensitivity, search, finalists and held-out figures."""
    tables = sensitivity(steps, spaces, measure.spread(selection, plan["sensitivity"]))
    common, tried = uniforms(spaces), Tried(steps, selection)
    tried.add("uniform schedules, selection half", common)
    guesses = [uniform_point(tables, config) for config in common]
    chosen = 0
    while True:  # what schedules really lose and cost corrects the search for further ones
        curve = tried.curve([guess.loss for guess in guesses])
        ratios = steps.cost.ratios(tried.configs)
        shift = shift_of(ratios, guesses, budget.cost)
        configs = tried.configs[len(common) :]
        if configs:
            chosen = choose(ratios[len(common) :], tried.likely(curve)[len(common) :], budget)
            moved = dict(zip(configs, map(float, tried.apart[len(common) :].mean(1))))
            room = plan["finalists"] - len(configs)
            more = further_finalists(tables, moved, configs[chosen], budget, curve, shift, room)
        else:
            more = first_finalists(tables, budget, curve, shift)
        if not more:
            break
        tried.add("finalists", more)
        guesses += [next(table for table in tables if table.knows(config)).point(config) for config in more]
    judged, far = steps.meter.measure("held-out half", tried.configs, held)
    summaries = measure.summary(tried.losses), measure.summary(judged)
    macs = Macs(steps.meter.loaded).ratios(tried.configs)
    rows = [row_of(*row) for row in zip(tried.configs, ratios, macs, *summaries)]
    for row, *pair in zip(rows, tried.apart.mean(1), far.mean(1)):
        row["disagreement"] = dict(zip(("selection", "held_out"), map(float, pair)))
    uniform, tuned = rows[: len(common)], rows[len(common) :]
    for row, guess in zip(tuned, guesses[len(common) :]):
        row |= {"predicted": curve.predicted(guess.loss), "predicted_cost": 1 + guess.cost + shift}
    return {
        "plan": plan,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "sensitivity": [table.to_dict() for table in tables],
        "curve": vars(curve),
        "shift": shift,
        "uniform": uniform,
        "tuned": tuned,
        "chosen": chosen,
        "verdict": verdict_of(
            tuned[chosen],
            uniform,
            judged[len(common) + chosen],
            judged[: len(common)],
            budget,
            steps.cost.title,
        ),
    }


def uniform_point(tables: Sequence[Table], config: ExportConfig) -> Point:
    """What a uniform schedule's blocks do alone, added up; `UNKNOWN` where that was not tried."""
    of_method = (t for t in tables if (t.space.base.method, t.space.base.variant) == (config.method, config.variant))
    table = next(of_method, None)
    return UNKNOWN if table is None else table.uniform(float(config.rate or 0))


def shift_of(ratios: Sequence[float], guesses: Sequence[Point], wanted: float | None) -> float:
    """Real costs less predicted ones: latencies do not quite add up, and by how much depends on how much merges.

    Args:
        ratios: real costs.
        guesses: the same schedules' sums over blocks; `UNKNOWN` ones do not count.
        wanted: the cost to be right at: the mean over the `NEAREST` schedules about it; None: over all.
    """
    known = [(ratio, ratio - 1 - guess.cost) for ratio, guess in zip(ratios, guesses) if guess is not UNKNOWN]
    if wanted is not None:
        known = sorted(known, key=lambda pair: abs(pair[0] - wanted))[:NEAREST]
    return fmean(difference for _, difference in known) if known else 0.0
