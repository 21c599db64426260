"""Rows are gathered from the grid itself, not from a copy of it cut into windows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops, run

RULE = "gather_grid"
WINDOW = 2


def partition(batch=1, grid=(3, 4), pad="widths"):
    """segment_anything's window_partition of x (B, h, w, 5) as rows, and its constants."""
    h, w = (-(-n // WINDOW) for n in grid)
    constants = {
        "widths": [0, 0, 0, 0, 0, h * WINDOW - grid[0], w * WINDOW - grid[1], 0],
        "cut": [batch, h, WINDOW, w, WINDOW, 5],
        "flat": [-1, 5],
    }
    nodes = [
        node("Pad", f"x {pad}", "padded"),
        node("Reshape", "padded cut", "six"),
        node("Transpose", "six", "swapped", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "swapped flat", "rows"),
    ]
    return (nodes if pad else [node("Reshape", "x cut", "six"), *nodes[2:]]), constants


def gathered(batch=1, grid=(3, 4), pad="widths", index=(7,), nodes=None, outputs="y", **constants):
    """Gather(window partition, i)."""
    cut, own = partition(batch, grid, pad)
    last = [node("Gather", "rows i", "y", axis=0)] if nodes is None else nodes
    return graph_of([*cut, *last], {"x": [batch, *grid, 5], "i": list(index)}, outputs, **own | constants)


def indices(shape, rows, least=0):
    """Random rows, the first and the last one among them."""
    found = np.random.default_rng(0).integers(least, rows, shape)
    found.flat[0], found.flat[-1] = least, rows - 1
    return found


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(7,), (4, 6)])
def test_windows_without_padding(batch, shape):
    graph = gathered(batch, (2, 4), "", shape)
    check_fires(RULE, graph, 1, i=indices(shape, batch * 8))
    assert sorted(ops(graph)) == ["Gather", "Gather", "Reshape"]
    assert [n.outputs[0].name for n in graph.nodes][-1] == "y"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(16,), (2, 16)])
def test_windows_with_padding(batch, shape):
    graph = gathered(batch, (3, 4), index=shape)
    index = np.arange(np.prod(shape)).reshape(shape) % (batch * 16)
    check_fires(RULE, graph, 1, i=index)
    assert sorted(ops(graph)) == ["Gather", "Gather", "Pad", "Reshape"]
    rows = run(graph, {"x": np.ones((batch, 3, 4, 5), np.float32), "i": index})["y"]
    assert {tuple(row) for row in rows.reshape(-1, 5)} == {(0,) * 5, (1,) * 5}
    # One row of padding is appended to all images together.
    (pad,) = (n for n in graph.nodes if n.op == "Pad")
    assert pad.outputs[0].shape == [batch * 12 + 1, 5]


def test_rows_counted_from_the_end():
    check_fires(RULE, gathered(), 1, i=indices((7,), 16, least=-16))


