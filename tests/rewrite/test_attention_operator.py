"""Attention as ONNX's own operator: four axes, and values as wide as keys."""

from __future__ import annotations

import numpy as np
import pytest
from attention_graphs import CASES, attend
from graphs import apply_once, check_fires, check_left_alone, graph_of, ops

RULE = "attention_operator"
OPSET = 23


def made(name):
    """(graph of a case after the rule, its Attention node)."""
    graph = CASES[name].graph(OPSET)
    assert apply_once(RULE, graph)[0] == 1
    return graph, next(n for n in graph.nodes if n.op == "Attention")


@pytest.mark.parametrize("name", CASES)
def test_what_the_operator_is_given(name):
    """Four axes everywhere, nothing scaled, and values not narrower than keys, or TensorRT has no kernel."""
    _, found = made(name)
    q, k, v = (t.shape for t in found.inputs)
    assert len(q) == len(k) == len(v) == 4
    assert q[:2] == k[:2] == v[:2] and k[2] == v[2] and q[3] == k[3] <= v[3]
    assert found.outputs[0].shape == [*q[:3], v[3]]
    assert dict(found.attrs) == {"scale": 1.0}
    assert not found.domain


def test_batch_and_heads_need_nothing_else():
    assert ops(made("batch and heads")[0]) == ["Transpose", "Attention"]


def test_batch_and_heads_in_one_are_heads_of_one_image():
    graph, found = made("batch and heads in one")
    assert [t.shape for t in found.inputs] == [[1, 6, 5, 4], [1, 6, 7, 4], [1, 6, 7, 4]]
    assert ops(graph)[-2:] == ["Attention", "Reshape"]
    assert graph.outputs[0].shape == [6, 5, 4]


def test_narrow_values_are_padded_and_cut_off_again():
    graph, found = made("narrow values")
    pad = found.inputs[2].inputs[0]
    assert pad.op == "Pad"
    assert list(pad.inputs[1].values) == [0] * 7 + [2]
    assert pad.inputs[2].values == 0 and pad.inputs[2].values.dtype == np.float32
    assert ops(graph)[-3:] == ["Attention", "Slice", "Reshape"]
    assert graph.nodes[-1].inputs[0].shape == [1, 6, 5, 2]


def test_wide_values_are_not_padded():
    graph, _ = made("wide values")
    assert not {"Pad", "Slice"} & set(ops(graph))


@pytest.mark.parametrize("shapes", [[[5, 4], [4, 7], [7, 4]], [[2, 1, 3, 5, 4], [2, 1, 3, 4, 7], [2, 1, 3, 7, 4]]])
def test_other_numbers_of_axes_are_left_alone(shapes):
    graph = graph_of(attend(), dict(zip("qkv", shapes)), "y", OPSET)
    check_left_alone(RULE, graph, f"{len(shapes[0])} axes, not 3 or 4")


def test_one_head_of_one_image():
    check_fires(RULE, graph_of(attend(), {"q": [1, 1, 1, 4], "k": [1, 1, 4, 1], "v": [1, 1, 1, 4]}, "y", OPSET), 1)
