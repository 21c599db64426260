"""Where a graph computes TokenMerge: rows of kept tokens, and means over rows of cells, one after the other."""

from structsam_export.rewrite.fused_nodes import (
    between,
    calls_of,
    found,
    metadata,
    plans,
    put_in,
    random,
    same_numbers,
    square_windows,
    upstream,
)
from structsam_export.rewrite.match import producer, static_shape

NAME = "token_merge"
MOVES = ("Reshape", "Pad", "Transpose", "Slice", "Concat")
replace_with_plugin = put_in


def get_plugin_metadata():
    return metadata(NAME)


def get_matching_subgraphs(graph):
    """Matches as {"inputs": [y, pos], "outputs": [x], "attributes": {"window_h": ...}}."""
    positions = plans(graph, "pos")
    matches = []
    for node in graph.nodes:
        if node.op == "Concat" and len(node.inputs) == 2 and (match := merge_at(graph, node, positions)):
            matches.append(match)
    return matches


def merge_at(graph, concat, positions):
    single, mean = (producer(t, op) for t, op in zip(concat.inputs, ("Gather", "ReduceMean")))
    x = concat.outputs[0]
    if single is None or mean is None or len(static_shape(x) or []) != 3:
        return None
    y = upstream(single.inputs[0], MOVES)
    if y is None:
        return None
    shape, (calls, n, depth), merged = static_shape(y), static_shape(x), (static_shape(mean.outputs[0]) or [0, 0])[1]
    if shape is None or len(shape) != 4 or shape[3] != depth or not 0 < merged <= n:
        return None
    window = square_windows(n + 3 * merged, shape[1:3])
    if window is None or calls != shape[0] * calls_of(shape[1:3], window):
        return None
    fitting = [p for p in positions if static_shape(p) == [calls, n] and between([y, p], [x])]
    attrs = {"window_h": window[0], "window_w": window[1], "merged": merged}
    for pos in fitting:
        feeds = {y.name: random(shape), pos.name: some_plan(calls, window, merged)}
        if same_numbers(graph, replace_with_plugin, "TokenMerge", [y, pos], [x], attrs, feeds):
            return found("TokenMerge", [y, pos], [x], attrs)
    return None


def some_plan(calls, window, merged):
    """Kept tokens and destinations (calls, n) of random cells."""
    import numpy as np

    rng, (h, w) = np.random.default_rng(1), window
    rows, columns = np.meshgrid(np.arange(0, h - 1, 2), np.arange(0, w - 1, 2), indexing="ij")
    cells = (rows * w + columns).reshape(-1, 1) + np.array([0, 1, w, w + 1])
    plan = []
    for _ in range(calls):
        order = rng.permutation(len(cells))
        into = cells[order[:merged], rng.integers(0, 4, merged)]
        gone = cells[order[:merged]].ravel()
        plan.append(np.concatenate([np.setdiff1d(np.arange(h * w), gone), into]))
    return np.stack(plan)
