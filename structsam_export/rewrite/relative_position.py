"""Relative position bias of merged attention folded into queries and keys.

scores = q.k' + a.A' + b.B' is one product [q|a|b].[k|A|B]'. With a, b the queries' biases per row and column and
A, B the keys' one-hot row and column this is exact, and spares two dense (heads, n, n) bias tensors per layer. What
is left is a plain MatMul-Softmax-MatMul that fused attention kernels accept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, integers, producer, static_shape, take_over
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite Softmax(MatMul + MatMul + ...) as Softmax(MatMul of concatenations)."""
    fired, skipped = 0, list[str]()
    for node in list(graph.nodes):
        if node.op != "Softmax":
            continue
        scores = node.inputs[0]
        products = products_of(scores)
        if len(products) < 2:
            continue
        shape = static_shape(scores)
        if shape is None or any(static_shape(t) is None for p in products for t in p.inputs):
            skipped.append(f"{node.name}: shapes are not all known")
            continue
        if any((static_shape(p.outputs[0]) or [])[-2:] != shape[-2:] for p in products):
            skipped.append(f"{node.name}: a product is repeated over queries or keys")
            continue
        left = [spread(graph, p.inputs[0], shape[:-2]) for p in products]
        right = [spread(graph, p.inputs[1], shape[:-2]) for p in products]
        depth = sum((static_shape(t) or [0])[-1] for t in left)
        q = add(graph, "Concat", left, left[0], [*shape[:-1], depth], axis=len(shape) - 1)
        k = add(graph, "Concat", right, right[0], [*shape[:-2], depth, shape[-1]], axis=len(shape) - 2)
        product = add(graph, "MatMul", [q, k], scores, shape)
        take_over(product.inputs[0], scores)
        fired += 1
    return Fired(fired, tuple(skipped))


def products_of(tensor: Any) -> list[Any]:
    """The MatMul nodes whose outputs are summed into this tensor; empty if anything else takes part."""
    if (product := producer(tensor, "MatMul")) is not None:
        return [product]
    total = producer(tensor, "Add")
    if total is None:
        return []
    parts = [products_of(t) for t in total.inputs]
    return [p for part in parts for p in part] if all(parts) else []


def spread(graph: gs.Graph, tensor: Any, batch: list[int]) -> Any:
    """The tensor with the given leading dimensions, expanded only where it has 1 (one-hots are shared by heads)."""
    shape = static_shape(tensor) or []
    wanted = [*batch, *shape[-2:]]
    if shape == wanted:
        return tensor
    return add(graph, "Expand", [tensor, integers(graph, f"{tensor.name}.heads", wanted)], tensor, wanted)
