"""segment_anything's LayerNorm2d becomes one LayerNormalization between two transpositions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from graphs import apply_once, check_fires, check_left_alone, graph_of, node, ops, run, traced

RULE = "layer_norm_2d"
X = {"x": [2, 4, 3, 4]}  # as many columns as channels
RANDOM = np.random.default_rng(1)
WEIGHT, BIAS = (RANDOM.standard_normal((4, 1, 1)).astype(np.float32) for _ in range(2))
CONSTANTS = {
    "axes": [1],
    "two": np.float32(2),
    "epsilon": np.float32(1e-2),
    "weight": WEIGHT,
    "bias": BIAS,
}


def norm(of="x", affine=("d weight", "m bias"), divided="c r", keep=1):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * weight + bias."""
    return [
        node("ReduceMean", f"{of} axes", "u", keepdims=keep),
        node("Sub", "x u", "c"),
        node("Pow", "c two", "q"),
        node("ReduceMean", "q axes", "v", keepdims=keep),
        node("Add", "v epsilon", "ve"),
        node("Sqrt", "ve", "r"),
        node("Div", divided, "d"),
        node("Mul", affine[0], "m"),
        node("Add", affine[1], "y"),
    ]


def tiny(nodes=None, inputs=X, outputs="y", **constants):
    return graph_of(norm() if nodes is None else nodes, inputs, outputs, **CONSTANTS | constants)


def test_nine_nodes_become_three():
    graph = tiny()
    check_fires(RULE, graph, 1, atol=1e-5)
    assert ops(graph) == ["Transpose", "LayerNormalization", "Transpose"]
    assert graph.nodes[1].attrs["epsilon"] == pytest.approx(1e-2)
    assert graph.nodes[-1].outputs[0].name == "y"


def test_results_are_numpys():
    graph = tiny()
    assert apply_once(RULE, graph) == (1, [])
    x = 3 + 5 * RANDOM.standard_normal(X["x"]).astype(np.float32)
    x[:, :, 0, 0] = 1e-3 * x[:, :1, 0, 0]  # no deviation: epsilon alone keeps it finite
    centred = x - x.mean(1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-2) * WEIGHT + BIAS
    assert np.allclose(run(graph, {"x": x})["y"], want, atol=1e-5)


def test_results_are_those_of_segment_anything(tmp_path):
    from segment_anything.modeling.common import LayerNorm2d

    module = LayerNorm2d(4, eps=1e-3).eval().requires_grad_(False)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    x = torch.randn(X["x"], generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(module, (x,), dynamo=True, opset_version=18, input_names=["x"], verbose=False)
    program.save(str(tmp_path / "norm.onnx"))
    graph = gs.import_onnx(onnx.load(tmp_path / "norm.onnx"))
    assert apply_once(RULE, graph) == (1, [])
    assert ops(graph) == ["Transpose", "LayerNormalization", "Transpose"]
    (got,) = run(graph, {"x": x.numpy()}).values()
    assert np.allclose(got, module(x).numpy(), atol=1e-5)


def test_both_norms_of_an_encoders_neck():
    graph = gs.import_onnx(traced("none", "dense", (), 1))
    before = ops(graph)
    assert apply_once(RULE, graph) == (2, [])
    assert ops(graph).count("LayerNormalization") == before.count("LayerNormalization") + 2
    assert "Sqrt" not in ops(graph)


@pytest.mark.parametrize("affine", [("weight d", "m bias"), ("d weight", "bias m")])
def test_the_order_of_products_and_sums_does_not_matter(affine):
    check_fires(RULE, tiny(norm(affine=affine)), 1, atol=1e-5)


def test_weights_with_a_batch_axis():
    check_fires(RULE, tiny(weight=WEIGHT[None], bias=BIAS[None]), 1, atol=1e-5)


@pytest.mark.parametrize("kept", ["u", "c", "v"])
def test_what_others_read_stays_for_them(kept):
    check_fires(RULE, tiny([*norm(), node("Neg", kept, "z")], outputs="y z"), 1, atol=1e-5)


@pytest.mark.parametrize("kept", ["r", "d", "m"])
def test_intermediates_that_are_outputs_are_left_alone(kept):
    check_left_alone(RULE, tiny(outputs=f"y {kept}"))


NUMBERS = {
    "rows": {"axes": [2]},
    "columns": {"axes": [3]},
    "two axes": {"axes": [1, 2]},
    "power 3": {"two": np.float32(3)},
    "power 2.5": {"two": np.float32(2.5)},
    "an epsilon for each row": {"epsilon": np.full((3, 1), 1e-2, np.float32)},
}


@pytest.mark.parametrize("changed", NUMBERS.values(), ids=NUMBERS)
def test_other_axes_and_powers_are_left_alone(changed):
    check_left_alone(RULE, tiny(**changed))


def everything():
    """Means over all axes, which need not be named."""
    nodes = norm()
    del nodes[0].input[1], nodes[3].input[1]
    return nodes


OTHERS = {
    "different means": norm(of="z"),
    "something else is divided": norm(divided="x r"),
    "the deviation is divided": norm(divided="r c"),
    "over everything": everything(),
    "variances added first": [*norm()[:4], node("Add", "epsilon v", "ve"), *norm()[5:]],
}


@pytest.mark.parametrize("nodes", OTHERS.values(), ids=OTHERS)
def test_other_forms_are_left_alone(nodes):
    check_left_alone(RULE, tiny(nodes, X | {"z": X["x"]}))


@pytest.mark.parametrize("mean", [0, 3])
def test_means_of_different_axes_are_left_alone(mean):
    nodes = norm()
    nodes[mean].input[1] = "rows"
    check_left_alone(RULE, tiny(nodes, rows=[2]))


def test_means_without_their_axis_are_left_alone():
    """(B, H, W) spreads over (B, C, H, W) where B = C, and means something else."""
    check_left_alone(RULE, tiny(norm(keep=0), {"x": [4, 4, 3, 4]}))


def test_computed_weights_are_left_alone():
    inputs = X | {"scale": [4, 1, 1]}
    check_left_alone(RULE, tiny(norm(affine=("d scale", "m bias")), inputs))


REASON = "not (B, C, H, W) of known shape with one weight a channel"
WEIGHTS = {
    "one weight for all": {"weight": np.float32(3)},
    "one bias for all": {"bias": np.full((1, 1, 1), 3, np.float32)},
    "weights of columns": {"weight": WEIGHT.reshape(4)},
    "biases of columns": {"bias": BIAS.reshape(1, 1, 4)},
    "weights of everything": {"weight": np.ones((4, 3, 4), np.float32)},
    "more axes": {"weight": WEIGHT[None, None]},
}


@pytest.mark.parametrize("changed", WEIGHTS.values(), ids=WEIGHTS)
def test_other_weights_are_left_alone(changed):
    check_left_alone(RULE, tiny(**changed), REASON)


@pytest.mark.parametrize("shape", [["B", 4, 3, 4], [2, 4, "H", "W"], [4, 4, 3]])
def test_unknown_shapes_and_other_ranks_are_left_alone(shape):
    check_left_alone(RULE, tiny(inputs={"x": shape}), REASON)
