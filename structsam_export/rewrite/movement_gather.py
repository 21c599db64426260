"""A chain of data-movement nodes on a small tensor -> one Gather with a constant index.

Energies and slots are cut into windows and listed by cells, or put back on the grid: up to seven nodes that move a few
thousand numbers each. One Gather does the same; what a Pad puts in becomes one element more to gather from.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.index_map import PAD, fill_of, moved
from structsam_export.rewrite.match import add, fresh, integers, only_consumer, static_shape, take_over
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

# Elements; larger tensors are moved in rows by their own rules.
LIMIT = 1 << 16
SHORTEST = 3  # nodes that one or two gathers replace


def apply(graph: gs.Graph) -> Fired:
    """Rewrite movement(x) as Gather(x.flatten(), constant)."""
    import numpy as np

    fired, skipped = 0, list[str]()
    taken: set[int] = set()  # by identity: nodes need not have names
    for node in list(graph.nodes):
        if id(node) in taken or not node.inputs or not node.outputs:
            continue
        start = node.inputs[0]
        shape = static_shape(start)
        if shape is None or prod(shape) > LIMIT or getattr(start, "values", None) is not None:
            continue
        chain, index = chain_from(graph, node, np.arange(prod(shape)).reshape(shape))
        if len(chain) < SHORTEST or not moves(start, chain) or whole_rows(index, shape[-1] if shape else 1):
            continue
        fills = {fill_of(n) for n in chain if n.op == "Pad"}
        if len(fills) > 1:
            skipped.append(f"{node.name}: pads of different values")
            continue
        gather(graph, start, prod(shape), index, fills, chain)
        taken |= {id(n) for n in chain}
        fired += 1
    return Fired(fired, tuple(skipped))


def chain_from(graph: gs.Graph, node: Any, index: Any) -> tuple[list[Any], Any]:
    """The longest run of data-movement nodes that begins with `node`, and what it does to `index`."""
    chain: list[Any] = []
    while node is not None and (after := moved(node, index)) is not None and after.size <= LIMIT:
        chain, index = [*chain, node], after
        node = only_consumer(graph, node.outputs[0])
        if node is not None and node.inputs[0] is not chain[-1].outputs[0]:
            break
    return chain, index


def moves(start: Any, chain: list[Any]) -> bool:
    """Whether a chain moves integers, or gathers or pads floats; if it only rearranges heads, it does not."""
    import numpy as np

    whole = np.issubdtype(start.dtype, np.integer)
    return any(n.op in (("Transpose", "Slice", "Gather", "Pad") if whole else ("Gather", "Pad")) for n in chain)


def whole_rows(index: Any, channels: int) -> bool:
    """Whether all that moves are whole rows of several channels, for which `gather_grid` and `gather_last` are."""
    if channels < 2 or not index.ndim or index.shape[-1] != channels:
        return False
    rows = index.reshape(-1, channels)
    follow = (rows[:, 1:] - rows[:, :-1] == 1) | (rows[:, 1:] == PAD)
    return bool(follow.all())


def gather(graph: gs.Graph, start: Any, size: int, index: Any, fills: set[Any], chain: list[Any]) -> None:
    """Let the last tensor of the chain be gathered from the first."""
    import numpy as np
    import onnx_graphsurgeon as gs

    out = chain[-1].outputs[0]
    flat = add(graph, "Reshape", [start, integers(graph, f"{out.name}.flat", [size])], start, [size])
    if fills:
        value = gs.Constant(fresh(graph, f"{out.name}.fill"), np.array([fills.pop()], dtype=start.dtype))
        flat = add(graph, "Concat", [flat, value], start, [size + 1], axis=0)
        index = np.where(index == PAD, size, index)
    picked = add(graph, "Gather", [flat, integers(graph, f"{out.name}.index", index)], out, list(index.shape), axis=0)
    take_over(picked.inputs[0], out)
