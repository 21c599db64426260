"""MLPs a few hundred rows at a time: a Scan with the same nodes inside, and the same numbers to the last bit."""

from __future__ import annotations

from itertools import product
from math import erf, prod, sqrt

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graphs import apply_once, check_fires, check_left_alone, feeds_of, graph_of, node, ops, run
from onnx import numpy_helper

from structsam_export import rewrite as rewriting
from structsam_export.macs import graph_macs, macs_of
from structsam_export.rewrite import mlp_blocks, rewrite, weights
from structsam_export.rewrite.mlp_blocks import portion_of

RULE = "mlp_blocks"
DEPTH, HIDDEN = 6, 10
SHAPE = [1, 4, 5, DEPTH]  # 20 rows
RANDOM = np.random.default_rng(2)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "scale": 1 + normal(DEPTH) / 4,
    "shift": normal(DEPTH),
    "w1": normal(DEPTH, HIDDEN),
    "b1": normal(HIDDEN),
    "w2": normal(HIDDEN, DEPTH),
    "b2": normal(DEPTH),
    "root": np.float32(2**0.5),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "rows": [20, DEPTH],
    "grid": SHAPE,
    "plane": normal(*SHAPE[:-1], HIDDEN),
    "heap": normal(1, 4, DEPTH, HIDDEN),
    "gammas": normal(5, DEPTH),
    "betas": normal(5, DEPTH),
}
ERF = [
    node("Div", "h root", "s"),
    node("Erf", "s", "e"),
    node("Add", "e one", "p"),
    node("Mul", "h p", "w"),
    node("Mul", "w half", "a"),
]
GELU = [node("Gelu", "h", "a")]


def mlp(op="MatMul", activation=ERF, norm=True, residual=True):
    """y = x + W2 gelu(W1 norm(x)); without a norm x is made by a Neg, as an MLP's input is never a graph's."""
    nodes = [node("LayerNormalization", "x scale shift", "n", axis=-1) if norm else node("Neg", "x", "n")]
    out = "o" if residual else "y"
    if op == "Gemm":
        nodes += [node("Gemm", "n w1 b1", "h"), *activation, node("Gemm", "a w2 b2", out)]
    else:
        nodes += [node("MatMul", "n w1", "m"), node("Add", "m b1", "h"), *activation]
        nodes += [node("MatMul", "a w2", "r"), node("Add", "b2 r", out)]
    return nodes + ([node("Add", "x o" if norm else "n o", "y")] if residual else [])


def after(nodes):
    """The same nodes once more, reading y."""
    made, copies = {name for n in nodes for name in n.output}, []
    for n in nodes:
        inputs = " ".join("y" if name == "x" else f"{name}.2" if name in made else name for name in n.input)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
        copies.append(node(n.op_type, inputs, f"{n.output[0]}.2", **attributes))
    return copies


def tiny(nodes, outputs="y", shape=None, opset=20, **more):
    return graph_of(nodes, {"x": shape or SHAPE}, outputs, opset, **CONSTANTS, **more)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    """20 rows in portions of 4: from 2 to 8 rows, and 4 is a divisor."""
    monkeypatch.setattr(mlp_blocks, "ROWS", 4)


def scan_of(graph):
    return next(n for n in graph.nodes if n.op == "Scan")


def body_of(graph):
    return scan_of(graph).attrs["body"]


FORMS = list(product(("MatMul", "Gemm"), (True, False), (True, False)))


@pytest.mark.parametrize(("op", "norm", "residual"), FORMS)
@pytest.mark.parametrize("activation", [ERF, GELU], ids=["Erf", "Gelu"])
def test_every_form_of_mlp(op, norm, residual, activation):
    shape = [20, DEPTH] if op == "Gemm" else SHAPE
    graph = tiny(mlp(op, activation, norm, residual), shape=shape)
    x = feeds_of(graph)["x"].astype(np.float64)
    check_fires(RULE, graph, 1, atol=0)
    outside = [op for op in ops(graph) if op not in ("Reshape", "Scan")]
    # A norm goes along, and the residual sum with it; what made the rows stays.
    assert outside == ([] if norm else ["Neg", *["Add"] * residual])
    assert np.allclose(run(graph, feeds_of(graph))["y"], by_hand(x, norm, residual), atol=1e-4)


