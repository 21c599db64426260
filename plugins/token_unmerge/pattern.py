"""Where a graph computes TokenUnmerge: a row for every token by its slot, added to the residual stream."""

from structsam_export.rewrite.fused_nodes import (
    between,
    calls_of,
    found,
    insert,
    metadata,
    plans,
    same_numbers,
    square_windows,
)
from structsam_export.rewrite.match import add, integers, producer, static_shape

NAME = "token_unmerge"


def get_plugin_metadata():
    return metadata(NAME)


def get_matching_subgraphs(graph):
    """Matches as {"inputs": [rows, slot, residual], "outputs": [sum], "attributes": {"window_h": ...}}."""
    slots = plans(graph, "slot")
    matches = []
    for node in graph.nodes:
        if node.op == "Add" and (match := unmerge_at(graph, node, slots)):
            matches.append(match)
    return matches


def unmerge_at(graph, node, slots):
    out = node.outputs[0]
    shape = static_shape(out)
    if shape is None or len(shape) != 4:
        return None
    for tensor, residual in (node.inputs[::-1], node.inputs):
        cast = producer(tensor, "Cast")
        gather = producer(cast.inputs[0] if cast is not None else tensor, "Gather")
        if gather is None or static_shape(residual) != shape or hasattr(gather.inputs[1], "values"):
            continue
        rows = gather.inputs[0]
        for slot in slots:
            if match := matched(graph, rows, slot, residual, out):
                return match
    return None


def matched(graph, rows, slot, residual, out):
    import numpy as np

    shape, (calls, tokens), size = static_shape(out), static_shape(slot), static_shape(rows)
    if size is None or len(size) != 2 or size[0] % calls or not between([rows, slot, residual], [out]):
        return None
    window = square_windows(tokens, shape[1:3])
    if window is None or calls != shape[0] * calls_of(shape[1:3], window):
        return None
    attrs = {"window_h": window[0], "window_w": window[1]}
    n, rng = size[0] // calls, np.random.default_rng(0)
    feeds = {
        rows.name: rng.standard_normal(size, np.float32),
        slot.name: rng.integers(0, n, (calls, tokens)),
        residual.name: rng.standard_normal(shape, np.float32),
    }
    if not same_numbers(graph, replace_with_plugin, "TokenUnmerge", [rows, slot, residual], [out], attrs, feeds):
        return None
    return found("TokenUnmerge", [rows, slot, residual], [out], attrs)


def replace_with_plugin(graph, input_tensors, output_tensors, attrs, op):
    rows, slot, residual = input_tensors
    calls, (count, depth) = slot.shape[0], rows.shape
    shape = [calls, count // calls, depth]
    y = add(graph, "Reshape", [rows, integers(graph, f"{rows.name}.slots", shape)], rows, shape)
    insert(graph, op, [y, slot, residual], output_tensors, attrs)
    graph.cleanup().toposort()
    return True
