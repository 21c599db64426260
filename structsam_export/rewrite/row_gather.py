"""GatherElements with one index per row -> Gather of whole rows.

`x.gather(1, index.unsqueeze(-1).expand(-1, -1, D))` is how PyTorch picks rows. It traces to GatherElements with the
index repeated for each of the D channels (12.6 MB a call at n = 2048, D = 768) and a lookup per element. Flattened
to (B*N, D), with N added to the index per batch entry, it is one copy per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import (
    add,
    constant,
    integers,
    only_consumer,
    producer,
    static_shape,
    take_over,
)
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite GatherElements(x (B, N, D), spread index (B, k)) as Gather(x.reshape(B*N, D), index + offset)."""
    import numpy as np

    fired, skipped = 0, list[str]()
    for node in list(graph.nodes):
        if node.op != "GatherElements":
            continue
        data, spread = node.inputs
        shape = static_shape(data)
        if shape is None or len(shape) != 3 or node.attrs.get("axis", 0) != 1:
            skipped.append(f"{node.name}: not axis 1 of a (B, N, D) tensor of known shape")
            continue
        index = fixed_row_index(graph, spread, shape) or row_index(spread, shape)
        if index is None:
            skipped.append(f"{node.name}: the index differs between channels")
            continue
        B, N, D = shape
        index, out = grouped(graph, node, index, D)
        flat = add(graph, "Reshape", [data, integers(graph, f"{node.name}.flat", [B * N, D])], data, [B * N, D])
        if B > 1:
            ones = [1] * (len(static_shape(index) or []) - 1)
            offset = integers(graph, f"{node.name}.offset", np.arange(0, B * N, N).reshape(B, *ones))
            index = add(graph, "Add", [index, offset], index, static_shape(index) or [], index.dtype)
        node.op, node.attrs, node.inputs = "Gather", {"axis": 0}, [flat, index]
        if out is not node.outputs[0]:
            take_over(node, out)
        fired += 1
    return Fired(fired, tuple(skipped))


def grouped(graph: gs.Graph, node: Any, index: Any, channels: int) -> tuple[Any, Any]:
    """(index, output) of a gather whose rows (B, G * s, D) are grouped afterwards, as its index was: (B, G, s, D)."""
    before = producer(index, "Reshape")
    after = only_consumer(graph, node.outputs[0])
    if before is None or after is None or after.op != "Reshape":
        return index, node.outputs[0]
    groups = static_shape(before.inputs[0])
    if groups is None or static_shape(after.outputs[0]) != [*groups, channels] or len(groups) < 2:
        return index, node.outputs[0]
    return before.inputs[0], after.outputs[0]


def fixed_row_index(graph: gs.Graph, spread: Any, data: list[int]) -> Any | None:
    """The (B, k) index of a constant (B, k, D) one that is the same for all channels, or None."""
    values = getattr(spread, "values", None)
    if values is None or values.ndim != 3 or values.shape[0] != data[0] or values.shape[2] != data[2]:
        return None
    return integers(graph, f"{spread.name}.rows", values[..., 0]) if (values == values[..., :1]).all() else None


def row_index(spread: Any, data: list[int]) -> Any | None:
    """The (B, k) index behind one that was unsqueezed at its end and expanded over all D channels, or None."""
    expand = producer(spread, "Expand")
    unsqueeze = producer(expand.inputs[0] if expand is not None else spread, "Unsqueeze")
    if unsqueeze is None:
        return None
    index = unsqueeze.inputs[0]
    shape, wide = static_shape(index), static_shape(spread)
    if shape is None or len(shape) != 2 or shape[0] != data[0] or wide != [*shape, data[2]]:
        return None
    return index if static_shape(unsqueeze.outputs[0]) == [*shape, 1] and last_axis(unsqueeze) else None


def last_axis(unsqueeze: Any) -> bool:
    """Whether a (B, k) tensor was unsqueezed to (B, k, 1)."""
    axes = constant(unsqueeze.inputs[1]) if len(unsqueeze.inputs) > 1 else None
    return axes in ([2], [-1])
