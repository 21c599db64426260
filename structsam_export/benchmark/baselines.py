"""What merging is compared with: the stock encoder as peers export it, and the same after our rewriting."""

from __future__ import annotations

from dataclasses import replace

from structsam_export.benchmark.variants import named
from structsam_export.config import ExportConfig
from structsam_export.folder import ExportFolder, is_export, onnx_name


def baselines_of(target: str) -> list[str]:
    """Targets "plain" and "rewritten" for the model of an export folder, exported beside it if they are not there.

    Plain is `torch.onnx.export` of the stock encoder and nothing else; rewritten is the unmerged encoder after every
    rule, in the form of the target, so that gains from merging and from rewriting are separate numbers.

    Raises:
        ArtifactError: the target is no export folder, so that nobody knows its checkpoint.
    """
    from structsam_export.pipeline import rewrite_stage, trace_only

    own = ExportFolder.read(named(target)[1])
    config = own.config
    form = "" if config.form == "portable" else f"-{config.form}"
    dense = own.path.absolute().parent / f"{config.model_name}-none-r0-fp32{form}"
    bare = ExportConfig(
        config.model,
        config.checkpoint,
        config.preprocessing,
        method="none",
        precision="fp32",
        backend="none",
        batch=config.batch,
        opset=config.opset,
        form=config.form,
    )
    if not is_export(dense) or not is_export_of(ExportFolder.read(dense), bare, own.manifest.model["sha256"]):
        trace_only(bare, dense, force=True)
    folder = ExportFolder.read(dense)
    if onnx_name("encoder") not in folder.manifest.files:
        rewrite_stage(folder)
    return [f"plain={folder.raw('encoder')}", f"rewritten={dense}"]


def is_export_of(folder: ExportFolder, config: ExportConfig, sha256: str) -> bool:
    """Whether a folder's graphs are those `config` gives for a checkpoint; rate, engines and photos do not matter."""
    free = ("checkpoint", "rate", "backend", "target", "images")
    same = replace(folder.config, **{name: getattr(config, name) for name in free})
    return folder.manifest.model["sha256"] == sha256 and same == config
