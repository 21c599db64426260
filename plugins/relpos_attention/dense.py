"""Attention of blocks that do not merge: a token at every place of a window, in raster order (`aligned`).

The stock block, as `rewrite.stock_relative_position` leaves it: heads and windows are one axis, and queries, keys and
values are cut from one projection. Queries are [q * scale | q.R of every row | of every column], keys [k | one-hot].
"""

from structsam_export.rewrite.match import add, floats, fresh, integers, only_consumer, producer, static_shape

# Windows, tokens, q k v, heads, channels -> q k v, windows, heads, tokens, channels; and back to tokens.
PARTS_TO_THE_FRONT, HEADS_BACK = [2, 0, 3, 1, 4], [0, 2, 3, 1, 4]
# Products of queries (calls * heads, h, w, d) with tables (h, h, d) and (w, w, d).
BY_ROW, BY_COLUMN = "bhwc,hkc->bhwk", "bhwc,wkc->bhwk"


def attention_at(graph, softmax):
    """(inputs, output, attributes) of a dense attention around a Softmax; inputs: rows, scale, both tables. Or None."""
    scores, weighted = producer(softmax.inputs[0], "MatMul"), only_consumer(graph, softmax.outputs[0])
    if scores is None or weighted is None or weighted.op != "MatMul":
        return None
    left, right = producer(scores.inputs[0], "Concat"), producer(scores.inputs[1], "Concat")
    if left is None or right is None or (len(left.inputs), len(right.inputs)) != (3, 2):
        return None
    scaled, keys = producer(left.inputs[0], "Mul"), producer(right.inputs[0], "Transpose")
    if scaled is None or keys is None or list(keys.attrs["perm"]) != [0, 2, 1]:
        return None
    q, scale = scaled.inputs
    wide = [cut_from(t, i) for i, t in enumerate((q, keys.inputs[0], weighted.inputs[1]))]
    tables = [table_of(t, q, how) for t, how in zip(left.inputs[1:], (BY_ROW, BY_COLUMN))]
    out = joined(graph, weighted.outputs[0])
    if any(t is None for t in (*tables, out, wide[0])) or any(t is not wide[0] for t in wide) or not single(scale):
        return None
    rows, (_, tokens, _, heads, depth) = producer(wide[0], "Reshape"), static_shape(wide[0])
    window = tuple(len(t.values) for t in tables)
    if rows is None or projection(rows.inputs[0]) is None or relative(tables) is None:
        return None
    if tokens != window[0] * window[1] or not on_lines(right.inputs[1], window) or tables[0].shape[2] != depth:
        return None
    attrs = {"heads": heads, "window_h": window[0], "window_w": window[1], "aligned": 1}
    return [rows.inputs[0], scale, *tables], out, attrs


def cut_from(tensor, which):
    """The tensor (calls, n, 3, heads, d) of which this is one part as (calls * heads, n, d), or None."""
    squeeze = producer(tensor, "Squeeze")
    split = producer(squeeze.inputs[0], "Split") if squeeze is not None else None
    if split is None or split.attrs.get("axis", 0) != 0 or len(split.outputs) != 3:
        return None
    stacked = producer(split.inputs[0], "Reshape") if split.outputs[which] is squeeze.inputs[0] else None
    moved = producer(stacked.inputs[0], "Transpose") if stacked is not None else None
    shape = static_shape(moved.inputs[0]) if moved is not None else None
    if shape is None or len(shape) != 5 or shape[2] != 3 or list(moved.attrs["perm"]) != PARTS_TO_THE_FRONT:
        return None
    calls, n, _, heads, depth = shape
    return moved.inputs[0] if static_shape(tensor) == [calls * heads, n, depth] else None


def table_of(bias, q, equation):
    """The constant (lines, lines, d) of one axis that queries are multiplied by, or None."""
    flat = producer(bias, "Reshape")
    product = producer(flat.inputs[0], "Einsum") if flat is not None else None
    if product is None or product.attrs["equation"] != equation or not hasattr(product.inputs[1], "values"):
        return None
    view, table = producer(product.inputs[0], "Reshape"), product.inputs[1]
    grid, shape = static_shape(product.inputs[0]), static_shape(table)
    if view is None or view.inputs[0] is not q or grid is None or shape is None or shape[0] != shape[1]:
        return None
    return table if grid[1 if equation == BY_ROW else 2] == shape[0] else None


def joined(graph, heads_apart):
    """The view of tokens' channels that an attention's output (calls * heads, n, d) becomes, or None."""
    split = only_consumer(graph, heads_apart)
    moved = only_consumer(graph, split.outputs[0]) if split is not None and split.op == "Reshape" else None
    if moved is None or moved.op != "Transpose" or list(moved.attrs["perm"]) != HEADS_BACK:
        return None
    view = only_consumer(graph, moved.outputs[0])
    return view.outputs[0] if view is not None and view.op == "Reshape" else None


def single(tensor):
    return hasattr(tensor, "values") and tensor.values.size == 1


