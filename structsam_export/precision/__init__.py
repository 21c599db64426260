"""Precision in the graph: float32 ONNX -> strongly typed FP16 or BF16 ONNX.

TensorRT networks are strongly typed and its builder has no precision flags any more, so that every tensor's type is
the graph's own. `scan` finds how large activations become, `convert` types the graph, `emulated` makes it run where
there are no kernels for its types.
"""

from __future__ import annotations

from structsam_export.precision.convert import Conversion, Offender, convert
from structsam_export.precision.emulate import emulated
from structsam_export.precision.numbers import Kind
from structsam_export.precision.peaks import scan

__all__ = ["Conversion", "Kind", "Offender", "convert", "emulated", "scan"]
