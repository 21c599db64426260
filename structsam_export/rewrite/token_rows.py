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
    fired, skipped = 0, []
    for node in list(graph.nodes):
        if node.op not in ROWWISE or not knows_rows(node):
            continue
        out = node.outputs[0]
        shape = static_shape(out)
        if shape is None or not all(fits(t, shape) for t in node.inputs):
            skipped.append(f"{node.name}: a shape is unknown, or the channels of an input are shared out")
            continue
        node.inputs = [as_rows(graph, t) for t in node.inputs]
        if node.op == "LayerNormalization":
            node.attrs["axis"] = -1
        rows = [shape[0], shape[1] * shape[2], shape[3]]
        result = type(out)(fresh(graph, f"{out.name}.rows"), out.dtype, rows)
        grid = add(graph, "Reshape", [result, integers(graph, f"{out.name}.grid", shape)], out, shape)
        take_over(grid.inputs[0], out)
        node.outputs = [result]
        fired += 1
    return Fired(fired, tuple(skipped))


def knows_rows(node: Any) -> bool:
    """Whether a node computes every row of a grid by itself."""
    if len(node.outputs[0].shape or []) != GRID:
        return False
    if node.op == "LayerNormalization":
        return len(node.outputs) == 1 and node.attrs.get("axis", -1) in (-1, GRID - 1)
    if node.op == "MatMul":
        x, weight = node.inputs
        return len(x.shape or []) == GRID and not weight.inputs and len(weight.shape or []) == 2
    return True


def fits(tensor: Any, shape: list[int]) -> bool:
    """Whether a tensor is a grid like the result (B, H, W, .), a constant one for all images, or one row at most."""
    own = static_shape(tensor)
    if own is None:
        return False
    if len(own) < GRID:
        # One row for all tokens, or the weights of a product.
        return all(size == 1 for size in own[:-1]) or (not tensor.inputs and len(own) == 2)
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
