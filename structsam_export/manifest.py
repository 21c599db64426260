"""What a manifest may hold, as forms of `schema`; `folder.Manifest` is what is made of it."""

from __future__ import annotations

from typing import Any

from structsam_export.errors import shortened
from structsam_export.schema import Misfit, between, check, digest, one_of, require, share

PARTS = ("encoder", "decoder")

size, side, window = between(0, 1 << 50), between(1, 1 << 16), between(0, 1 << 16)


def record(value: Any) -> str | None:
    """The form of a file's entry: its hash and size."""
    right = isinstance(value, dict) and digest(value.get("sha256")) is None and size(value.get("bytes")) is None
    return None if right else "not its SHA-256 and bytes"


# What a manifest may be, see `schema`.
FORM: dict[Any, Any] = {
    "config": dict,
    "model": {
        **dict.fromkeys(("checkpoint", "source"), str),
        "sha256": digest,
        "preprocessing": one_of("sam", "medsam"),
        **dict.fromkeys(("geometry", "architecture"), dict),
    },
    "versions": {str: str},
    "files": {str: record},
    "engines": [
        {
            **dict.fromkeys(("backend", "version", "sm"), str),
            "part": one_of(*PARTS),
            "sha256": digest,
            "bytes": size,
            "options": dict,
            "executed": bool,
        }
    ],
    "results": {
        "rewrite": {str: {str: int}},
        "graph": {str: {str: int}},
        "rewrite_skipped": {str: [str]},
        "precision": (dict, None),
        "passed": (bool, None),
    },
}
ENGINE_KEYS = ("file", "part", "backend", "version", "sm", "sha256", "bytes")
DECODER_KEYS = ("mask_channels", "layers", "heads", "inner_dim", "mlp_dim", "masks", "iou_layers", "iou_dim")
DEEPEST = 256  # blocks, as in `models.reading`
GEOMETRY_KEYS = ("image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "out_channels")


def check_geometry(geometry: dict[str, Any], where: str = "manifest.model.geometry") -> None:
    """Compare a model's sizes in a manifest with what they may be.

    Raises:
        Misfit: missing, or out of all proportion.
    """
    names = (*GEOMETRY_KEYS, "grid", "windows")
    require(geometry, names, where)
    check(geometry, {**dict.fromkeys(GEOMETRY_KEYS, between(1, 1 << 16)), "grid": [side], "windows": [window]}, where)
    if unknown := [name for name in geometry if name not in names]:
        raise Misfit(f"{where} has an unknown '{shortened(unknown[0])}'")
    if len(geometry["grid"]) != 2 or len(geometry["windows"]) != geometry["depth"]:
        raise Misfit(f"{where} has a grid or windows of another length")


def check_architecture(architecture: dict[str, Any]) -> None:
    """Compare what was read from weights, in a manifest, with what it may be.

    Raises:
        Misfit: missing, or out of all proportion.
    """
    where = "manifest.model.architecture"
    form = {
        "encoder": dict,
        "decoder": dict.fromkeys(DECODER_KEYS, between(1, 1 << 16)),
        **dict.fromkeys(("qkv_bias", "positions"), bool),
        **dict.fromkeys(("encoder_eps", "decoder_eps"), share),
    }
    require(architecture, form, where)
    check(architecture, form, where)
    require(architecture["decoder"], DECODER_KEYS, f"{where}.decoder")
    check_geometry(architecture["encoder"], f"{where}.encoder")
    for part, known in ((architecture, form), (architecture["decoder"], DECODER_KEYS)):
        if unknown := [name for name in part if name not in known]:
            raise Misfit(f"{where} has an unknown '{shortened(unknown[0])}'")
    if max(architecture["encoder"]["depth"], architecture["decoder"]["layers"]) > DEEPEST:
        raise Misfit(f"{where} has more than {DEEPEST} blocks")


def check_manifest(data: Any) -> None:
    """Compare a manifest, as `json.loads` gives it, with what it may be; names and configuration are checked elsewhere.

    Raises:
        Misfit: the first thing that is missing or of another kind.
    """
    require(data, FORM, "the manifest")
    check(data, FORM, "manifest")
    require(data["model"], ("sha256",), "manifest.model")
    for i, engine in enumerate(data["engines"]):
        require(engine, ENGINE_KEYS, f"manifest.engines[{i}]")
    if geometry := data["model"].get("geometry"):
        check_geometry(geometry)
    if architecture := data["model"].get("architecture"):
        check_architecture(architecture)
