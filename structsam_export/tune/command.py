"""`structsam-export tune`: sensitivity, search, finalists, held-out figures, recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.config import ExportConfig
from structsam_export import recipes
from structsam_export.console import note, progress
from structsam_export.datasets import Sample
from structsam_export.errors import BadInputError, UsageError
from structsam_export.evaluate.statistics import LEVEL, RESAMPLES, SEED
from structsam_export.evaluate.store import Store, default_folder, read
from structsam_export.job import loaded_for
from structsam_export.models import LoadedModel
from structsam_export.sweep.grid import fraction, parse, parts
from structsam_export.sweep.parallel import workers_for
from structsam_export.tune import measure
from structsam_export.tune.measure import Measurer
from structsam_export.tune.space import DENSE, KEEP, Choice, Space, macs_ratio, space_of

SCHEMA = 1
PLAN = "plan.json"
MINUTES, QUICK_MINUTES = 20.0, 5.0
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


def run(
    budget: Budget,
    dataset: str | None,
    photos: Path | None,
    *,
    model: str = "auto",
    checkpoint: str | None = None,
    preprocessing: str = "auto",
    methods: str = "structsam:cell,algm",
    rates: str = "0.5,0.75",
    mlps: str = "merge,residual-consistency",
    root: Path | None = None,
    prompt: str = "box",
    limit: int | None = None,
    minutes: float | None = None,
    quick: bool = False,
    workers: int | None = None,
    output: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Find the schedule, measure it, and write `recipe.json` and `report.json` into the results' folder.

    Args:
        budget: what to keep to.
        dataset, photos: images with true masks (a name or a folder), or a folder of photos without; one of them.
        model, checkpoint, preprocessing: as in `ExportConfig`.
        methods: see `sweep.grid.parse`; each schedule has one method, the best is taken.
        rates, mlps: what is tried in every block, besides doing nothing.
        root, prompt: see `evaluate`.
        limit: only so many images of each part of the set.
        minutes: the work is planned to fit, by the time of one encoder call; None: 20, or 5 with `quick`.
        quick: one method, the first.
        workers: images at once; None: one a core with a small model.
        output: folder of the results, where a stopped run continues.
        force: replace results of another run in it.

    Returns:
        The report: `budget`, `model`, `images`, `plan`, `sensitivity`, `uniform`, `tuned` (rows), `chosen`, `verdict`,
        `recipe` (path), `output`.

    Raises:
        UsageError, BadInputError, OutputError: see `sweep.compare`.
        KeyboardInterrupt: with a message that says where finished images are.
    """
    base = ExportConfig(model=model, checkpoint=checkpoint, preprocessing=preprocessing, precision="fp32")
    bases, tried = forms(base, methods, quick), sorted({fraction(part) for part in parts(rates, "rates")})
    wanted = policies(mlps)
    if (dataset is not None) and photos is not None:
        raise UsageError("Pass --dataset or --photos, not both.")
    loaded = loaded_for(base)
    samples, name, true = images_of(dataset, photos, root, limit, loaded)
    selection, held = measure.halves(samples)
    if len(selection) < 2 or not held:
        raise BadInputError(
            f"{len(samples)} images are too few: one half is to choose on, the other to judge on. Pass at least 4."
        )
    spaces = [space_of(one, tried, wanted, loaded) for one in bases]
    facts = {"dataset": name, "prompt": prompt, "true_masks": true, "weights": loaded.weights}
    place = output or default_folder(name, base.model_name, "tune", prompt=prompt)
    store = Store(place, {"tune": True, **facts}, force=force)
    meter = Measurer(loaded, store, prompt, true, workers or workers_for(loaded, len(samples)))
    with store.kept(), progress() as bar:
        steps = Steps(bar, meter)
        plan = planned(store, steps, spaces, selection, held, minutes or (QUICK_MINUTES if quick else MINUTES))
        report = found(steps, spaces, selection, held, budget, plan)
    images = {
        "set": name,
        "sha256": digest_of(samples),
        "selection": len(selection),
        "held_out": len(held),
        "true_masks": true,
    }
    about = {"name": base.model_name, "weights": loaded.sha256, "preprocessing": loaded.spec.preprocessing}
    report = {"schema": SCHEMA, "budget": vars(budget), "model": about, "images": images, "prompt": prompt, **report}
    chosen = report["tuned"][report["chosen"]]
    figures = {name: chosen[name] for name in ("macs_ratio", "selection", "held_out")}
    made = recipes.recipe_of(ExportConfig(**chosen["schedule"]), about, images, figures)
    recipes.write(place / "recipe.json", made)
    report |= {"recipe": str(place / "recipe.json"), "output": str(place)}
    store.report(report)
    return report


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


def forms(base: ExportConfig, methods: str, quick: bool) -> list[ExportConfig]:
    """A configuration for each method and variant to try."""
    found = [replace(base, method=name, variant=variant) for name, variant in parse(methods, "0.5", "all").forms]
    return found[:1] if quick else found


def policies(text: str) -> list[str]:
    """The MLP policies of `--mlps`."""
    from structsam_export.errors import unknown_name
    from structsam_export.methods.mlp import MLPS

    found = parts(text, "mlps")
    if wrong := next((name for name in found if name not in MLPS), None):
        raise unknown_name("MLP choice", wrong, MLPS)
    return [name for name in found if name != "none"]


def images_of(
    dataset: str | None, photos: Path | None, root: Path | None, limit: int | None, loaded: LoadedModel
) -> tuple[list[Sample], str, bool]:
    """The images, what they are called, and whether their masks are true ones."""
    from structsam_export.evaluate.command import opened
    from structsam_export.sweep import spread
    from structsam_export.tune.photos import drawn

    if photos is not None:
        return drawn(photos, loaded, limit), photos.resolve().name, False
    chosen, every = opened(dataset or "bundled", root, None)
    return spread(every, limit), chosen.name, True


def digest_of(samples: Sequence[Sample]) -> str:
    """SHA-256 over the digests of all images, whatever their order."""
    return hashlib.sha256("".join(sorted(sample.digest() for sample in samples)).encode()).hexdigest()


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
    from structsam_export.methods import method_class

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
    from structsam_export.tune.finalists import choose, finalists_of, predicted, row_of, verdict_of

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


def tell(report: dict[str, Any]) -> None:
    """What came out, on stderr."""
    for line in report["verdict"]["lines"]:
        note(line)
    note(f"recipe: {report['recipe']}; export it: structsam-export export --recipe {report['recipe']}")


__all__ = ["Budget", "run", "tell"]
