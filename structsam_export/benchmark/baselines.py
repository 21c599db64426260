"""What merging is compared with: the stock encoder as peers export it, and the same after our rewriting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.benchmark.variants import named
from structsam_export.config import ExportConfig

if TYPE_CHECKING:
    from structsam_export.artifact import Manifest


def baselines_of(target: str) -> list[str]:
    """Targets "plain" and "rewritten" for the model of an output folder, exported beside it if they are not there.

    Plain is `torch.onnx.export` of `segment_anything`'s encoder and nothing else; rewritten is the unmerged encoder
    after every rule, in the form of the target, so that gains from merging and from rewriting are separate numbers.

    Raises:
        ArtifactError: the target is no output folder, so that nobody knows its checkpoint.
    """
    from structsam_export.artifact import MANIFEST, Manifest
    from structsam_export.pipeline import rewrite_stage, trace_only

    folder = named(target)[1]
    own = Manifest.read(folder)
    form = own.config.form
    dense = folder.absolute().parent / f"{own.config.model}-none-r0-fp32{'' if form == 'portable' else f'-{form}'}"
    bare = ExportConfig(
        own.config.model,
        own.config.checkpoint,
        method="none",
        precision="fp32",
        backend="none",
        batch=own.config.batch,
        opset=own.config.opset,
        form=form,
    )
    if not (dense / MANIFEST).exists() or not is_export_of(Manifest.read(dense), bare, own.model["sha256"]):
        trace_only(bare, dense, force=True)
    manifest = Manifest.read(dense)
    if "encoder.onnx" not in manifest.files:
        rewrite_stage(dense, manifest)
    plain: Path = manifest.verified(dense, "encoder.raw.onnx")
    return [f"plain={plain}", f"rewritten={dense}"]


def is_export_of(manifest: Manifest, config: ExportConfig, sha256: str) -> bool:
    """Whether a folder's graphs are those `config` gives for a checkpoint; rate, engines and photos do not matter."""
    free = ("checkpoint", "rate", "backend", "target", "images")
    same = replace(manifest.config, **{name: getattr(config, name) for name in free})
    return manifest.model["sha256"] == sha256 and same == config
