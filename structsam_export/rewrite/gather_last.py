"""Move a row gather behind the data movement that follows it.

After attention, rows are unmerged (Gather) and windows are put back on the grid (Reshape, Transpose, Reshape,
Slice): three more copies of every channel. Applied to the integer index instead, the same movement costs 1/D of that,
and unmerging and un-windowing become one gather.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, constant, integers, only_consumer, static_shape, take_over
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite movement(Gather(rows (M, D), index)) as Gather(rows, movement(index))."""
    fired = 0
    for node in list(graph.nodes):
        if node.op != "Gather" or node.attrs.get("axis", 0) != 0:
            continue
        rows, index = node.inputs
        shape = static_shape(rows)
        if shape is None or len(shape) != 2 or static_shape(index) is None or constant(index) is not None:
            continue
        chain = movement_chain(graph, node.outputs[0], shape[1])
        if not any(step.op in ("Transpose", "Slice") for step in chain):
            continue
        for step in chain:
            index = on_index(graph, step, index)
        final = chain[-1].outputs[0]
        moved = add(graph, "Gather", [rows, index], rows, static_shape(final) or [], axis=0)
        take_over(moved.inputs[0], final)
        fired += 1
    return Fired(fired)


def movement_chain(graph: gs.Graph, tensor: Any, channels: int) -> list[Any]:
    """The longest run of nodes after `tensor` that only move rows and never touch the last axis."""
    chain: list[Any] = []
    while (node := only_consumer(graph, tensor)) is not None:
        out = node.outputs[0] if node.outputs else None
        shape = static_shape(out) if out is not None else None
        if shape is None or shape[-1] != channels or not keeps_last_axis(node, len(shape)):
            break
        chain.append(node)
        tensor = out
    return chain


def keeps_last_axis(node: Any, rank: int) -> bool:
    """Whether a data-movement node treats every channel alike."""
    if node.op == "Reshape":
        return True  # the caller has compared the channel counts
    if node.op == "Transpose":
        return "perm" in node.attrs and bool(node.attrs["perm"][-1] == rank - 1)
    if node.op == "Slice" and len(node.inputs) > 3:
        axes = constant(node.inputs[3])
        return axes is not None and all(0 <= axis < rank - 1 for axis in axes)
    return False


def on_index(graph: gs.Graph, step: Any, index: Any) -> Any:
    """The same movement, applied to an index that has all axes but the last."""
    shape = (static_shape(step.outputs[0]) or [])[:-1]
    if step.op == "Reshape":
        return add(graph, "Reshape", [index, integers(graph, f"{step.name}.rows", shape)], index, shape)
    if step.op == "Transpose":
        return add(graph, "Transpose", [index], index, shape, perm=step.attrs["perm"][:-1])
    return add(graph, "Slice", [index, *step.inputs[1:]], index, shape)
