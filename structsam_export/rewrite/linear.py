"""MatMul and Add of a linear layer -> Gemm, where rows are regrouped after it anyway.

MatMul keeps the leading axes, so that projections are reshaped before and after; Gemm takes the rows as they are and
adds the bias itself. Left alone where it would need a Reshape of its own.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, integers, only_consumer, producer, static_shape, take_over
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite Reshape(x @ W + b) as Reshape(Gemm(x.flatten(0, -2), W, b))."""
    fired = 0
    rows: dict[str, Any] = {}
    for node in list(graph.nodes):
        found = linear_layer(graph, node)
        if found is None:
            continue
        x, weight, bias, out = found
        shape, wide = static_shape(x), static_shape(out)
        if shape is None or wide is None or len(shape) < 3:
            continue
        count = prod(shape[:-1])
        if x.name not in rows:
            rows[x.name] = add(
                graph, "Reshape", [x, integers(graph, f"{x.name}.rows", [count, shape[-1]])], x, [count, shape[-1]]
            )
        product = add(graph, "Gemm", [rows[x.name], weight, bias], out, [count, wide[-1]])
        back = add(graph, "Reshape", [product, integers(graph, f"{out.name}.back", wide)], out, wide)
        take_over(back.inputs[0], out)
        fired += 1
    return Fired(fired)


def linear_layer(graph: gs.Graph, node: Any) -> tuple[Any, Any, Any, Any] | None:
    """(x, weight, bias, output) of a linear layer that begins with this MatMul, reshaped at both ends, or None."""
    if node.op != "MatMul":
        return None
    x, weight = node.inputs
    if weight.inputs or len(static_shape(weight) or []) != 2:
        return None
    plus = only_consumer(graph, node.outputs[0])
    bias = next((t for t in plus.inputs if not t.inputs), None) if plus is not None and plus.op == "Add" else None
    if plus is None or bias is None or static_shape(bias) != [(static_shape(weight) or [0, 0])[1]]:
        return None
    after = only_consumer(graph, plus.outputs[0])
    if after is None or after.op != "Reshape":
        return None
    shared = sum(n.op == "MatMul" and not n.inputs[1].inputs for n in x.outputs) > 1
    return (x, weight, bias, plus.outputs[0]) if shared or producer(x, "Reshape") is not None else None
