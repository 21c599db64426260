"""`recipe.json`: a schedule that was found for a model, with what it was found on and what it loses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from structsam_export.config import ExportConfig, read_json
from structsam_export.console import note
from structsam_export.errors import ArtifactError, UsageError
from structsam_export.files import atomic, sha256_of
from structsam_export.schedule import Request
from structsam_export.schema import Misfit, check, digest, require

KIND, VERSION = "structsam-export recipe", 1
# What a recipe decides; everything else of an export is the user's.
DECIDES = ("method", "rate", "variant", "layers", "params", "mlp", "mlp_density")
INTERVAL = {**dict.fromkeys(("mean",), float), **dict.fromkeys(("low", "high"), (float, None))}
FORM: dict[Any, Any] = {
    "kind": str,
    "version": int,
    "model": {"name": str, "weights": digest, "preprocessing": str},
    "schedule": {
        "method": str,
        "variant": (str, None),
        "rate": (float, str, None),
        "layers": (str, None),
        "params": [[str]],
        "mlp": str,
        "mlp_density": (float, None),
    },
    "images": {"set": str, "sha256": digest, "selection": int, "held_out": int, "true_masks": bool},
    "measured": {
        "macs_ratio": float,
        "cost": {"of": str, "ratio": float},
        "selection": INTERVAL,
        "held_out": (INTERVAL, None),
    },
}


def recipe_of(
    config: ExportConfig, model: dict[str, Any], images: dict[str, Any], measured: dict[str, Any]
) -> dict[str, Any]:
    """A recipe as plain values; see FORM."""
    schedule = {name: getattr(config, name) for name in DECIDES}
    schedule["params"] = [list(pair) for pair in config.params]
    return {
        "kind": KIND,
        "version": VERSION,
        "model": model,
        "schedule": schedule,
        "images": images,
        "measured": measured,
    }


def write(path: Path, recipe: dict[str, Any]) -> None:
    """Write a recipe, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic(path) as partial:
        partial.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Read a recipe.

    Raises:
        ArtifactError: missing, of another version, or no recipe.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no recipe {path}. Make one: structsam-export tune --output FOLDER")
    found: Any = read_json(path)
    try:
        require(found, ("kind", "version"), "the recipe")
        if found["kind"] != KIND or found["version"] != VERSION or isinstance(found["version"], bool):
            raise Misfit(f"it is no recipe of version {VERSION}, the one this program reads")
        require(found, FORM, "the recipe")
        check(found, FORM, "recipe")
        for part in ("model", "schedule", "images"):
            require(found[part], FORM[part], f"recipe.{part}")
        if unknown := [name for name in found["schedule"] if name not in DECIDES]:
            raise Misfit(f"recipe.schedule has an unknown '{unknown[0]}'")
        if not all(len(pair) == 2 for pair in found["schedule"]["params"]):
            raise Misfit("recipe.schedule.params is no list of pairs")
        Request.of(applied(found, ExportConfig()))
    except (Misfit, UsageError) as error:
        raise ArtifactError(f"{path} cannot be used: {error}. Make it again: structsam-export tune") from None
    made: dict[str, Any] = found
    return made


def applied(recipe: dict[str, Any], config: ExportConfig) -> ExportConfig:
    """A configuration with a recipe's schedule in place of its own."""
    schedule = dict(recipe["schedule"])
    schedule["params"] = tuple((key, value) for key, value in schedule["params"])
    if isinstance(schedule["rate"], int):
        schedule["rate"] = float(schedule["rate"])
    return replace(config, **schedule)


def origin(path: Path, recipe: dict[str, Any]) -> dict[str, str]:
    """What an export's manifest says of the recipe it was made by."""
    return {"name": path.name, "sha256": sha256_of(path), "weights": recipe["model"]["weights"]}


def with_recipe(config: ExportConfig, path: Path) -> tuple[ExportConfig, dict[str, str]]:
    """A configuration with a recipe's schedule, and what the manifest says of the recipe.

    Raises:
        ArtifactError: no recipe, or one of another version.
    """
    recipe = read(path)
    return applied(recipe, config), origin(path, recipe)


def say_other_weights(origin: dict[str, str], weights: str) -> None:
    """Say on stderr that a recipe was made for other weights than those that are exported."""
    if origin["weights"] != weights:
        note(
            f"{origin['name']} was made for other weights ({origin['weights'][:12]}..., these are {weights[:12]}...): "
            "what it loses here is not known. Tune these weights, or evaluate the export."
        )
