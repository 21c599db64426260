"""Encoders of the graph tests in every type, without and with fused operators."""

from __future__ import annotations

import numpy as np
import onnx
from graphs import traced
from shared_traces import sharing

from structsam_export.fused import PLUGINS
from structsam_export.precision import calibrate, convert
from structsam_export.rewrite import apply_plugins, rewrite

IMAGE = np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32)
KINDS = ("fp32", "fp16", "bf16")


def fused_encoders(folder, method, variant, layers):
    """Write KIND.onnx and KIND.plugins.onnx for two images; what fusing counted in each, in the order of KINDS."""
    with sharing():
        onnx.save(traced(method, variant, layers, 2), str(folder / "raw.onnx"))
    rewrite(folder / "raw.onnx", folder / "fp32.onnx", keep_outputs=("image_embeddings",))
    amax = calibrate(folder / "fp32.onnx", [{"image": IMAGE}])
    for kind in ("fp16", "bf16"):
        convert(folder / "fp32.onnx", folder / f"{kind}.onnx", kind, amax)
    every = tuple(PLUGINS)
    return [apply_plugins(folder / f"{k}.onnx", folder / f"{k}.plugins.onnx", every) for k in KINDS]
