"""Chains of layout nodes on small tensors become one gather by a constant index."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import apply_once, check_fires, check_left_alone, graph_of, node, ops, run

from structsam_export.rewrite.movement_gather import LIMIT

RULE = "movement_gather"
# A grid of 5x6 numbers, padded to 6x6 and cut into 2x3 windows of 3x2.
GRID = {"i": [1, 5, 6]}
NUMBERS = np.random.default_rng(0).integers(-99, 99, (1, 5, 6))
CONSTANTS = {
    "widths": [0, 0, 0, 0, 1, 0],
    "seven": 7,
    "cut": [1, 2, 3, 3, 2],
    "windows": [6, 6],
    "first": [0],
    "end": [2],
    "some": [[3, -1], [0, 5]],
    "one": [1],
    "from": [0, -4],
    "to": [2**62, -1],
    "axes": [0, -1],
    "step": [2, 1],
}


def windows(pad="i widths", **mode):
    """Pad, Reshape, Transpose, Reshape: windows of a grid as rows."""
    return [
        node("Pad", pad, "padded", **mode),
        node("Reshape", "padded cut", "five"),
        node("Transpose", "five", "swapped", perm=[0, 1, 3, 2, 4]),
        node("Reshape", "swapped windows", "y"),
    ]


def tiny(nodes, inputs=GRID, outputs="y", **constants):
    return graph_of(nodes, inputs, outputs, **CONSTANTS | constants)


def test_windows_are_one_gather():
    graph = tiny(windows())
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert ops(graph) == ["Reshape", "Concat", "Gather"]
    assert graph.nodes[-1].outputs[0].name == "y"


def test_padding_keeps_its_value():
    graph = tiny(windows("i widths seven"))
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert (run(graph, {"i": NUMBERS})["y"] == 7).sum() >= 6


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**53 + 1])
def test_padding_no_float_can_hold(value):
    graph = tiny(windows("i widths seven"), seven=value)
    assert apply_once(RULE, graph) == (1, [])
    assert (run(graph, {"i": NUMBERS})["y"] == value).sum() == 6


def test_without_padding_nothing_is_appended():
    nodes = [node("Reshape", "i cut", "five"), *windows()[2:]]
    graph = tiny(nodes, {"i": [1, 6, 6]})
    check_fires(RULE, graph, 1, i=np.arange(36).reshape(1, 6, 6))
    assert ops(graph) == ["Reshape", "Gather"]


def test_every_layout_operator():
    nodes = [
        *windows(),
        node("Gather", "y some", "picked", axis=1),  # (6, 2, 2)
        node("Unsqueeze", "picked first", "deep"),  # (1, 6, 2, 2)
        node("Squeeze", "deep first", "flat"),
        node("Slice", "flat first end first", "few"),  # (2, 2, 2)
        node("Transpose", "few", "last", perm=[2, 0, 1]),
    ]
    graph = tiny(nodes, outputs="last")
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert ops(graph) == ["Reshape", "Concat", "Gather"]


def test_bounds_from_the_end_and_steps():
    nodes = [
        node("Squeeze", "i first", "flat"),
        node("Slice", "flat from to axes step", "cutout"),
        node("Transpose", "cutout", "y", perm=[1, 0]),
    ]
    graph = tiny(nodes)
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert np.array_equal(run(graph, {"i": NUMBERS})["y"], NUMBERS[0, ::2, -4:-1].T)


def test_a_transposition_without_an_order_reverses_all_axes():
    nodes = [node("Pad", "i widths", "p"), node("Transpose", "p", "t"), node("Squeeze", "t end", "y")]
    graph = tiny(nodes)
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert ops(graph) == ["Reshape", "Concat", "Gather"]


def test_a_single_number_may_remain():
    nodes = [node("Transpose", "i", "t", perm=[2, 1, 0]), node("Gather", "t two", "m", axis=0)]
    nodes += [node("Squeeze", "m end1", "v"), node("Gather", "v two", "y", axis=0)]
    graph = tiny(nodes, two=2, end1=[1])
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert run(graph, {"i": NUMBERS})["y"] == NUMBERS[0, 2, 2]


def test_a_single_number_may_begin():
    nodes = [node("Unsqueeze", "i first", "a"), node("Pad", "a around seven", "b"), node("Unsqueeze", "b first", "y")]
    graph = tiny(nodes, {"i": []}, around=[1, 1])
    check_fires(RULE, graph, 1, i=np.array(5))
    assert run(graph, {"i": np.array(5)})["y"].tolist() == [[7, 5, 7]]


def floats(*middle):
    """A chain on floats: flatten, two nodes, and back to rows."""
    return [node("Reshape", "x flat", "a"), *middle, node("Reshape", "c back", "y")]


FLOATS = {"x": [4, 6]}
SHAPES = {"flat": [2, 3, 4], "back": [-1, 1], "order": [2, 0, 1], "pads": [0, 0, 0, 0, 0, 1], "low": np.float32(-3e38)}
TAKES_PART = {
    "a gather": [node("Gather", "a order", "b", axis=1), node("Transpose", "b", "c", perm=[2, 0, 1])],
    "a pad": [node("Pad", "a pads", "b"), node("Transpose", "b", "c", perm=[2, 0, 1])],
    "a pad of a value": [node("Pad", "a pads low", "b"), node("Transpose", "b", "c", perm=[2, 0, 1])],
}


@pytest.mark.parametrize("middle", TAKES_PART.values(), ids=TAKES_PART)
def test_floats_that_are_picked_or_padded(middle):
    graph = tiny(floats(*middle), FLOATS, **SHAPES)
    check_fires(RULE, graph, 1)
    assert ops(graph)[-1] == "Gather"


def test_floats_that_only_change_their_layout_are_left_alone():
    """Heads and channels of attention: runtimes transpose them where they use them."""
    middle = [node("Transpose", "a", "b", perm=[2, 0, 1]), node("Slice", "b first end first", "c")]
    check_left_alone(RULE, tiny(floats(*middle), FLOATS, **SHAPES))


def test_integers_that_only_change_their_shape_are_left_alone():
    nodes = [node("Squeeze", "i first", "a"), node("Unsqueeze", "a end", "b"), node("Unsqueeze", "b first", "y")]
    check_left_alone(RULE, tiny(nodes))


def rows(flat):
    """Rows of a (3, 4) tensor on a grid with one row of padding, listed column by column."""
    return [
        node("Reshape", f"{flat} grid", "g"),
        node("Pad", "g below", "p"),
        node("Transpose", "p", "t", perm=[1, 0, 2]),
        node("Reshape", "t listed", "y"),
    ]


def test_whole_rows_of_channels_are_left_alone():
    check_left_alone(RULE, tiny(rows("x"), {"x": [3, 4]}, grid=[3, 1, 4], below=[0, 0, 0, 1, 0, 0], listed=[4, 4]))


def test_rows_of_one_number_are_not():
    check_fires(RULE, tiny(rows("x"), {"x": [3, 1]}, grid=[3, 1, 1], below=[0, 0, 0, 1, 0, 0], listed=[4, 1]), 1)


@pytest.mark.parametrize("length", [1, 2])
def test_shorter_chains_are_left_alone(length):
    nodes = windows()[:length]
    check_left_alone(RULE, tiny(nodes, outputs=nodes[-1].output[0]))


def test_chains_end_where_others_read():
    nodes = [*windows(), node("Neg", "swapped", "second")]
    graph = tiny(nodes, outputs="y second")
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert sorted(ops(graph)) == ["Concat", "Gather", "Neg", "Reshape", "Reshape"]


def test_chains_end_at_an_output():
    graph = tiny(windows(), outputs="y swapped")
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert ops(graph) == ["Reshape", "Concat", "Gather", "Reshape"]


def test_an_output_in_the_middle_of_a_short_chain():
    check_left_alone(RULE, tiny(windows(), outputs="y five"))


def test_a_lookup_by_the_chain_is_not_part_of_it():
    nodes = [*windows()[:2], node("Gather", "table five", "z", axis=0), node("Transpose", "z", "y")]
    check_left_alone(RULE, tiny(nodes, table=np.arange(200)))


def test_a_shape_from_the_chain_is_not_part_of_it():
    nodes = [node("Transpose", "i", "a", perm=[1, 0]), node("Squeeze", "a one", "b"), node("Reshape", "x b", "y")]
    graph = tiny(nodes, {"i": [1, 2], "x": [1, 2]})
    graph.outputs[0].shape = [2, 1]
    check_left_alone(RULE, graph)


def test_several_chains_of_nodes_without_names():
    nodes = [*windows(), node("Neg", "y", "j"), node("Pad", "j none", "a"), node("Transpose", "a", "b", perm=[1, 0])]
    nodes.append(node("Reshape", "b cut", "z"))
    for n in nodes:
        n.name = ""
    check_fires(RULE, tiny(nodes, outputs="z", none=[0, 0, 0, 0]), 2, i=NUMBERS)


def test_pads_of_different_values():
    nodes = [
        node("Pad", "i widths seven", "a"),
        node("Transpose", "a", "b", perm=[2, 1, 0]),
        node("Pad", "b widths", "y"),
    ]
    check_left_alone(RULE, tiny(nodes), "make_a: pads of different values")


def test_pads_of_one_value():
    nodes = [node("Pad", "i widths seven", "a"), node("Transpose", "a", "b", perm=[2, 1, 0])]
    nodes.append(node("Pad", "b widths seven", "y"))
    check_fires(RULE, tiny(nodes), 1, i=NUMBERS)


CROP = {"cut": [1, 2, 2, 3, 2], "windows": [4, 6], "widths": [0, 0, 0, 0, -1, 0]}


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_pads_with_neighbours_are_left_alone(mode):
    """What comes after them is moved."""
    graph = graph_of(windows(mode=mode), GRID, "y", **CONSTANTS)
    graph.opset = 19  # where "wrap" is known
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert ops(graph) == ["Pad", "Reshape", "Gather"]


def test_cropping_pads_are_left_alone():
    graph = tiny(windows(), **CROP)
    check_fires(RULE, graph, 1, i=NUMBERS)
    assert ops(graph) == ["Pad", "Reshape", "Gather"]


def test_pads_with_axes_are_left_alone():
    nodes = [node("Pad", "i widths seven first", "padded"), *windows()[1:]]
    graph = tiny(nodes, {"i": [2, 3, 6]}, widths=[0, 1], cut=[3, 3, 2, 3, 1], windows=[9, 6])
    check_fires(RULE, graph, 1, i=np.arange(36).reshape(2, 3, 6))
    assert ops(graph) == ["Pad", "Reshape", "Gather"]


def test_pads_of_a_computed_value_are_left_alone():
    graph = tiny([node("Neg", "iv", "value"), *windows("i widths value")], GRID | {"iv": []})
    check_fires(RULE, graph, 1, i=NUMBERS, iv=np.array(4))
    assert ops(graph) == ["Neg", "Pad", "Reshape", "Gather"]


def sliced(bounds, **constants):
    """A Slice between nodes that are too few on either side."""
    nodes = [
        node("Squeeze", "i first", "a"),
        node("Slice", f"a {bounds}", "b"),
        node("Transpose", "b", "y", perm=[1, 0]),
    ]
    return tiny(nodes, GRID | {"if": [1]} if "if" in bounds.split() else GRID, **constants)


def test_slices_backwards_are_left_alone():
    check_left_alone(RULE, sliced("last before axis back", last=[4], before=[-9], axis=[0], back=[-1]))


def test_slices_of_computed_bounds_are_left_alone():
    check_left_alone(RULE, sliced("if end first"))


def test_gathers_by_a_computed_index_are_left_alone():
    nodes = [
        node("Squeeze", "i first", "a"),
        node("Gather", "a ij", "b", axis=0),
        node("Transpose", "b", "y", perm=[1, 0]),
    ]
    check_left_alone(RULE, tiny(nodes, GRID | {"ij": [3]}))


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 2])
def test_large_tensors_are_left_alone(size):
    nodes = [node("Reshape", "i pairs", "a"), node("Transpose", "a", "b", perm=[1, 0]), node("Reshape", "b all", "y")]
    graph = graph_of(nodes, {"i": [size]}, "y", pairs=[-1, 2], all=[size])
    if size <= LIMIT:
        check_fires(RULE, graph, 1, i=np.arange(size))
    else:
        check_left_alone(RULE, graph)


def test_what_is_cut_from_large_tensors_is_left_alone():
    nodes = [node("Slice", "i first end first", "a"), node("Unsqueeze", "a first", "b")]
    nodes.append(node("Transpose", "b", "y", perm=[1, 0]))
    assert apply_once(RULE, tiny(nodes, {"i": [LIMIT]}))[0] == 1
    check_left_alone(RULE, tiny(nodes, {"i": [LIMIT + 1]}))


def test_what_becomes_large_is_left_alone():
    nodes = [node("Squeeze", "i first", "a"), node("Transpose", "a", "b", perm=[1, 0]), node("Pad", "b wide", "y")]
    assert apply_once(RULE, tiny(nodes, wide=[0, 0, 0, LIMIT // 6 - 5]))[0] == 1
    check_left_alone(RULE, tiny(nodes, wide=[0, 0, 0, LIMIT // 6 - 4]))


def test_unknown_shapes_are_left_alone():
    nodes = [
        node("Transpose", "i", "a", perm=[2, 1, 0]),
        node("Pad", "a widths", "b"),
        node("Unsqueeze", "b first", "y"),
    ]
    check_left_alone(RULE, tiny(nodes, {"i": ["B", 5, 6]}))


def test_booleans_may_be_gathered():
    nodes = [node("Cast", "i", "k", to=onnx.TensorProto.BOOL), *windows("k widths")]
    graph = tiny(nodes)
    check_fires(RULE, graph, 1, i=NUMBERS % 2)
    assert ops(graph)[-1] == "Gather"
