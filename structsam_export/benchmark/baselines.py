"""What merging is compared with: the stock encoder as peers export it, and the same after our rewriting."""

from __future__ import annotations

from structsam_export.benchmark.variants import named
from structsam_export.folder import ExportFolder, is_export, onnx_name
from structsam_export.unmerged import is_export_of, unmerged_config, unmerged_path


def baselines_of(target: str, checkpoint: str | None = None) -> list[str]:
    """Targets "plain" and "rewritten" for the model of an export folder, exported beside it if they are not there.

    Plain is `torch.onnx.export` of the stock encoder and nothing else; rewritten is the unmerged encoder after every
    rule, in the form of the target, so that gains from merging and from rewriting are separate numbers.

    Args:
        target: an export folder, as `bench` takes it.
        checkpoint: where the weights are now; None: where they were.

    Raises:
        ArtifactError: the target is no export folder, so that nobody knows its checkpoint.
    """
    from structsam_export.pipeline import rewrite_stage, trace_only

    own = ExportFolder.read(named(target)[1])
    bare, dense = unmerged_config(own, checkpoint), unmerged_path(own)
    if not is_export(dense) or not is_export_of(ExportFolder.read(dense), bare, own.manifest.model["sha256"]):
        trace_only(bare, dense, force=True)
    folder = ExportFolder.read(dense)
    if onnx_name("encoder") not in folder.manifest.files:
        rewrite_stage(folder)
    return [f"plain={folder.raw('encoder')}", f"rewritten={dense}"]
