"""`structsam-export tune`: sensitivity, search, finalists, held-out figures, recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from structsam_export import recipes
from structsam_export.config import ExportConfig
from structsam_export.console import note
from structsam_export.datasets import Sample
from structsam_export.errors import BadInputError, UsageError
from structsam_export.evaluate.store import Store, default_folder
from structsam_export.job import loaded_for, require_masks
from structsam_export.methods import method_class
from structsam_export.models import LoadedModel
from structsam_export.sweep.grid import fraction, parts, variants_of
from structsam_export.sweep.parallel import workers_for
from structsam_export.tune import measure
from structsam_export.tune.costs import Latency, Macs, check_runner
from structsam_export.tune.measure import Measurer
from structsam_export.tune.space import KEEP, Space, space_of
from structsam_export.tune.steps import Budget, Steps, found, planned

SCHEMA = 5
MINUTES, QUICK_MINUTES = 20.0, 5.0


@dataclass(frozen=True)
class Menu:
    """What is tried: methods (`sweep.grid.parse`; a schedule has one, `quick` tries the first only), rates and MLP
    policies as lists in text; densities are those of residual consistency, one for all blocks of a schedule."""

    methods: str = "structsam:proportional,algm"
    rates: str = "0.25,0.5,0.75"
    mlps: str = "merge,residual-consistency"
    densities: str = "0.25,0.5"
    quick: bool = False

    def bases(self, base: ExportConfig) -> list[ExportConfig]:
        """A configuration for each method and variant."""
        pairs = dict.fromkeys(pair for part in parts(self.methods, "methods") for pair in variants_of(part))
        return [replace(base, method=name, variant=variant) for name, variant in pairs][: 1 if self.quick else None]

    def spaces(self, base: ExportConfig, loaded: LoadedModel) -> list[Space]:
        """What each of them can do in every block of a model."""
        rates = fractions(self.rates, "rates")
        mlps = policies(self.mlps)
        densities = fractions(self.densities, "densities") if KEEP in mlps else [None]
        every = [replace(one, mlp_density=density) for one in self.bases(base) for density in densities]
        return [space_of(one, rates, mlps, loaded) for one in every]


def run(
    budget: Budget,
    menu: Menu,
    dataset: str | None,
    photos: Path | None,
    *,
    model: str = "auto",
    checkpoint: str | None = None,
    preprocessing: str = "auto",
    root: Path | None = None,
    prompt: str = "box",
    limit: int | None = None,
    runner: str | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    output: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Find the schedule, measure it, and write `recipe.json` and `report.json` into the results' folder.

    Args:
        budget, menu: what to keep to, and what to try.
        dataset, photos: images with true masks (a name or a folder), or a folder of photos without; one of them.
        model, checkpoint, preprocessing: as in `ExportConfig`.
        runner: the cost is the latency on this one of `bench`; None: MACs, or ort-cpu for a target of latency.
        root, prompt, limit, workers, output, force: see `sweep.compare`.
        minutes: the work is planned to fit, by the time of one encoder call; None: 20, or 5 with `menu.quick`.

    Returns:
        The report: `budget`, `cost` (what it is), `model`, `images`, `prompt`, `plan`, `bootstrap`, `sensitivity`,
        `curve`, `shift`, `uniform`, `tuned` (rows), `chosen` (of them), `verdict`, `recipe` (path), `output`.

    Raises:
        UsageError, BadInputError, OutputError: see `sweep.compare`.
        KeyboardInterrupt: with a message that says where finished images are.
    """
    base = ExportConfig(model=model, checkpoint=checkpoint, preprocessing=preprocessing, precision="fp32")
    runner = checked_runner(budget, runner)
    check(menu, base, dataset, photos, prompt)
    loaded = require_masks(loaded_for(base))
    samples, name, true = images_of(dataset, photos, root, limit, loaded)
    both = halved(samples)
    store = Store(
        output or default_folder(name, base.model_name, "tune", prompt=prompt),
        {"tune": True, "dataset": name, "prompt": prompt, "true_masks": true, "weights": loaded.weights},
        force=force,
    )
    meter = Measurer(loaded, store, prompt, true, workers or workers_for(loaded, len(samples)))
    cost = Macs(loaded) if runner is None else Latency(loaded, runner, store)
    with store.kept():
        steps, spaces = Steps(meter, cost), menu.spaces(base, loaded)
        plan = planned(store, steps, spaces, *both, minutes or (QUICK_MINUTES if menu.quick else MINUTES))
        both = paid_for(both, plan)
        report = found(steps, spaces, *both, budget, plan)
    images = {"set": name, "true_masks": true, "of": len(samples), **used(*both)}
    about = {"name": base.model_name, "weights": loaded.sha256, "preprocessing": loaded.spec.preprocessing}
    facts = {"schema": SCHEMA, "budget": vars(budget), "cost": cost.title, "model": about, "images": images}
    facts["prompt"] = prompt
    return written({**facts, **report}, store)


