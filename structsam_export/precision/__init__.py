"""Precision in the graph: float32 ONNX -> strongly typed FP16 or BF16 ONNX.

TensorRT networks are strongly typed and its builder has no precision flags any more, so that every tensor's type is
the graph's own. `calibrate` finds how large activations become, `convert` types the graph, and `fake_quantised` makes
a float32 graph of it that rounds whatever the typed one stores, for runtimes without kernels for its types.
"""

from __future__ import annotations

from structsam_export.precision.calibrate import calibrate
from structsam_export.precision.convert import Conversion, Offender, convert
from structsam_export.precision.fake_quantise import fake_quantised, low_types
from structsam_export.precision.numbers import Kind

__all__ = ["Conversion", "Kind", "Offender", "calibrate", "convert", "fake_quantised", "low_types"]
