"""Norms, sums, activations and products with weights on (B, H, W, D) grids -> on (B, H * W, D) rows.

OpenVINO takes four axes for a picture (B, channels, height, width) and keeps the residual stream in a channels-last
layout of that, so that every norm and every sum is preceded by a copy of all tokens, and norms over the last of four
axes are computed in four passes. Over the last of three axes they are one kernel, and nothing is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, fresh, integers, static_shape, take_over
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

ROWWISE = frozenset(("Add", "Div", "Erf", "Gelu", "LayerNormalization", "MatMul", "Mul", "Sub"))
GRID = 4  # axes


def apply(graph: gs.Graph) -> Fired:
    """Let rowwise nodes compute f(x.flatten(1, 2)), viewed as a grid again."""
    import onnx_graphsurgeon as gs

    fired, skipped = 0, list[str]()
    for node in list(graph.nodes):
        if node.op not in ROWWISE or not knows_rows(node):
            continue
        out = node.outputs[0]
        shape = static_shape(out)
        operands = node.inputs[:1] if node.op == "MatMul" else node.inputs
        if shape is None or any(static_shape(t) is None for t in operands):
            skipped.append(f"{node.name}: shapes are not all known")
            continue
        if not all(fits(t, shape) for t in operands):
            continue
        node.inputs = [as_rows(graph, t) for t in node.inputs]
        if node.op == "LayerNormalization":
            node.attrs["axis"] = -1
        rows = [shape[0], shape[1] * shape[2], shape[3]]
        result = gs.Variable(fresh(graph, f"{out.name}.rows"), out.dtype, rows)
        grid = add(graph, "Reshape", [result, integers(graph, f"{out.name}.grid", shape)], out, shape)
        take_over(grid.inputs[0], out)
        node.outputs = [result]
        fired += 1
    return Fired(fired, tuple(skipped))


def knows_rows(node: Any) -> bool:
    """Whether a node computes every row of a grid by itself; scores of attention are no grid."""
    if len(node.outputs[0].shape or []) != GRID or any(n.op == "Softmax" for n in node.outputs[0].outputs):
        return False
    if node.op == "LayerNormalization":
        return len(node.outputs) == 1 and node.attrs.get("axis", -1) in (-1, GRID - 1)
    if node.op == "MatMul":
        x, weight = node.inputs
        return len(x.shape or []) == GRID and not weight.inputs and len(weight.shape or []) == 2
    return True


def fits(tensor: Any, shape: list[int]) -> bool:
    """Whether a tensor is a grid like the result (B, H, W, .), one grid for all images, or one row for all tokens."""
    own = static_shape(tensor) or []
    if len(own) < GRID:
        return all(size == 1 for size in own[:-1])
    return own[1:3] == shape[1:3] and own[0] in (1, shape[0])


def as_rows(graph: gs.Graph, tensor: Any) -> Any:
    """A grid (B, H, W, D) as (B, H * W, D); anything with fewer axes as it is."""
    import onnx_graphsurgeon as gs

    own = static_shape(tensor) or []
    if len(own) < GRID:
        return tensor
    rows = [own[0], own[1] * own[2], own[3]]
    if isinstance(tensor, gs.Constant):
        return gs.Constant(fresh(graph, f"{tensor.name}.rows"), tensor.values.reshape(rows))
    return add(graph, "Reshape", [tensor, integers(graph, f"{tensor.name}.rows", rows)], tensor, rows)
