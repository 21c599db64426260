"""Exports of small models: traced and rewritten, which is what programs that load ONNX files need, or whole ones."""

from __future__ import annotations

from PIL import Image
from shared_traces import sharing

from structsam_export.config import ExportConfig
from structsam_export.pipeline import export, rewrite_folder, trace_only


def rewritten(folder, **options):
    """Make an export at `folder`, without engines and in FP32 unless `options` say otherwise; its path."""
    with sharing():
        trace_only(ExportConfig(**{"backend": "none", "precision": "fp32", **options}), folder)
    return rewrite_folder(folder).path


def half_on_openvino(checkpoint, photo, place):
    """The main job on a checkpoint and a photo (h, w, 3): structsam .5, FP16, OpenVINO's engines; report and folder."""
    Image.fromarray(photo).save(place / "photo.png")
    config = ExportConfig(
        checkpoint=str(checkpoint),
        method="structsam",
        rate=0.5,
        precision="fp16",
        backend="openvino",
        images=(str(place / "photo.png"),),
    )
    with sharing():
        return export(config, place / "export")
