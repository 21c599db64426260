"""How large activations become on real images (amax): what decides where FP16 would overflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.precision.policy import DATA_MOVEMENT
from structsam_export.precision.typed import read
from structsam_export.supervise import parsing

if TYPE_CHECKING:
    import numpy as np

AMAX = ".amax"
# What only moves data has the amax of what goes in; Pad and Where may bring in constants.
MOVES = DATA_MOVEMENT - {"Pad", "Where"}


def calibrate(path: Path, feeds: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """Largest |value| of every float tensor an ONNX graph computes, over some runs on the CPU.

    Args:
        path: float32 ONNX file.
        feeds: inputs by name, one entry for each run.

    Returns:
        {tensor: amax}, inputs included; infinite or NaN where the graph itself computes that. A tensor that only moves
        another one's data has that one's amax, of which a slice may hold less. Tensors in subgraphs are not measured.

    Raises:
        PrecisionError: see `typed.read`.
    """
    import numpy as np

    with parsing("calibration", path):
        session, measured, moved = measuring_session(path)
        amax = dict.fromkeys(measured, 0.0)
        for feed in feeds:
            values = session.run([name + AMAX for name in measured], feed)
            for name, value in zip(measured, values):
                amax[name] = float(np.maximum(amax[name], value))  # keeps NaN
    for name, inputs in moved.items():
        amax[name] = max((amax[n] for n in inputs if n in amax), default=0.0)
    return amax


def measuring_session(path: Path) -> tuple[Any, list[str], dict[str, list[str]]]:
    """An ONNX Runtime session of what `with_amax_outputs` makes of a file, and the names that come with it."""
    import onnx
    import onnxruntime as ort

    from structsam_export.files import disk_errors, temporary

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The default order measures last and keeps every tensor until then: 10 GB for ViT-B instead of 2.7.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    model, measured, moved = with_amax_outputs(path)
    beside = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    source = model.SerializeToString()
    del model  # the weights are in memory a second time
    if not beside:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]), measured, moved
    # ONNX Runtime finds weights beside a file by the folder the file lies in.
    with temporary(path, ".onnx") as copy:
        with disk_errors(path.parent):
            copy.write_bytes(source)
        return ort.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"]), measured, moved


def with_amax_outputs(path: Path) -> tuple[Any, list[str], dict[str, list[str]]]:
    """A graph whose outputs are the amax of its tensors, each a float32 scalar.

    Returns:
        The model; the tensors that it measures; and tensors that only move others -> those others, in graph order.
    """
    import onnx

    graph = read(path)
    model, moved = graph.model, dict[str, list[str]]()
    measured = [value.name for value in model.graph.input if graph.is_float(value.name)]
    for node in graph.nodes:
        for name in graph.float_outputs(node):
            data = graph.float_inputs(node)
            if node.op_type in MOVES and all(n not in graph.constants for n in data):
                moved[name] = data
            else:
                measured.append(name)
    del model.graph.output[:]
    model.graph.node.extend(node for name in measured for node in amax_nodes(name))
    for name in measured:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name + AMAX, onnx.TensorProto.FLOAT, []))
    return model, measured, moved


def amax_nodes(name: str) -> list[Any]:
    """Nodes that make the scalar `name.amax`."""
    from onnx.helper import make_node

    return [
        make_node("Abs", [name], [f"{name}.abs"]),
        make_node("ReduceMax", [f"{name}.abs"], [name + AMAX], keepdims=0),
    ]
