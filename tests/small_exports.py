"""Exports that were traced and rewritten, and no more: what programs that load ONNX files need."""

from __future__ import annotations

from shared_traces import sharing

from structsam_export.config import ExportConfig
from structsam_export.pipeline import rewrite_folder, trace_only


def rewritten(folder, **options):
    """Make an export at `folder`, without engines and in FP32 unless `options` say otherwise; its path."""
    with sharing():
        trace_only(ExportConfig(**{"backend": "none", "precision": "fp32", **options}), folder)
    return rewrite_folder(folder).path
