"""What a manifest may hold, as forms of `schema`, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from structsam_export.backends.base import Engine
from structsam_export.config import ExportConfig, read_json
from structsam_export.errors import ArtifactError, shortened
from structsam_export.files import sha256_of
from structsam_export.paths import is_bare
from structsam_export.schema import Misfit, between, check, digest, one_of, require, share

PARTS = ("encoder", "decoder")
REPORT, PAGE = "report.json", "report.html"

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
        "preprocessing": one_of("sam", "medsam", "litemedsam", "efficientsam", "timm"),
        "data": dict,
        "parts": [one_of(*PARTS)],
        **dict.fromkeys(("geometry", "architecture"), dict),
        "prompts": {"points": side, "masks": bool},
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
        "judged": {str: digest},
        "recipe": ({"name": str, "sha256": digest, "weights": digest}, None),
    },
}
ENGINE_KEYS = ("file", "part", "backend", "version", "sm", "sha256", "bytes")
DECODER_KEYS = ("mask_channels", "layers", "heads", "inner_dim", "mlp_dim", "masks", "iou_layers", "iou_dim")
PROMPT_KEYS = ("points", "masks")  # of `runtime.limits.PromptLimits`
DEEPEST = 256  # blocks, as in `models.reading`
STAGES, STAGE_KEYS = 4, ("dims", "depths", "heads", "windows")  # of a TinyViT
GEOMETRY_KEYS = ("image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "out_channels")


def bare(name: object, where: Path) -> str:
    """A file name from a manifest, which must not lead out of its folder.

    Raises:
        ArtifactError: not text, or a path.
    """
    if not is_bare(name):
        raise ArtifactError(
            f"{where} names a file {shortened(repr(name))}, which is no plain file name. Export again with --force."
        )
    return str(name)


def check_geometry(geometry: dict[str, Any], where: str = "manifest.model.geometry") -> None:
    """Compare a model's sizes in a manifest with what they may be.

    Raises:
        Misfit: missing, or out of all proportion.
    """
    names = (*GEOMETRY_KEYS, "grid", "windows")
    require(geometry, names, where)
    form = {
        **dict.fromkeys(GEOMETRY_KEYS, side),
        "depth": window,
        "grid": [side],
        "windows": [window],
        "other_macs": size,
        "prefix": window,
        "positions": bool,
    }
    check(geometry, form, where)
    if unknown := [name for name in geometry if name not in form]:
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
        "decoder": {**dict.fromkeys(DECODER_KEYS, between(1, 1 << 16)), "mask_channels": window},
        **dict.fromkeys(("qkv_bias", "positions"), bool),
        **dict.fromkeys(("encoder_eps", "decoder_eps"), share),
    }
    require(architecture, form, where)
    form["family"] = str  # left out by earlier versions
    form["stages"] = {"stem": side, **dict.fromkeys(STAGE_KEYS, [window])}
    check(architecture, form, where)
    check_stages(architecture, where)
    require(architecture["decoder"], DECODER_KEYS, f"{where}.decoder")
    check_geometry(architecture["encoder"], f"{where}.encoder")
    for part, known in ((architecture, form), (architecture["decoder"], DECODER_KEYS)):
        if unknown := [name for name in part if name not in known]:
            raise Misfit(f"{where} has an unknown '{shortened(unknown[0])}'")
    if max(architecture["encoder"]["depth"], architecture["decoder"]["layers"]) > DEEPEST:
        raise Misfit(f"{where} has more than {DEEPEST} blocks")


def check_stages(architecture: dict[str, Any], where: str) -> None:
    """Compare a TinyViT's stages with what they may be; other encoders have none, but blocks.

    Raises:
        Misfit: missing, or not four of each.
    """
    stages = architecture.get("stages")
    if stages is None:
        if not architecture["encoder"].get("depth"):
            raise Misfit(f"{where} has neither blocks nor stages")
        return
    require(stages, ("stem", *STAGE_KEYS), f"{where}.stages")
    if set(stages) != {"stem", *STAGE_KEYS} or any(len(stages[key]) != STAGES for key in STAGE_KEYS):
        raise Misfit(f"{where}.stages are not {STAGES}")
    if stages["stem"] not in (1, 3) or 0 in (*stages["dims"], *stages["heads"][1:], *stages["windows"][1:]):
        raise Misfit(f"{where}.stages are no TinyViT's")
    if any(dim % heads for dim, heads in zip(stages["dims"][1:], stages["heads"][1:])):
        raise Misfit(f"{where}.stages have channels that heads do not divide")
    if max(stages["depths"]) > DEEPEST:
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
    if (prompts := data["model"].get("prompts")) is not None:
        require(prompts, PROMPT_KEYS, "manifest.model.prompts")
        if set(prompts) != set(PROMPT_KEYS):
            raise Misfit(f"manifest.model.prompts have other parts than {' and '.join(PROMPT_KEYS)}")
    if geometry := data["model"].get("geometry"):
        check_geometry(geometry)
    if architecture := data["model"].get("architecture"):
        check_architecture(architecture)
    if (data["model"].get("preprocessing") == "timm") != ("data" in data["model"]):
        raise Misfit("manifest.model has a preprocessing of timm's without its data, or the reverse")
    if "encoder" not in data["model"].get("parts", PARTS):
        raise Misfit("manifest.model.parts has no encoder")


@dataclass(frozen=True)
class Results:
    """What the stages found, as the manifest keeps it.

    Args:
        rewrite: part -> rule -> times fired.
        graph: part -> "nodes_raw", "nodes".
        rewrite_skipped: part -> reasons for near matches that were left alone.
        precision: `precision.Conversion` as plain values, and "largest" activations; None for FP32.
        passed: the verdict of the last validation; None if there was none since the files changed.
        judged: the files that the verdict is about, with their SHA-256; empty in folders of earlier versions.
        recipe: name and SHA-256 of the recipe that the schedule is from, and of the weights it was made for; or None.
    """

    rewrite: dict[str, dict[str, int]] = field(default_factory=dict)
    graph: dict[str, dict[str, int]] = field(default_factory=dict)
    rewrite_skipped: dict[str, list[str]] = field(default_factory=dict)
    precision: dict[str, Any] | None = None
    passed: bool | None = None
    judged: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that hold something."""
        return {name: value for name, value in vars(self).items() if value not in ({}, None)}


