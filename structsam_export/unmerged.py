"""The export of the same model without merging, where it lies beside one with it: what merging is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from structsam_export.config import ExportConfig
from structsam_export.errors import StructSAMError
from structsam_export.folder import ExportFolder, is_export, onnx_name


def unmerged_config(own: ExportFolder, checkpoint: str | None = None) -> ExportConfig:
    """How the model of a folder is exported without merging, in FP32 and in the folder's form.

    Args:
        own: the folder.
        checkpoint: where the weights are now; None: where they were.
    """
    config = own.config
    return ExportConfig(
        config.model,
        config.checkpoint if checkpoint is None else checkpoint,
        config.preprocessing,
        method="none",
        precision="fp32",
        backend="none",
        batch=config.batch,
        opset=config.opset,
        form=config.form,
    )


def unmerged_path(own: ExportFolder) -> Path:
    """Where that export lies: beside the folder."""
    config = own.config
    form = "" if config.form == "portable" else f"-{config.form}"
    return own.path.absolute().parent / f"{config.model_name}-none-r0-fp32{form}"


def unmerged_beside(own: ExportFolder) -> ExportFolder | None:
    """That export, if it is there, is of the same checkpoint, and was rewritten."""
    path = unmerged_path(own)
    try:
        if not is_export(path):
            return None
        found = ExportFolder.read(path)
    except StructSAMError:  # somebody else's folder under that name is no reason to fail
        return None
    same = is_export_of(found, unmerged_config(own), own.manifest.model["sha256"])
    return found if same and onnx_name("encoder") in found.manifest.files else None


def is_export_of(folder: ExportFolder, config: ExportConfig, sha256: str) -> bool:
    """Whether a folder's graphs are those `config` gives for a checkpoint; rate, engines and photos do not matter."""
    free = ("checkpoint", "rate", "backend", "target", "images")
    same = replace(folder.config, **{name: getattr(config, name) for name in free})
    return folder.manifest.model["sha256"] == sha256 and same == config
