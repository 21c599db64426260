"""Evaluating random schedules beside a tuned one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from random_schedules.package import (
    SETTINGS,
    Choice,
    ExportConfig,
    Macs,
    Measurer,
    Space,
    Store,
    StructSAMError,
    at_random,
    loaded_for,
    measure,
    opened,
    read,
)

WIDTH, ERRORS = 0.01, 3.0


def compared(folder: Path, count: int, images: int, checkpoint: str | None, jobs: int) -> dict[str, Any]:
    """How many of `count` random schedules a tuned one beats on the selection half.

    Args:
        folder: of `tune`.
        count, images, checkpoint, jobs: as on the command line.

    Raises:
        StructSAMError: the folder holds no tuning for MACs.
    """
    report, settings = read(folder / "report.json"), read(folder / SETTINGS)
    if not report or not settings or report.get("cost") != "MACs":
        raise StructSAMError(f"{folder} holds no tuning for MACs. Run: structsam-export tune --output {folder}")
    base = ExportConfig(model=report["model"]["name"], checkpoint=checkpoint, precision="fp32")
    loaded = loaded_for(base)
    selection, _ = measure.halves(opened(settings["dataset"], None, None)[1])
    kept = {k: v for k, v in settings.items() if k != "schema"}
    meter = Measurer(loaded, Store(folder, kept), report["prompt"], report["images"]["true_masks"], jobs)
    chosen = report["tuned"][report["chosen"]]
    tuned = ExportConfig(**{**vars(base), **chosen["schedule"]})
    others = drawn(report, base, chosen["macs_ratio"], count, Macs(loaded))
    few = measure.spread(selection, images)
    first, moved = meter.measure("some images", [tuned, *others], few)
    mean, error = measure.errors(first[1:] - first[0])
    near = [i for i in range(len(others)) if mean[i] <= ERRORS * error[i]]
    whole, far = meter.measure("selection half", [tuned, *(others[i] for i in near)], selection)
    real, apart = whole.mean(1), far.mean(1)
    at = (0, 0.05, 0.5, 0.95, 1)
    return {
        "random": len(others),
        "beaten": len(others) - int((real[1:] <= real[0]).sum()),
        "beaten_in_disagreement": len(others) - int((apart[1:] <= apart[0]).sum()),
        "images": {"all": len(few), "near": len(selection)},
        "near": len(near),
        "tuned": {"loss": float(real[0]), "on_few": float(first[0].mean()), "disagreement": float(apart[0])},
        "random_on_few": dict(zip(map(str, at), map(float, np.quantile(first[1:].mean(1), at)))),
        "random_disagreement_on_few": dict(zip(map(str, at), map(float, np.quantile(moved[1:].mean(1), at)))),
        "least_of_near": float(real[1:].min()) if near else None,
    }


def drawn(report: dict[str, Any], base: ExportConfig, wanted: float, count: int, macs: Macs) -> list[ExportConfig]:
    """Random schedules of all tables of a report, as many of each."""
    made: list[ExportConfig] = []
    tables = report["sensitivity"]
    for number, table in enumerate(tables):
        method, _, variant = table["method"].partition(":")
        options = tuple(tuple(Choice(o["rate"], o["mlp"]) for o in block) for block in table["blocks"])
        named = {"method": method, "variant": variant, "mlp_density": table["density"]}
        space = Space(ExportConfig(**{**vars(base), **named}), options)
        share = count // len(tables) + (number < count % len(tables))
        for picks in at_random(macs.table(space), wanted - 1, WIDTH, share, seed=number):
            made.append(space.config([block[i] for block, i in zip(options, picks)]))
    return list(dict.fromkeys(made))
