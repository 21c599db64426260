"""Gather rows from the grid itself, not from a copy cut into windows.

Before attention the grid of tokens is padded and cut into windows (Pad, Reshape, Transpose, Reshape: two copies of
every channel), and rows are gathered from that. Which row of the grid stands at each row of the windows is a constant
table: the gathered indices are looked up in it, the copies go away, and one row of zeros after the grid is the padding.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.index_map import PAD, fill_of, moved
from structsam_export.rewrite.match import add, integers, static_shape
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite Gather(movement(x), index) as Gather(x, constant[index])."""
    fired, skipped = 0, list[str]()
    sources: dict[tuple[str, str], Any] = {}
    for node in list(graph.nodes):
        if node.op != "Gather" or node.attrs.get("axis", 0) != 0:
            continue
        rows, index = node.inputs
        shape = static_shape(rows)
        if (
            shape is None
            or len(shape) != 2
            or getattr(index, "values", None) is not None
            or static_shape(index) is None
        ):
            continue
        chain = chain_before(rows, shape[1])
        if not any(n.op == "Transpose" for n in chain):
            continue
        start = chain[0].inputs[0]
        origin = rows_of(chain, static_shape(start) or [])
        if origin is None:
            skipped.append(f"{node.name}: rows are taken apart or padded with something else than zeros")
            continue
        key = (start.name, str(PAD in origin))
        if key not in sources:
            sources[key] = flat_rows(graph, start, padded=PAD in origin)
        data = sources[key]
        table = [prod((static_shape(start) or [])[:-1]) if row == PAD else row for row in origin]
        if table != list(range(data.shape[0])):  # an index may count from the end, so that all rows must be there
            known = integers(graph, f"{node.name}.row", table)
            index = add(graph, "Gather", [known, index], index, static_shape(index) or [], known.dtype, axis=0)
        node.inputs = [data, index]
        fired += 1
    return Fired(fired, tuple(skipped))


def chain_before(tensor: Any, channels: int) -> list[Any]:
    """The data-movement nodes that end in `tensor`, first one first, as far as all of them keep the last axis."""
    chain: list[Any] = []
    while tensor.inputs and tensor.inputs[0].op in ("Reshape", "Transpose", "Slice", "Pad"):
        node = tensor.inputs[0]
        shape = static_shape(node.inputs[0])
        if shape is None or shape[-1] != channels:
            break
        chain.insert(0, node)
        tensor = node.inputs[0]
    return chain


def rows_of(chain: list[Any], shape: list[int]) -> list[int] | None:
    """For each row after the chain, which row of its input (of this shape) it is, or `PAD`; None if rows are cut."""
    import numpy as np

    index = np.arange(prod(shape[:-1])).reshape(*shape[:-1], 1).repeat(2, -1)
    index[..., 1] += prod(shape[:-1])  # two channels tell whether rows stay whole
    for node in chain:
        if node.op == "Pad" and fill_of(node) != 0:
            return None
        wide = static_shape(node.outputs[0]) or []
        after = index.reshape([*wide[:-1], 2]) if node.op == "Reshape" else moved(node, index)
        if after is None or after.shape[-1] != 2:
            return None
        index = after
    flat = index.reshape(-1, 2)
    whole = (flat[:, 1] == flat[:, 0] + prod(shape[:-1])) | (flat == PAD).all(1)
    return [int(i) for i in flat[:, 0]] if whole.all() else None


def flat_rows(graph: gs.Graph, tensor: Any, *, padded: bool) -> Any:
    """A tensor (..., D) as rows (M, D), with one row of zeros after them if `padded`."""
    shape = static_shape(tensor) or []
    count = prod(shape[:-1])
    target = integers(graph, f"{tensor.name}.rows", [count, shape[-1]])
    flat = add(graph, "Reshape", [tensor, target], tensor, [count, shape[-1]])
    if not padded:
        return flat
    widths = integers(graph, f"{tensor.name}.one", [0, 0, 1, 0])
    return add(graph, "Pad", [flat, widths], tensor, [count + 1, shape[-1]])
