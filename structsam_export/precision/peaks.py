"""How large activations become on real images: what decides where FP16 would overflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.precision.policy import LAYOUT
from structsam_export.precision.typed import read

if TYPE_CHECKING:
    import numpy as np

PEAK = ".peak"
# The largest value of what only moves data is that of what goes in; Pad and Where may bring in constants.
MOVES = LAYOUT - {"Pad", "Where"}


def scan(path: Path, feeds: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """Largest |value| of every float tensor an ONNX graph computes, over some runs on the CPU.

    Args:
        path: float32 ONNX file.
        feeds: inputs by name, one entry for each run.

    Returns:
        {tensor: peak}, inputs included; infinite or NaN where the graph itself computes that. For tensors that only
        move data it is the peak of the data moved, of which a slice may hold less.
    """
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The default order measures last and keeps every tensor until then: 10 GB for ViT-B instead of 2.7.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    source, measured, moved = with_peaks(path)
    try:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    finally:
        if isinstance(source, str):
            Path(source).unlink(missing_ok=True)
        del source  # a second copy of the weights
    peaks = dict.fromkeys(measured, 0.0)
    for feed in feeds:
        values = session.run([name + PEAK for name in measured], feed)
        for name, value in zip(measured, values):
            peaks[name] = float(np.maximum(peaks[name], value))  # keeps NaN
    for name, inputs in moved.items():
        peaks[name] = max((peaks[n] for n in inputs if n in peaks), default=0.0)
    return peaks


def with_peaks(path: Path) -> tuple[bytes | str, list[str], dict[str, list[str]]]:
    """A graph that only outputs peaks.

    Returns:
        The model, as bytes or, where its weights lie beside it, as a temporary file there that uses them; the tensors
        it measures; and tensors that only move others -> those others, in the graph's order.
    """
    import onnx

    from structsam_export.files import disk_errors

    graph = read(path)
    model, measured, moved = graph.model, [], {}
    for value in model.graph.input:
        if graph.is_float(value.name):
            measured.append(value.name)
    for node in graph.nodes:
        for name in graph.float_outputs(node):
            data = graph.float_inputs(node)
            if node.op_type in MOVES and all(n not in graph.constants for n in data):
                moved[name] = data
            else:
                measured.append(name)
    del model.graph.output[:]
    model.graph.node.extend(node for name in measured for node in peak_nodes(name))
    for name in measured:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name + PEAK, onnx.TensorProto.FLOAT, []))
    if not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        return model.SerializeToString(), measured, moved
    copy = path.with_name(f".{path.stem}.peaks.onnx")
    with disk_errors(path.parent):
        onnx.save(model, str(copy))
    return str(copy), measured, moved


def peak_nodes(name: str) -> list[Any]:
    """Nodes that make the scalar `name.peak`."""
    from onnx.helper import make_node

    return [
        make_node("Abs", [name], [f"{name}.abs"]),
        make_node("ReduceMax", [f"{name}.abs"], [name + PEAK], keepdims=0),
    ]