def paid_for(both: tuple[list[Sample], list[Sample]], plan: Mapping[str, Any]) -> tuple[list[Sample], list[Sample]]:
    """The images of both halves that the plan uses; a message says where these are not all."""
    paid = measure.spread(both[0], plan["selection"]), measure.spread(both[1], plan["held_out"])
    fit, images = (sum(map(len, pair)) for pair in (paid, both))
    if fit < images:
        note(f"{fit} of {images} images fit into the time. Pass --minutes for more, which says losses more exactly.")
    return paid


def check(menu: Menu, base: ExportConfig, dataset: str | None, photos: Path | None, prompt: str) -> None:
    """Refuse what can be refused before the model is loaded.

    Raises:
        UsageError: unknown names, rates that are none, or both kinds of images.
    """
    from structsam_export.evaluate import check_names
    from structsam_export.methods.base import Method

    check_names("sam", prompt)
    if dataset is not None and photos is not None:
        raise UsageError("Pass --dataset or --photos, not both.")
    policies(menu.mlps)
    for option in ("rates", "densities"):
        fractions(getattr(menu, option), option)
    for one in menu.bases(base):
        if method_class(one.method).first_layer is not Method.first_layer:
            raise UsageError(f"'{one.method}' changes the grid of all blocks behind it. Leave it out of --methods.")


def fractions(text: str, option: str) -> list[float]:
    """The fractions of an option, smallest first."""
    return sorted({fraction(part, option) for part in parts(text, option)})


def checked_runner(budget: Budget, runner: str | None) -> str | None:
    """What latency is measured on; None: the cost is MACs.

    Raises:
        UsageError, MissingRuntimeError: one that cannot be used.
    """
    if budget.macs is not None and runner is not None:
        raise UsageError("--target-macs counts, --runner measures. Pass --target-latency, or leave --runner away.")
    if budget.latency is not None and runner is None:
        runner = "ort-cpu"
    if runner is not None:
        check_runner(runner)
    return runner


def halved(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """`measure.halves`.

    Raises:
        BadInputError: too few images.
    """
    selection, held = measure.halves(samples)
    if len(selection) < 2 or not held:
        raise BadInputError(
            f"{len(samples)} images are too few: one half is to choose on, the other to judge on. Pass at least 4."
        )
    return selection, held


def written(report: dict[str, Any], store: Store) -> dict[str, Any]:
    """The report with its places, once it and the recipe are written."""
    chosen = report["tuned"][report["chosen"]]
    figures = {name: chosen[name] for name in ("macs_ratio", "selection", "held_out")}
    figures |= {"cost": {"of": report["cost"], "ratio": chosen["cost"]}}
    made = recipes.recipe_of(ExportConfig(**chosen["schedule"]), report["model"], report["images"], figures)
    recipes.write(store.folder / "recipe.json", made)
    report = {**report, "recipe": str(store.folder / "recipe.json"), "output": str(store.folder)}
    store.report(report)
    return report


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


def used(selection: Sequence[Sample], held: Sequence[Sample]) -> dict[str, Any]:
    """How many images chose and judged, and the SHA-256 over the digests of all of them, whatever their order."""
    digests = sorted(sample.digest() for sample in (*selection, *held))
    sha256 = hashlib.sha256("".join(digests).encode()).hexdigest()
    return {"selection": len(selection), "held_out": len(held), "sha256": sha256}


def tell(report: dict[str, Any]) -> None:
    """What came out, on stderr."""
    for line in report["verdict"]["lines"]:
        note(line)
    note(f"recipe: {report['recipe']}; export it: structsam-export export --recipe {report['recipe']}")


__all__ = ["Budget", "run", "tell"]