def test_rows_in_their_old_order_but_not_all_of_them():
    """Row -1 is the last one that was kept."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("Reshape", "t flat", "all"),
        node("Slice", "all first end first", "rows"),
        node("Gather", "rows i", "y", axis=0),
    ]
    graph = graph_of(nodes, {"x": [1, 4, 5], "i": [4]}, "y", flat=[4, 5], first=[0], end=[3])
    check_fires(RULE, graph, 1, i=np.array([0, 2, -1, -3]))


def test_rows_in_their_old_order_need_no_table():
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("Reshape", "t flat", "rows"),
        node("Gather", "rows i", "y", axis=0),
    ]
    graph = graph_of(nodes, {"x": [1, 4, 5], "i": [4]}, "y", flat=[4, 5])
    check_fires(RULE, graph, 1, i=np.array([0, 3, -1, -3]))
    assert ops(graph) == ["Reshape", "Gather"]


def test_indices_of_32_bits():
    nodes = [node("Cast", "i", "short", to=onnx.TensorProto.INT32), node("Gather", "rows short", "y", axis=0)]
    graph = gathered(nodes=nodes)
    check_fires(RULE, graph, 1, i=indices((7,), 16))


@pytest.mark.parametrize("pad", ["widths", ""])
def test_two_gathers_share_the_rows(pad):
    nodes = [node("Gather", "rows i", "y", axis=0), node("Neg", "i", "j"), node("Gather", "rows j", "z", axis=0)]
    graph = gathered(1, (3, 4) if pad else (2, 4), pad, nodes=nodes, outputs="y z")
    check_fires(RULE, graph, 2, i=indices((7,), 8))
    assert ops(graph).count("Reshape") == 1
    assert ops(graph).count("Pad") == (1 if pad else 0)
    assert len({id(n.inputs[0]) for n in graph.nodes if n.outputs[0].name in "yz"}) == 1


def test_windows_that_others_read_stay_for_them():
    graph = gathered(nodes=[node("Gather", "rows i", "y", axis=0), node("Neg", "rows", "z")], outputs="y z six")
    check_fires(RULE, graph, 1, i=indices((7,), 16))
    assert ops(graph).count("Transpose") == 1


def test_channels_split_before_are_rows_of_their_own():
    nodes = [
        node("Reshape", "x heads", "h"),
        node("Transpose", "h", "t", perm=[1, 0, 2]),
        node("Reshape", "t flat", "rows"),
        node("Gather", "rows i", "y", axis=0),
    ]
    graph = graph_of(nodes, {"x": [4, 6], "i": [7]}, "y", heads=[4, 2, 3], flat=[8, 3])
    check_fires(RULE, graph, 1, i=indices((7,), 8))
    assert ops(graph)[0] == "Reshape" and "Transpose" not in ops(graph)


REASON = "make_y: rows are taken apart or padded with something else than zeros"


def taken_apart(layout, shape, **constants):
    """Nodes that move channels although their number stays."""
    nodes = [*layout, node("Gather", "rows i", "y", axis=0)]
    return graph_of(nodes, {"x": shape, "i": [3]}, "y", **constants)


@pytest.mark.parametrize("size", [2, 3])
def test_rows_that_become_columns_are_left_alone(size):
    check_left_alone(RULE, taken_apart([node("Transpose", "x", "rows", perm=[1, 0])], [size, size]), REASON)


def test_a_transposition_without_an_order_is_left_alone():
    check_left_alone(RULE, taken_apart([node("Transpose", "x", "rows")], [3, 3]), REASON)


def test_channels_in_reverse_order_are_left_alone():
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Slice", "t last before axis back", "s")]
    nodes.append(node("Reshape", "s flat", "rows"))
    constants = {"last": [2], "before": [-9], "axis": [2], "back": [-1], "flat": [8, 3]}
    check_left_alone(RULE, taken_apart(nodes, [4, 2, 3], **constants), REASON)


def test_a_cut_through_channels_is_left_alone():
    """Even where it keeps the only one."""
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Slice", "t zero one two", "s")]
    nodes.append(node("Reshape", "s flat", "rows"))
    check_left_alone(RULE, taken_apart(nodes, [3, 1, 1], zero=[0], one=[1], two=[2], flat=[3, 1]), REASON)


def test_heads_put_together_again_are_left_alone():
    """A row of six consists of three numbers from each of two rows."""
    nodes = [node("Reshape", "x heads", "h"), node("Transpose", "h", "t", perm=[1, 0, 2])]
    nodes.append(node("Reshape", "t flat", "rows"))
    check_left_alone(RULE, taken_apart(nodes, [4, 6], heads=[4, 2, 3], flat=[4, 6]))


@pytest.mark.parametrize("value", [1, -1e-3, np.inf, np.nan])
def test_other_padding_is_left_alone(value):
    check_left_alone(RULE, gathered(pad="widths value", value=np.float32(value)), REASON)


def test_padding_with_a_zero_that_is_written_out():
    check_fires(RULE, gathered(pad="widths value", value=np.float32(0)), 1, i=indices((7,), 16))


def test_padding_with_a_computed_value_is_left_alone():
    nodes, own = partition(pad="widths value")
    nodes = [node("Neg", "v", "value"), *nodes, node("Gather", "rows i", "y", axis=0)]
    check_left_alone(RULE, graph_of(nodes, {"x": [1, 3, 4, 5], "v": [], "i": [7]}, "y", **own), REASON)


def test_padding_with_neighbours_is_left_alone():
    nodes, own = partition()
    nodes[0] = node("Pad", "x widths", "padded", mode="edge")
    nodes.append(node("Gather", "rows i", "y", axis=0))
    check_left_alone(RULE, graph_of(nodes, {"x": [1, 3, 4, 5], "i": [7]}, "y", **own), REASON)


def test_a_constant_index_is_left_alone():
    nodes, own = partition()
    graph = graph_of([*nodes, node("Gather", "rows k", "y", axis=0)], {"x": [1, 3, 4, 5]}, "y", k=[1, 15], **own)
    check_left_alone(RULE, graph)


def test_a_gather_of_columns_is_left_alone():
    check_left_alone(RULE, gathered(nodes=[node("Gather", "rows i", "y", axis=1)]))


def test_a_gather_of_windows_is_left_alone():
    nodes = [node("Reshape", "swapped whole", "w"), node("Gather", "w i", "y", axis=0)]
    check_left_alone(RULE, gathered(nodes=nodes, whole=[4, 4, 5]))


def test_rows_that_are_not_moved_are_left_alone():
    nodes = [node("Reshape", "x flat", "rows"), node("Gather", "rows i", "y", axis=0)]
    check_left_alone(RULE, graph_of(nodes, {"x": [3, 4, 5], "i": [7]}, "y", flat=[12, 5]))


@pytest.mark.parametrize(("x", "i"), [(["B", 3, 4, 5], [7]), ([1, 3, 4, 5], ["N"])])
def test_unknown_shapes_are_left_alone(x, i):
    nodes, own = partition(batch=-1)
    graph = graph_of([*nodes, node("Gather", "rows i", "y", axis=0)], {"x": x, "i": i}, "y", **own)
    check_left_alone(RULE, graph)


def test_padded_and_unpadded_rows_of_one_grid():
    nodes, own = partition()
    nodes += [node("Gather", "rows i", "y", axis=0), node("Transpose", "x", "t", perm=[0, 2, 1, 3])]
    nodes += [node("Reshape", "t flat", "columns"), node("Gather", "columns i", "z", axis=0)]
    graph = graph_of(nodes, {"x": [1, 3, 4, 5], "i": [7]}, "y z", **own)
    check_fires(RULE, graph, 2, i=indices((7,), 12))
    sizes = {n.outputs[0].name: n.inputs[0].shape for n in graph.nodes if n.outputs[0].name in "yz"}
    assert sizes == {"y": [13, 5], "z": [12, 5]}
