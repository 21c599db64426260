"""The work of a tuning in order: a plan that fits the time, sensitivity, search and finalists, held-out figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from structsam_export.config import ExportConfig
from structsam_export.datasets import Sample
from structsam_export.errors import UsageError
from structsam_export.evaluate.statistics import LEVEL, RESAMPLES, SEED
from structsam_export.evaluate.store import Store, read
from structsam_export.methods import method_class
from structsam_export.tune import measure
from structsam_export.tune.finalists import choose, finalists_of, predicted, row_of, verdict_of
from structsam_export.tune.measure import Measurer
from structsam_export.tune.space import DENSE, KEEP, Choice, Space, macs_ratio

PLAN = "plan.json"
UNIFORM = (0.25, 0.5, 0.75)
# Shares of the work of a run: what is not sensitivity is finalists, uniform schedules and held-out images.
SENSITIVITY = 0.45
FEWEST = 4  # images of the sensitivity


@dataclass(frozen=True)
class Budget:
    """What a tuned schedule has to keep to: one of the two is None.

    Args:
        loss: mIoU that may be lost.
        macs: share of the unpatched encoder's MACs that may be left.
    """

    loss: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        if (self.loss is None) == (self.macs is None):
            raise UsageError("Pass one of --max-loss and --target-macs.")
        if self.macs is not None and not 0 < self.macs < 1:
            raise UsageError(f"--target-macs {self.macs:g} is no share of the MACs. Pass one above 0 and below 1.")


class Steps:
    """Measuring with a progress bar."""

    def __init__(self, bar: Any, meter: Measurer) -> None:
        self.bar, self.meter = bar, meter

    def measure(
        self, title: str, configs: Sequence[ExportConfig], samples: Sequence[Sample]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`Measurer.measure` as one line of the bar."""
        with self.line(f"{title}, {len(configs)} schedules", len(samples)) as say:
            return self.meter.measure(configs, samples, say)

    @contextmanager
    def line(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """A line of the bar for the length of the `with` block; yields what advances it."""
        task = self.bar.add_task(title, total=total)
        yield lambda: self.bar.advance(task)


def singles(space: Space) -> dict[tuple[int, Choice], ExportConfig]:
    """Every choice of every block, alone. A rate and residual consistency are taken to add up; they are not tried."""
    return {
        (block, choice): space.single(block, choice)
        for block, options in enumerate(space.options)
        for choice in options
        if choice != DENSE and not (choice.rate and choice.mlp == KEEP)
    }


def uniforms(spaces: Sequence[Space]) -> list[ExportConfig]:
    """What a user would try without tuning: each method at one rate everywhere."""
    return [
        replace(space.base, rate=rate)
        for space in spaces
        for rate in UNIFORM
        if rate <= method_class(space.base.method).VARIANTS[str(space.base.variant)]
    ]


def planned(
    store: Store,
    steps: Steps,
    spaces: Sequence[Space],
    selection: Sequence[Sample],
    held: Sequence[Sample],
    minutes: float,
) -> dict[str, Any]:
    """How many images the sensitivity gets, and how many finalists there are; a run that continues keeps its plan."""
    alone = list(dict.fromkeys(config for space in spaces for config in singles(space).values()))
    facts = {"minutes": minutes, "schedules": len(alone), "images": len(selection) + len(held)}
    kept = read(store.folder / PLAN)
    if kept and all(kept.get(name) == value for name, value in facts.items()):
        return kept
    steps.measure("time of one encoder call", uniforms(spaces)[:1], measure.spread(selection, 2 * steps.meter.workers))
    each = steps.meter.seconds / max(steps.meter.done, 1) / steps.meter.workers / 1.5  # the unpatched model ran, too
    each = max(each, 1e-3)
    affordable = int(SENSITIVITY * 60 * minutes / each / len(alone))
    rest = (1 - SENSITIVITY) * 60 * minutes / each
    count = min(max(affordable, min(FEWEST, len(selection))), len(selection))
    finalists = min(max(int((rest / (len(selection) + len(held)) - len(uniforms(spaces))) / 1.5), 4), 16)
    plan = {**facts, "sensitivity": count, "finalists": finalists, "seconds_each": round(each, 3)}
    store.write(PLAN, plan)
    return plan


def found(
    steps: Steps,
    spaces: Sequence[Space],
    selection: Sequence[Sample],
    held: Sequence[Sample],
    budget: Budget,
    plan: dict[str, Any],
) -> dict[str, Any]:
    """Sensitivity, search, finalists and held-out figures."""
    geometry = steps.meter.loaded.geometry
    few = measure.spread(selection, plan["sensitivity"])
    alone = [singles(space) for space in spaces]
    every = list(dict.fromkeys(config for each in alone for config in each.values()))
    values = dict(zip(every, zip(*steps.measure("one block alone", every, few))))
    tables = [predicted(space, each, values, few, geometry) for space, each in zip(spaces, alone)]
    common = uniforms(spaces)
    trial = steps.measure("uniform schedules, selection half", common, selection)[0]
    configs: list[ExportConfig] = []
    losses = np.zeros((0, len(selection)))
    scale = 1.0
    for turn in range(2):  # what the first finalists really lose corrects the search for the second
        more = [c for c in finalists_of(tables, budget, scale, plan["finalists"] // 2) if c not in configs]
        if more:
            losses = np.vstack([losses, steps.measure(f"finalists {turn + 1}", more, selection)[0]])
            configs += more
        scale = scale_of(tables, configs, measure.errors(losses, selection)[0])
    ratios = [macs_ratio(config, geometry) for config in configs]
    chosen = choose(ratios, list(measure.errors(losses, selection)[0]), budget)
    both = [*common, *configs]
    judged = steps.measure("held-out half", both, held)[0]
    chose = [*measure.summary(trial, selection), *measure.summary(losses, selection)]
    rows = [row_of(c, macs_ratio(c, geometry), a, b) for c, a, b in zip(both, chose, measure.summary(judged, held))]
    uniform, tuned = rows[: len(common)], rows[len(common) :]
    for row, config in zip(tuned, configs):
        row["predicted"] = next(t.loss_of(config) for t in tables if t.knows(config)) * scale
    return {
        "plan": plan,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "sensitivity": [table.to_dict() for table in tables],
        "scale": scale,
        "uniform": uniform,
        "tuned": tuned,
        "chosen": chosen,
        "verdict": verdict_of(
            tuned[chosen], uniform, judged[len(common) + chosen], judged[: len(common)], held, budget
        ),
    }


def scale_of(tables: Sequence[Any], configs: Sequence[ExportConfig], real: np.ndarray) -> float:
    """What the finalists lose, as a multiple of what was predicted: least squares through zero, within bounds."""
    guess = np.asarray([next(t.loss_of(c) for t in tables if t.knows(c)) for c in configs])
    if not len(guess) or not float(guess @ guess):
        return 1.0
    return float(np.clip(guess @ real / (guess @ guess), 0.25, 4.0))
