"""What both attention rules share: every layout becomes one operator, near matches are left alone with a reason."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from attention_graphs import CASES, NEAR, OTHERS, Case, attend, check_is_attention, swapped
from graphs import apply_once, check_fires, check_left_alone, feeds_of, graph_of, node, ops

from structsam_export.macs import macs_of

RULES = {"attention_operator": (23, "Attention"), "attention_ort": (18, "MultiHeadAttention")}
each_rule = pytest.mark.parametrize("rule", RULES)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_rule
@each_case
def test_every_layout_becomes_one_operator(rule, case):
    opset, operator = RULES[rule]
    graph = case.graph(opset)
    check_fires(rule, graph, 1)
    assert ops(graph).count(operator) == 1
    assert not {"Softmax", "MatMul"} & set(ops(graph))
    check_is_attention(graph, case)


@each_case
def test_the_cases_are_attention_to_begin_with(case):
    check_is_attention(case.graph(18), case)


@each_rule
def test_large_scores_do_not_overflow(rule):
    graph = CASES["batch and heads in one"].graph(RULES[rule][0])
    feeds = {t.name: np.full(t.shape, 30.0, np.float32) for t in graph.inputs}
    feeds["q"][:, :, 0] = np.linspace(-400, 400, 5)
    feeds["k"][:, 0] = np.linspace(-3, 3, 7)
    feeds["v"] = np.random.default_rng(0).standard_normal(feeds["v"].shape).astype(np.float32)
    check_fires(rule, graph, 1, **feeds)


@each_rule
def test_every_attention_of_a_graph(rule):
    nodes = [
        *attend(out="first"),
        node("Transpose", "first", "keys", perm=[0, 2, 1]),
        node("MatMul", "q keys", "scores2"),
        node("Softmax", "scores2", "weights2", axis=-1),
        node("MatMul", "weights2 first", "y"),
    ]
    shapes = {"q": [6, 5, 4], "k": [6, 4, 7], "v": [6, 7, 4]}
    graph = graph_of(nodes, shapes, "y", RULES[rule][0])
    check_fires(rule, graph, 2)


@each_rule
def test_keys_that_others_read_keep_their_value(rule):
    case = CASES["keys with positions beside them"]
    more = Case([*case.nodes, node("Neg", "all", "z")], case.inputs, case.operands, case.after, case.constants)
    check_fires(rule, more.graph(RULES[rule][0], "y z kt"), 1)


@each_rule
@each_case
def test_as_many_macs_as_before(rule, case):
    """Products are products, whatever holds them; ONNX's operator adds those with zeros beside narrow values."""
    graph = case.graph(RULES[rule][0])
    before = macs_of(gs.export_onnx(graph).graph, {})
    feeds = feeds_of(graph)
    q, k, v = case.operands(**feeds)
    assert before == q.size * k.shape[-2] + np.prod(q.shape[:-1]) * v.size / np.prod(v.shape[:-2])
    apply_once(rule, graph)
    padding = max(0, k.shape[-1] - v.shape[-1]) if rule == "attention_operator" else 0
    assert macs_of(gs.export_onnx(graph).graph, {}) == before + np.prod(q.shape[:-1]) * k.shape[-2] * padding


@each_rule
@pytest.mark.parametrize(("nodes", "inputs", "outputs", "reason"), NEAR.values(), ids=NEAR)
def test_near_matches_are_left_alone(rule, nodes, inputs, outputs, reason):
    check_left_alone(rule, graph_of(nodes, inputs, outputs, RULES[rule][0]), reason)


@each_rule
@pytest.mark.parametrize(("nodes", "inputs", "outputs"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_attention_is_left_alone(rule, nodes, inputs, outputs):
    check_left_alone(rule, graph_of(nodes, inputs, outputs, RULES[rule][0]))


@each_rule
def test_weights_on_the_other_side_are_left_alone(rule):
    """v . softmax(q k') is no attention."""
    nodes = [*attend()[:2], node("MatMul", "v weights", "y")]
    fits = {"q": [6, 7, 4], "k": [6, 4, 7], "v": [6, 5, 7]}
    check_left_alone(rule, graph_of(nodes, fits, "y", RULES[rule][0]), "shapes are not all known")


@each_rule
def test_constant_keys_are_transposed_once_and_for_all(rule):
    graph = CASES["constant keys"].graph(RULES[rule][0])
    apply_once(rule, graph)
    assert "Transpose" not in ops(graph)
    kept = [t for t in graph.tensors().values() if isinstance(t, gs.Constant) and t.values.dtype == np.float32]
    keys = next(t for t in kept if t.values.size == 6 * 4 * 7)
    assert keys.values.flags.c_contiguous and keys.values.reshape(6, 7, 4).shape == (6, 7, 4)
    assert np.array_equal(keys.values.reshape(6, 7, 4), swapped(CASES["constant keys"].constants["keys"]))


@each_rule
def test_transposes_that_cancel_go_away(rule):
    """Keys were transposed for the product, and no operator wants them so."""
    graph = CASES["keys transposed"].graph(RULES[rule][0])
    apply_once(rule, graph)
    assert "Transpose" not in ops(graph)


@each_rule
def test_positions_are_spread_over_heads_after_they_are_transposed(rule):
    """The one small constant is transposed, not its copies, and the keys are taken from before their Transpose."""
    graph = CASES["keys with positions beside them"].graph(RULES[rule][0])
    apply_once(rule, graph)
    assert "Transpose" not in ops(graph)
    spread = next(n for n in graph.nodes if n.op == "Expand")
    assert spread.inputs[0].values.shape == (1, 7, 3)
    assert spread.outputs[0].shape == [6, 7, 3]
    assert next(n for n in graph.nodes if n.op == "Concat").inputs[0].name == "k"
