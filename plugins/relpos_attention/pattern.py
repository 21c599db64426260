"""Where a graph computes RelposAttention: attention among tokens at given positions, with the bias inside the products.

Queries are [q | q.R of every line], keys [k | one-hot of their lines] (`patch.attention`). The tables that positions
pick from say which relative positions they were made of; anything that is no such table is left alone. Blocks that do
not merge are in `dense.py`.
"""

from structsam_export.fused import part
from structsam_export.rewrite.fused_nodes import found, insert, metadata, plans
from structsam_export.rewrite.match import add, fresh, integers, only_consumer, producer, static_shape

NAME = "relpos_attention"
HEADS_TO_THE_FRONT = [0, 2, 1, 3]


def get_plugin_metadata():
    return metadata(NAME)


def get_matching_subgraphs(graph):
    """Matches as {"inputs": [...], "outputs": [out], "attributes": {"heads": ...}}.

    Inputs: q, k, v, pos and tables; where `aligned` is 1: rows of q, k and v, scale and tables.
    """
    positions = {id(t): t for t in plans(graph, "pos")}
    matches, dense = [], part(NAME, "dense")
    for node in graph.nodes:
        if node.op != "Softmax":
            continue
        if match := attention_at(graph, node, positions):
            matches.append(match)
        elif match := dense.attention_at(graph, node):
            inputs, out, attrs = match
            matches.append(found("RelposAttention", inputs, [out], attrs))
    return matches


def attention_at(graph, softmax, positions):
    scores = producer(softmax.inputs[0], "MatMul")
    product = only_consumer(graph, softmax.outputs[0])
    if scores is None or product is None or product.op != "MatMul":
        return None
    left = before(scores.inputs[0], HEADS_TO_THE_FRONT)
    right = before(scores.inputs[1], [0, 2, 3, 1])
    v = before(product.inputs[1], HEADS_TO_THE_FRONT)
    back = only_consumer(graph, product.outputs[0])
    if (
        any(t is None for t in (left, right, v, back))
        or back.op != "Transpose"
        or list(back.attrs["perm"]) != HEADS_TO_THE_FRONT
    ):
        return None
    joined = only_consumer(graph, back.outputs[0])
    q_part, k_part = producer(left, "Concat"), producer(right, "Concat")
    if joined is None or joined.op != "Reshape" or q_part is None or k_part is None or len(k_part.inputs) != 2:
        return None
    (q, *biases), (k, onehot) = q_part.inputs, k_part.inputs
    picked = [table_of(bias, q) for bias in biases]
    lines = picked_rows(onehot)
    if lines is None or any(p is None for p in picked):
        return None
    pos = lines[1]
    attrs = attributes(q, pos, lines[0], picked, positions)
    if attrs is None or any(static_shape(t) != static_shape(q) for t in (k, v)):
        return None
    tables = [table for table, _ in picked]
    return found("RelposAttention", [q, k, v, pos, *tables], [joined.outputs[0]], attrs)


def before(tensor, perm):
    made = producer(tensor, "Transpose")
    return made.inputs[0] if made is not None and list(made.attrs["perm"]) == perm else None


def picked_rows(tensor):
    """(table, positions) of rows that positions pick from a constant; repeated for heads or not."""
    if (expand := producer(tensor, "Expand")) is not None:
        tensor = expand.inputs[0]
    gather = producer(tensor, "Gather")
    if gather is None or gather.attrs.get("axis", 0) != 0 or not hasattr(gather.inputs[0], "values"):
        return None
    return gather.inputs[0], gather.inputs[1]


def table_of(bias, q):
    """(table, positions) of q . table[positions], or None."""
    product = producer(bias, "MatMul")
    return picked_rows(product.inputs[1]) if product is not None and product.inputs[0] is q else None


def attributes(q, pos, onehot, picked, positions):
    """Attributes of the operator if all tables are those of one window's relative positions."""
    shape, places = static_shape(q), onehot.shape[0]
    if shape is None or len(shape) != 4 or id(pos) not in positions:
        return None
    for window in windows_of(onehot):
        if relative([place_table(t, at, pos, places) for t, at in picked], window) is not None:
            return {"heads": shape[2], "window_h": window[0], "window_w": window[1], "aligned": 0}
    return None


