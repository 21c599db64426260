"""Where a graph computes MergePlan: the two tensors of a decision, from the energies that its TopK ranks."""

from structsam_export.rewrite.fused_nodes import (
    calls_of,
    found,
    metadata,
    plans,
    put_in,
    same_numbers,
    square_windows,
    upstream,
)
from structsam_export.rewrite.match import static_shape

NAME = "merge_plan"
# What stands between energies of the grid and ranks of cells.
MOVES = (
    "Where",
    "ReduceMax",
    "Gather",
    "Concat",
    "Reshape",
    "Cast",
    "Pad",
    "Transpose",
    "Unsqueeze",
    "Squeeze",
    "Slice",
)
replace_with_plugin = put_in


def get_plugin_metadata():
    return metadata(NAME)


def get_matching_subgraphs(graph):
    """Matches as {"inputs": [energy], "outputs": [pos, slot], "attributes": {"window_h": ...}}."""
    tensors = graph.tensors()
    matches = []
    for pos in plans(graph, "pos"):
        slot = tensors.get(pos.name.removesuffix("pos") + "slot")
        if slot is not None and pos.inputs and (match := plan_at(graph, pos, slot)):
            matches.append(match)
    return matches


def plan_at(graph, pos, slot):
    energy = ranked(pos)
    shapes = [static_shape(t) if t is not None else None for t in (energy, pos, slot)]
    if None in shapes or len(shapes[0]) != 3:
        return None
    (images, *grid), (calls, n), (_, tokens) = shapes
    window = square_windows(tokens, grid)
    if window is None or (tokens - n) % 3 or n == tokens or calls != images * calls_of(grid, window):
        return None
    attrs = {"window_h": window[0], "window_w": window[1], "merged": (tokens - n) // 3}
    feeds = {energy.name: energies(shapes[0])}
    if not same_numbers(graph, replace_with_plugin, "MergePlan", [energy], [pos, slot], attrs, feeds):
        return None
    return found("MergePlan", [energy], [pos, slot], attrs)


def ranked(pos):
    """The energies (images, H, W) that were ranked for a plan, or None."""
    seen, waiting = set(), [pos]
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen or not tensor.inputs:
            continue
        seen.add(id(tensor))
        node = tensor.inputs[0]
        if node.op == "TopK":
            return upstream(node.inputs[0], MOVES)  # no movement made the grid's three axes
        waiting += [t for t in node.inputs if not hasattr(t, "values")]
    return None


def energies(shape):
    """Random energies without a tie."""
    import numpy as np

    return np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape) / np.prod(shape) + 0.5