def by_hand(x, norm, residual):
    """The MLP in plain double precision."""
    c = CONSTANTS
    centred = x - x.mean(-1, keepdims=True)
    n = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * c["scale"] + c["shift"] if norm else -x
    h = n @ c["w1"] + c["b1"]
    a = h * 0.5 * (1 + np.vectorize(erf)(h / sqrt(2)))
    return a @ c["w2"] + c["b2"] + ((x if norm else n) if residual else 0)


def test_how_it_is_cut():
    graph = tiny(mlp())
    apply_once(RULE, graph)
    before, scan, after = graph.nodes
    assert before.op == after.op == "Reshape"
    assert scan.inputs[0].shape == scan.outputs[0].shape == [5, 4, DEPTH]
    assert scan.attrs["num_scan_inputs"] == 1 and len(scan.inputs) == len(scan.outputs) == 1
    body = scan.attrs["body"]
    assert [t.shape for t in (*body.inputs, *body.outputs)] == [[4, DEPTH]] * 2
    assert {t.shape[0] for n in body.nodes for t in n.outputs} == {4}
    assert graph.outputs[0].shape == SHAPE and graph.outputs[0].name == "y"


def test_rows_in_portions_are_all_rows_in_order():
    """What a row becomes depends on that row alone, wherever it stands."""
    graph = tiny(mlp())
    apply_once(RULE, graph)
    x = feeds_of(graph)["x"]
    order = np.random.default_rng(0).permutation(20)
    y = run(graph, {"x": x})["y"].reshape(20, DEPTH)
    shuffled = run(graph, {"x": x.reshape(20, DEPTH)[order].reshape(SHAPE)})["y"].reshape(20, DEPTH)
    assert np.array_equal(shuffled, y[order])
    assert not np.allclose(y[:4], y[4:8])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (4096, 512),
        (1024, 512),
        (4900, 490),
        (2 * 257, 257 * 2),  # one portion is no portion
        (3 * 257, 257),
        (4 * 257, 2 * 257),
        (3 * 1024, 512),
        (1030, 515),
        (256, 256),
        (100, 100),
        (1, 1),
        (4099, 4099),  # a prime
        (255 * 255, 425),
        (11 * 257, 257),
        (5 * 1021, 1021),
        (5 * 1031, 5 * 1031),
    ],
)
def test_portions_divide_the_rows(monkeypatch, rows, expected):
    monkeypatch.undo()
    assert mlp_blocks.ROWS == 512
    assert portion_of(rows) == expected


def test_two_mlps_with_the_same_constants():
    """Each body has its own small constants, under names that nothing else has."""
    graph = tiny([*mlp(), *after(mlp())], "y.2")
    check_fires(RULE, graph, 2, atol=0)
    assert ops(graph).count("Scan") == 2
    check_names(gs.export_onnx(graph).graph)


def check_names(graph):
    """No name in a loop's body hides one of the graph around it, and no two bodies share one."""
    outside = names_made(graph)
    bodies = [names_made(a.g) for n in graph.node for a in n.attribute if a.HasField("g")]
    assert bodies
    together = sorted([*outside, *(name for names in bodies for name in names)])
    assert together == sorted(set(together))
    nodes = [n.name for n in graph.node]
    nodes += [n.name for m in graph.node for a in m.attribute if a.HasField("g") for n in a.g.node]
    assert sorted(nodes) == sorted(set(nodes))


def names_made(graph):
    inputs = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    return inputs + [name for n in graph.node for name in n.output if name]


def test_two_mlps_of_the_same_rows():
    """Tensors in bodies are named after the rows, and here both read the same."""
    nodes = [node("Neg", "x", "n"), *mlp("MatMul", GELU, norm=False, residual=False)[1:-1]]
    nodes += [node("Add", "r b2", "first"), node("MatMul", "n w1", "m2"), node("Gelu", "m2", "a2")]
    nodes += [node("MatMul", "a2 w2", "second"), node("Add", "first second", "y")]
    graph = tiny(nodes)
    check_fires(RULE, graph, 2, atol=0)
    check_names(gs.export_onnx(graph).graph)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_macs_are_as_many_as_before(op):
    graph = tiny(mlp(op), shape=[20, DEPTH])
    before = macs_of(gs.export_onnx(graph).graph, {})
    assert before == 20 * (2 * DEPTH * HIDDEN + 5 * DEPTH)
    assert apply_once(RULE, graph)[0] == 1
    assert macs_of(gs.export_onnx(graph).graph, {}) == before


