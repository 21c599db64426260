"""MatMul-Softmax-MatMul as an attention operator sees it: queries, keys and values with the same leading axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, constant, fresh, integers, only_consumer, producer, static_shape

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class SoftmaxAttention:
    """out (*batch, n, e) = softmax(q (*batch, n, d) . transposed_keys (*batch, d, m)) . v (*batch, m, e).

    Each is a tensor of the graph; all have one float type.
    """

    q: Any
    transposed_keys: Any
    v: Any
    out: Any

    @property
    def batch(self) -> list[int]:
        """Leading axes, (batch, heads) or both as one."""
        return (static_shape(self.q) or [])[:-2]


def attentions(graph: gs.Graph) -> tuple[list[SoftmaxAttention], list[str]]:
    """Every attention of the graph whose scores nothing else reads and whose shapes are known.

    Returns:
        Those, in the graph's order, and "<node>: <reason>" for every other Softmax of a product.
    """
    matches: list[SoftmaxAttention] = []
    skipped: list[str] = []
    for node in list(graph.nodes):
        if node.op != "Softmax" or (scores := producer(node.inputs[0], "MatMul")) is None:
            continue
        weighted = only_consumer(graph, node.outputs[0])
        if weighted is None or weighted.op != "MatMul" or only_consumer(graph, scores.outputs[0]) is None:
            skipped.append(f"{node.name}: its scores or weights are read elsewhere too")
            continue
        q, keys = scores.inputs
        found = SoftmaxAttention(q, keys, weighted.inputs[1], weighted.outputs[0])
        shapes = [static_shape(t) for t in (found.q, found.transposed_keys, found.v)]
        if weighted.inputs[0] is not node.outputs[0] or None in shapes:
            skipped.append(f"{node.name}: shapes are not all known")
            continue
        axis = node.attrs.get("axis", -1)
        if axis not in (-1, len(found.batch) + 1) or any(s[:-2] != found.batch for s in shapes if s is not None):
            skipped.append(f"{node.name}: queries, keys and values have different leading axes")
            continue
        matches.append(found)
    return matches, skipped


def transposed(graph: gs.Graph, tensor: Any) -> Any:
    """The tensor with its last two axes swapped; a Transpose that made it is undone, not followed by another."""
    import onnx_graphsurgeon as gs

    shape = static_shape(tensor) or []
    rank, wanted = len(shape), [*shape[:-2], shape[-1], shape[-2]]
    if (values := getattr(tensor, "values", None)) is not None:
        return gs.Constant(fresh(graph, f"{tensor.name}.transposed"), values.swapaxes(-1, -2).copy())
    if (concat := producer(tensor, "Concat")) is not None and concat.attrs["axis"] % rank == rank - 2:
        parts = [transposed(graph, t) for t in concat.inputs]
        return add(graph, "Concat", parts, tensor, wanted, axis=rank - 1)
    if (expand := producer(tensor, "Expand")) is not None and constant(expand.inputs[1]) == shape:
        inner = transposed(graph, expand.inputs[0])
        return add(graph, "Expand", [inner, integers(graph, f"{tensor.name}.heads", wanted)], tensor, wanted)
    perm = list(range(rank - 2)) + [rank - 1, rank - 2]
    if (made := producer(tensor, "Transpose")) is not None:
        perm = [made.attrs["perm"][axis] for axis in perm]
        tensor = made.inputs[0]
        if perm == sorted(perm):
            return tensor
    return add(graph, "Transpose", [tensor], tensor, wanted, perm=perm)


def reshaped(graph: gs.Graph, tensor: Any, shape: list[int]) -> Any:
    """The tensor in another shape; itself where it has that shape."""
    if static_shape(tensor) == shape:
        return tensor
    return add(graph, "Reshape", [tensor, integers(graph, f"{tensor.name}.shape", shape)], tensor, shape)