def windows_of(onehot):
    """(h, w) for which rows of a table are one-hot for row and column of each place; at most one."""
    import numpy as np

    values = np.asarray(onehot.values).astype(np.float32)
    places, _, lines = values.shape
    for h in range(1, lines):
        w = lines - h
        if h * w != places:
            continue
        place, line = np.arange(places), np.arange(lines)
        expected = (line == (place // w)[:, None]) | (line == h + (place % w)[:, None])
        if (values == expected[:, None]).all():
            yield h, w


def place_table(table, at, pos, places):
    """A table as (places, d, lines): as it is, or by what picks its rows for every place."""
    import numpy as np

    values = np.asarray(table.values)
    if at is pos:
        return values if len(values) == places else None
    rows = picked_rows(at)
    if rows is None or rows[1] is not pos or rows[0].shape[0] != places:
        return None
    return values[np.asarray(rows[0].values)]


def relative(tables, window):
    """R (d, 2h - 1 + 2w - 1) of which tables (places, d, lines) hold R[line of place - line]; None if they do not."""
    import numpy as np

    if any(t is None for t in tables):
        return None
    table = np.concatenate(tables, -1)
    h, w = window
    if table.shape[0] != h * w or table.shape[2] != h + w:
        return None
    place = np.arange(h * w)
    axes = []
    for own, size, begin in ((place // w, h, 0), (place % w, w, h)):
        step = own[:, None] - np.arange(size) + size - 1  # (places, lines): which relative position
        axes.append(part(NAME, "dense").axis_of(step, table[:, :, begin : begin + size].swapaxes(1, 2), size))
    return None if any(axis is None for axis in axes) else np.concatenate(axes).T.copy()


def replace_with_plugin(graph, input_tensors, output_tensors, attrs, op):
    import onnx_graphsurgeon as gs

    if attrs["aligned"]:
        qkv, R, pos = part(NAME, "dense").parts(graph, input_tensors, attrs)
        return attend(graph, qkv, R, pos, output_tensors[0], attrs, op)
    q, k, v, pos, *tables = input_tensors
    window = attrs["window_h"], attrs["window_w"]
    whole = relative(by_place(tables, window), window)
    if whole is None:
        return False
    R = gs.Constant(fresh(graph, f"{output_tensors[0].name}.relative"), whole)
    return attend(graph, (q, k, v), R, pos, output_tensors[0], attrs, op)


def attend(graph, qkv, R, pos, out, attrs, op):
    """Let the operator make `out` of q, k and v (calls, n, heads, d) and relative positions R (d, lines)."""
    import onnx_graphsurgeon as gs

    q, k, v = qkv
    calls, n, heads, depth = q.shape
    rel = add(graph, "MatMul", [q, R], q, [calls, n, heads, R.shape[1]])
    rows = [calls, n, heads * depth]
    flat = [together(graph, t, rows) for t in (q, k, v)]
    y = gs.Variable(fresh(graph, f"{out.name}.attention"), out.dtype, rows)
    out.inputs.clear()
    insert(graph, op, [*flat, rel, pos], [y], attrs)
    made = gs.Node("Reshape", name=fresh(graph, f"{out.name}.rows"), outputs=[out])
    made.inputs = [y, integers(graph, f"{out.name}.shape", out.shape)]
    graph.nodes.append(made)
    graph.cleanup().toposort()
    return True


def by_place(tables, window):
    """Tables of a match for every place: one for both axes, or one by rows and one by columns."""
    import numpy as np

    values = [np.asarray(t.values) for t in tables]
    if len(values) == 1:
        return values
    place = np.arange(window[0] * window[1])
    return [values[0][place // window[1]], values[1][place % window[1]]]


def together(graph, tensor, rows):
    """(calls, n, heads, d) as (calls, n, heads * d): what it was split from, or a view."""
    made = producer(tensor, "Reshape")
    source = made.inputs[0] if made is not None else tensor
    if static_shape(source) == rows:
        return source
    return add(graph, "Reshape", [source, integers(graph, f"{tensor.name}.rows", rows)], tensor, rows)