FEW = "rows are few, or have no fitting divisor"


@pytest.mark.parametrize("rows", [4, 1, 11, 22])
def test_rows_without_a_fitting_divisor_are_left_alone(rows):
    graph = tiny(mlp(), shape=[rows, DEPTH])
    if rows == 22:  # two rows at a time are half of four, and fit
        check_fires(RULE, graph, 1, atol=0)
    else:
        check_left_alone(RULE, graph, f"{rows} {FEW}")


def test_unknown_shapes_are_left_alone():
    check_left_alone(RULE, tiny(mlp(), shape=["B", *SHAPE[1:]]), "shapes are not all known")


INSIDE = ["n", "m", "h", "e", "p", "w", "a", "r"]


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("how", ["read elsewhere", "an output"])
def test_what_others_need_stays_outside(name, how):
    """Hidden rows are never taken from others; where the norm's are needed, it stays outside alone."""
    nodes, outputs = ([*mlp(), node("Neg", name, "z")], "y z") if how == "read elsewhere" else (mlp(), f"y {name}")
    graph = tiny(nodes, outputs)
    if name == "n":
        check_fires(RULE, graph, 1, atol=0)
        assert [n.op for n in graph.nodes if n.op not in ("Reshape", "Neg")] == ["LayerNormalization", "Scan", "Add"]
    elif name == "r":  # a sum that is not private is left outside: it is the last product that ends the portions
        check_fires(RULE, graph, 1, atol=0)
        assert ops(graph).count("Add") == 2
    else:
        check_left_alone(RULE, graph)


def test_a_residual_sum_that_others_need_too():
    """The sum before the bias is the MLP's result, and that is there for all."""
    check_fires(RULE, tiny([*mlp(), node("Neg", "y", "z"), node("Neg", "o", "q")], "y z q o"), 1, atol=0)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Neg", "x", "n"), node("Gelu", "n", "a"), node("MatMul", "a w1", "y")],
        [*mlp(norm=False)[:3], *GELU, node("Neg", "a", "y")],
        [*mlp(norm=False)[:3], node("Gelu", "h", "y")],
        [node("Neg", "x", "n"), node("Transpose", "n", "t", perm=[0, 1, 3, 2]), node("MatMul", "n t", "h"), *GELU]
        + [node("MatMul", "a n", "y")],
        # A gate: hidden rows times others.
        [*mlp(norm=False)[:3], *GELU, node("Abs", "h", "g"), node("Mul", "a g", "ag"), node("MatMul", "ag w2", "y")],
        # Rows that differ in what is added to them, in their weights, or among which a norm is taken.
        [*mlp(norm=False)[:2], node("Add", "m plane", "h"), *GELU, node("MatMul", "a w2", "y")],
        [node("Neg", "x", "n"), node("MatMul", "n heap", "h"), *GELU, node("MatMul", "a w2", "y")],
    ],
    ids=["no first product", "no second", "an activation alone", "scores", "a gate", "a plane", "weights of a row"],
)
def test_other_chains_are_left_alone(nodes):
    check_left_alone(RULE, tiny(nodes))


def test_products_of_columns_are_left_alone():
    """W2 on the left mixes rows, and so does a Gemm of its transposed rows."""
    left = [*mlp(norm=False)[:3], *GELU, node("MatMul", "mix a", "y")]
    check_left_alone(RULE, tiny(left, mix=normal(5, 5)))
    turned = [node("Neg", "x", "n"), node("Gemm", "n v b1", "h", transA=1), *GELU, node("MatMul", "a w2", "y")]
    check_left_alone(RULE, tiny(turned, shape=[20, DEPTH], v=normal(20, HIDDEN)))