@dataclass
class Manifest:
    """What an export folder holds.

    `files` maps a name to {"sha256", "bytes"}; `model` describes the checkpoint (name, sha256, geometry); `versions`
    the libraries that took part.
    """

    config: ExportConfig
    model: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    engines: list[Engine] = field(default_factory=list)
    results: Results = field(default_factory=Results)
    stamp: str = field(default="", compare=False)  # SHA-256 of the file as last read or written

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest, this version's or an earlier one's.

        Raises:
            ArtifactError: missing, or not ours.
        """
        data = read_json(path)
        try:
            check_manifest(data)
            for name in [*data["files"], *(engine["file"] for engine in data["engines"])]:
                bare(name, path)
            made = cls(
                config=ExportConfig.from_dict(data["config"]),
                engines=[Engine.from_dict(engine) for engine in data["engines"]],
                results=Results(**data["results"]),
                **{k: data[k] for k in ("model", "versions", "files")},
                stamp=sha256_of(path),
            )
            made.drop_stale_verdict()
            return made
        except Misfit as error:
            raise ArtifactError(f"{path} cannot be used: {error}. Export again with --force.") from None
        except TypeError:
            raise ArtifactError(f"{path} holds results of another version. Export again with --force.") from None
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        return {
            **{name: value for name, value in vars(self).items() if name != "stamp"},
            "config": self.config.to_dict(),
            "engines": [engine.to_dict() for engine in self.engines],
            "results": self.results.to_dict(),
        }

    def graphs(self) -> dict[str, str]:
        """SHA-256 of everything a verdict is about: all files but reports."""
        return {name: entry["sha256"] for name, entry in self.files.items() if name not in (REPORT, PAGE)}

    def drop_stale_verdict(self) -> None:
        """Forget a verdict on other files than those that are listed now."""
        if self.results.judged and self.results.judged != self.graphs():
            self.results = replace(self.results, passed=None, judged={})
