"""Slices that cut a tensor into consecutive pieces -> one Split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import constant, fresh, integers, static_shape
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite x[..., :a], x[..., a:b], x[..., b:] as Split(x, [a, b - a, n - b])."""
    import onnx_graphsurgeon as gs

    fired = 0
    for tensor in list(graph.tensors().values()):
        slices = [n for n in tensor.outputs if n.op == "Slice" and n.inputs[0] is tensor]
        shape = static_shape(tensor)
        if shape is None or len(slices) < 2:
            continue
        cuts = [piece(node, shape) for node in slices]
        known = [c for c in cuts if c is not None]
        axes = {axis for axis, _, _ in known}
        if len(known) < len(cuts) or len(axes) != 1:
            continue
        axis = axes.pop()
        ordered = sorted(zip(known, slices), key=lambda pair: pair[0][1])
        bounds = [0, *(end for (_, _, end), _ in ordered)]
        if bounds[-1] != shape[axis] or any(start != b for ((_, start, _), _), b in zip(ordered, bounds)):
            continue
        outs = []
        for _, node in ordered:
            outs.append(node.outputs[0])
            node.outputs[0].inputs.clear()
        sizes = integers(graph, f"{tensor.name}.sizes", [end - start for (_, start, end), _ in ordered])
        name = fresh(graph, f"{tensor.name}.split")
        graph.nodes.append(gs.Node("Split", name=name, attrs={"axis": axis}, inputs=[tensor, sizes], outputs=outs))
        fired += 1
    return Fired(fired)


def piece(node: Any, shape: list[int]) -> tuple[int, int, int] | None:
    """(axis, start, end) of a Slice with constant bounds along one axis and no gaps, or None."""
    bounds = [constant(t) for t in node.inputs[1:]]
    if any(b is None or len(b) != 1 for b in bounds) or len(bounds) < 3:
        return None
    (start,), (end,), (axis,) = (b or [0] for b in bounds[:3])
    if len(bounds) > 3 and bounds[3] != [1]:
        return None
    axis = axis % len(shape)
    size = shape[axis]
    start, end = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))
    return (axis, start, end) if start < end else None