def on_lines(onehot, window):
    """Whether a tensor (.., h + w, places) is one-hot for row and column of every place in raster order."""
    import numpy as np

    if (expand := producer(onehot, "Expand")) is not None:
        onehot = expand.inputs[0]
    (h, w), place = window, np.arange(window[0] * window[1])
    if not hasattr(onehot, "values"):
        return False
    values = np.asarray(onehot.values).astype(np.float32)
    expected = np.concatenate([place // w == np.arange(h)[:, None], place % w == np.arange(w)[:, None]])
    return values.shape[-2:] == expected.shape and bool((values == expected).all())


def axis_of(step, values, size):
    """R (2 * size - 1, d) of which `values` (.., size, d) holds R[step]; None if it holds anything else."""
    import numpy as np

    axis = np.zeros((2 * size - 1, values.shape[-1]), values.dtype)
    axis[step] = values
    return axis if np.array_equal(axis[step], values) else None


def relative(tables):
    """R (d, 2h - 1 + 2w - 1) of tables (lines, lines, d) that hold R[line - line] of one axis each, or None."""
    import numpy as np

    axes = []
    for table in tables:
        size = len(table.values)
        axes.append(axis_of(np.arange(size)[:, None] - np.arange(size) + size - 1, np.asarray(table.values), size))
    return None if any(axis is None for axis in axes) else np.concatenate(axes).T.copy()


def projection(rows):
    """(operator, input, weight, bias or None) of the linear layer that makes queries, keys and values; or None."""
    if (gemm := producer(rows, "Gemm")) is not None:
        plain = all(gemm.attrs.get(name, default) == default for name, default in PLAIN.items())
        found = ("Gemm", *gemm.inputs) if plain and len(gemm.inputs) == 3 else None
    else:
        plus = producer(rows, "Add")
        biases = [t for t in plus.inputs if not t.inputs] if plus is not None else [None]
        products = [t for t in plus.inputs if t.inputs] if plus is not None else [rows]
        product = producer(products[0], "MatMul") if len(products) == len(biases) == 1 else None
        found = ("MatMul", *product.inputs, biases[0]) if product is not None else None
    known = found is not None and not found[2].inputs and len(static_shape(found[2]) or []) == 2
    return found if known and (found[3] is None or len(static_shape(found[3]) or []) == 1) else None


PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def parts(graph, tensors, attrs):
    """What `pattern.attend` takes of a match's inputs: q (scaled), k and v (calls, n, heads, d), R and positions."""
    import numpy as np
    import onnx_graphsurgeon as gs

    rows, scale, *tables = tensors
    factor, n = float(scale.values.item()), attrs["window_h"] * attrs["window_w"]
    op, x, weight, bias = projection(rows)
    depth, shape = static_shape(weight)[1] // 3, static_shape(rows)
    calls = int(np.prod(shape[:-1])) // n
    weights, biases = cut(graph, weight), [None] * 3 if bias is None else cut(graph, bias)
    weights[0], biases[0] = times(graph, weights[0], factor), times(graph, biases[0], factor)
    made = []
    for part, offset in zip(weights, biases):
        y = add(graph, op, [x, part, *([offset] if op == "Gemm" else [])], rows, [*shape[:-1], depth])
        if op == "MatMul" and offset is not None:
            y = add(graph, "Add", [y, offset], rows, [*shape[:-1], depth])
        four = [calls, n, attrs["heads"], depth // attrs["heads"]]
        made.append(add(graph, "Reshape", [y, integers(graph, f"{rows.name}.heads", four)], rows, four))
    R = relative(tables).astype(np.float32) / factor
    name = f"places.{calls}x{n}"  # the same for all layers of one geometry
    pos = graph.tensors().get(name)
    if pos is None:
        pos = gs.Constant(name, np.tile(np.arange(n, dtype=np.int32), (calls, 1)))
    return made, floats(graph, f"{rows.name}.relative", R, rows), pos


def cut(graph, tensor):
    """A weight's three parts along its last axis; by an operator where its values stay outside (`rewrite.weights`)."""
    import numpy as np
    import onnx_graphsurgeon as gs

    shape = static_shape(tensor)
    third = shape[-1] // 3
    if hasattr(tensor, "values"):
        values = np.split(np.asarray(tensor.values), 3, axis=-1)
        return [gs.Constant(fresh(graph, f"{tensor.name}.{n}"), v.copy()) for n, v in zip("qkv", values)]
    outputs = [gs.Variable(fresh(graph, f"{tensor.name}.{n}"), tensor.dtype, [*shape[:-1], third]) for n in "qkv"]
    sizes = integers(graph, f"{tensor.name}.sizes", [third] * 3)
    attrs = {"axis": len(shape) - 1}
    graph.nodes.append(gs.Node("Split", outputs[0].name, attrs, inputs=[tensor, sizes], outputs=outputs))
    return outputs


def times(graph, tensor, factor):
    """A weight times a number: a constant, or an operator as in `cut`."""
    import numpy as np

    if tensor is None:
        return None
    if hasattr(tensor, "values"):
        values = np.asarray(tensor.values)
        tensor.values = (values.astype(np.float32) * factor).astype(values.dtype)
        return tensor
    return add(graph, "Mul", [tensor, floats(graph, f"{tensor.name}.scale", factor, tensor)], tensor, tensor.shape)