def test_a_norm_over_more_than_a_row_stays_outside():
    nodes = [node("LayerNormalization", "x gammas betas", "n", axis=-2), *mlp()[1:]]
    graph = tiny(nodes)
    check_fires(RULE, graph, 1, atol=0)
    assert [op for op in ops(graph) if op != "Reshape"] == ["LayerNormalization", "Scan", "Add"]


def test_a_residual_that_is_a_graph_input_is_no_bias():
    """`z` has no node that makes it, as a bias has none, but its rows differ."""
    nodes = [*mlp(norm=False, residual=False)[:-1], node("Add", "r z", "y")]
    graph = graph_of(nodes, {"x": SHAPE, "z": SHAPE}, "y", 20, **CONSTANTS)
    check_left_alone(RULE, graph)


# Weights in a file of their own.


@pytest.fixture
def source(tmp_path):
    """Two MLPs with the same two matrices, in source.onnx.data, and a product after them that shares one of them."""
    graph = tiny([*mlp("MatMul", GELU), *after(mlp("MatMul", GELU)), node("MatMul", "y.2 w1", "z")], "z")
    model = gs.export_onnx(graph)
    path = tmp_path / "source.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="source.onnx.data", size_threshold=0)
    return path


@pytest.mark.parametrize(("limit", "beside"), [(1 << 30, False), (0, True)], ids=["inline", "beside"])
def test_weights_in_a_file_are_held_once(source, tmp_path, monkeypatch, limit, beside):
    """Loops read large weights from the graph around them, which holds each once, wherever its values are."""
    monkeypatch.setattr(weights, "LARGE", 100)  # w1 and w2
    monkeypatch.setattr(rewriting, "INLINE_LIMIT", limit)
    target = tmp_path / "out.onnx"
    assert rewrite(source, target, keep_outputs=("z",), form="ort-cpu").counts[RULE] == 2
    made = onnx.load(str(target), load_external_data=False)
    onnx.checker.check_model(str(target), full_check=True)
    assert [i.name for i in made.graph.input] == ["x"]
    held = {t.name: t.data_location == onnx.TensorProto.EXTERNAL for t in made.graph.initializer if len(t.dims) == 2}
    assert held == {"w1": beside, "w2": beside}
    bodies = [a.g for n in made.graph.node for a in n.attribute if a.HasField("g")]
    assert len(bodies) == 2
    for body in bodies:
        assert {"w1", "w2"} <= {name for n in body.node for name in n.input}
        assert max(prod(t.dims) for t in body.initializer) <= HIDDEN, "a matrix was copied"
    check_names(made.graph)
    assert graph_macs(target) == graph_macs(source)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    if beside:
        (tmp_path / "source.onnx.data").rename(tmp_path / "gone")
    assert (tmp_path / "out.onnx.data").exists() is beside
    after = run(onnx.load(str(target)), {"x": x})["z"]
    if beside:
        (tmp_path / "gone").rename(tmp_path / "source.onnx.data")
    assert np.array_equal(after, run(onnx.load(str(source)), {"x": x})["z"])


def test_weights_that_only_a_loop_reads_are_kept(source, tmp_path, monkeypatch):
    """`w2` has no reader but in bodies."""
    monkeypatch.setattr(weights, "LARGE", 100)
    rewrite(source, tmp_path / "out.onnx", keep_outputs=("z",), form="ort-cpu")
    made = onnx.load(str(tmp_path / "out.onnx"))
    assert "w2" not in {name for n in made.graph.node for name in n.input}
    assert "w2" in weights.names_read(made.graph)
    kept = next(t for t in made.graph.initializer if t.name == "w2")
    assert np.array_equal(numpy_helper.to_array(kept), CONSTANTS["w2"])


def test_weights_that_nobody_reads_are_dropped(source, monkeypatch):
    monkeypatch.setattr(weights, "LARGE", 100)
    model = onnx.load(str(source), load_external_data=False)
    detached = weights.detach(model, source.parent)
    assert sorted(t.name for t in detached) == ["w1", "w2"]
    del model.graph.node[3:]  # norm, first product and its bias are left
    weights.attach(model, detached)
    assert [t.name for t in model.graph.initializer if len(t.dims) == 2] == ["w1"]
