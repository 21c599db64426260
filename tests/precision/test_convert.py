"""Converted files: types, casts, constants, range, weights beside the file, and graphs that are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import node
from onnx import TensorProto, helper, numpy_helper
from precision_graphs import casts, computes_in, converted, saved, session, types

from structsam_export import rewrite as rewriting
from structsam_export.errors import PrecisionError
from structsam_export.precision import casts as casting
from structsam_export.precision import convert, fake_quantised, low_types

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 8)).astype(np.float32)


def both(path):
    """Sessions of a converted FP16 file as it is, where ONNX Runtime may leave roundings out, and fake-quantised."""
    source = path.with_name("fp16.onnx")
    fake_quantised(source, path.with_name("fake.onnx"))
    return session(source), session(path.with_name("fake.onnx"))


def test_product_is_that_of_half_arithmetic(tmp_path):
    """Inputs, weights and the result are rounded; the sum is not."""
    path = saved(tmp_path, [node("MatMul", "x w", "y")], {"x": [4, 8]}, "y", w=W)
    x = RNG.standard_normal((4, 8)).astype(np.float32)
    _, result = converted(path)
    exact = x.astype(np.float16).astype(np.float64) @ W.astype(np.float16).astype(np.float64)
    direct, made = (s.run(None, {"x": x})[0] for s in both(path))
    assert direct.dtype == made.dtype == np.float32
    np.testing.assert_array_equal(made, exact.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(direct, exact, atol=5e-3)
    assert (result.low, result.fp32, result.casts) == (1, {}, 2)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_inputs_and_outputs_stay_float32_and_casts_are_shared(tmp_path, kind):
    nodes = [
        node("MatMul", "x w", "a"),
        node("MatMul", "x w", "b"),
        node("LayerNormalization", "a one", "n"),
        node("Mul", "n b", "c"),
        node("Mul", "n c", "d"),
        node("Relu", "d", "e"),
    ]
    path = saved(tmp_path, nodes, {"x": [4, 8]}, "d e", w=W, one=np.ones(8, np.float32))
    model, result = converted(path, kind)
    onnx.checker.check_model(model, full_check=True)
    kinds = types(model)
    assert [kinds[v.name] for v in (*model.graph.input, *model.graph.output)] == ["fp32"] * 3
    # x down once for two products, a up, n down once for two; d leaves the graph and is read inside.
    assert sorted(casts(model)) == sorted(
        [("x", f"x.{kind}"), ("a", "a.fp32"), ("n", f"n.{kind}"), (f"d.{kind}", "d"), (f"e.{kind}", "e")]
    )
    assert result.casts == 5
    assert {t.name: t.data_type for t in model.graph.initializer}["w"] != TensorProto.FLOAT
    recorded = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert all(types(model)[name] == {1: "fp32", 10: "fp16", 16: "bf16"}[elem] for name, elem in recorded.items())


def test_constants_in_both_types_and_names_that_are_taken(tmp_path):
    nodes = [
        node("MatMul", "x w", "x.fp16"),
        node("LayerNormalization", "x.fp16 scale", "n"),
        node("Mul", "n scale", "y"),
    ]
    path = saved(tmp_path, nodes, {"x": [4, 8]}, "y", w=W, scale=np.full(8, 0.1, np.float32))
    model, _ = converted(path)
    onnx.checker.check_model(model, full_check=True)
    made = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kinds = {name: value.dtype.name for name, value in made.items()}
    assert kinds == {"w": "float16", "scale": "float32", "scale.fp16": "float16"}
    assert (made["scale"][0], made["scale.fp16"][0]) == (np.float32(0.1), np.float16(0.1))
    assert ("x", "x.fp16.1") in casts(model)


def test_large_constants_of_residual_sums_are_stored_in_16_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(casting, "LARGE", 8)
    table, one = RNG.standard_normal((4, 8)).astype(np.float32), np.full(8, 1 / 3, np.float32)
    nodes = [
        node("MatMul", "image w", "patches"),
        node("Add", "patches table", "x"),
        node("LayerNormalization", "x one", "y"),
    ]
    path = saved(tmp_path, nodes, {"image": [4, 8]}, "y", w=W, table=table, one=one)
    model, _ = converted(path)
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert stored == {"w": TensorProto.FLOAT16, "table": TensorProto.FLOAT16, "one": TensorProto.FLOAT}
    assert computes_in(model) == {"patches": "fp32", "x": "fp32", "y": "fp32"}
    image = RNG.standard_normal((4, 8)).astype(np.float32)
    half = image @ W.astype(np.float16).astype(np.float32) + table.astype(np.float16)
    expected = (half - half.mean(1, keepdims=True)) / np.sqrt(half.var(1, keepdims=True) + 1e-5) / 3
    made = session(path.with_name("fp16.onnx")).run(None, {"image": image})[0]
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_floats_made_of_integers_need_no_second_cast(tmp_path):
    nodes = [
        node("Equal", "i one", "same"),
        node("Cast", "same", "onehot", to=1),
        node("MatMul", "x onehot", "z"),
        node("Shape", "z", "shape"),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["zeros"], name="make_zeros",
            value=helper.make_tensor("value", TensorProto.FLOAT, [1], [0.1]),
        ),
        node("Add", "z zeros", "y"),
    ]  # fmt: skip
    path = saved(tmp_path, nodes, {"x": [2, 3], "i": [3, 3]}, "y", one=np.array(1))
    model, result = converted(path)
    onnx.checker.check_model(model, full_check=True)
    assert types(model)["onehot"] == types(model)["zeros"] == "fp16"
    assert result.casts == 2  # x and y
    feeds = {"x": np.ones((2, 3), np.float32), "i": np.eye(3, dtype=np.int64)}
    direct, made = (s.run(None, feeds)[0] for s in both(path))
    np.testing.assert_allclose(direct, made, rtol=2**-11)
    np.testing.assert_array_equal(made, np.full((2, 3), np.float16(1) + np.float16(0.1), np.float32))


def test_nodes_whose_values_do_not_fit_keep_fp32_and_are_named(tmp_path):
    nodes = [node("MatMul", "x w", "a"), node("Mul", "a a", "b"), node("Sqrt", "b", "c"), node("MatMul", "c w", "y")]
    path = saved(tmp_path, nodes, {"x": [4, 8]}, "y", w=W)
    amax = {"x": 3.0, "a": 200.0, "b": 40_000.0, "c": 200.0, "y": 1.0}
    model, result = converted(path, amax=amax)
    assert computes_in(model) == {"a": "fp16", "b": "fp32", "c": "fp32", "y": "fp16"}
    assert [(o.node, o.op) for o in result.offenders] == [("make_b", "Mul"), ("make_c", "Sqrt")]
    assert "'b' reaches 4e+04" in result.offenders[0].why
    assert converted(path, amax=amax | {"b": 16_000.0})[1].offenders == ()
    assert len(converted(path, amax=amax | {"b": float("nan")})[1].offenders) == 2
    assert converted(path, "bf16", amax)[1].offenders == ()
    x = np.full((4, 8), 40.0, np.float32)
    assert np.isfinite(session(path.with_name("fp16.onnx")).run(None, {"x": x})[0]).all()


@pytest.mark.parametrize(("value", "said"), [(-1e9, "fp16 cannot hold"), (1e-12, "becomes zero in fp16")])
def test_constants_that_do_not_fit_keep_fp32(tmp_path, value, said):
    path = saved(tmp_path, [node("Add", "x mask", "a"), node("Softmax", "a", "y")], {"x": [4, 8]}, "y", mask=value)
    model, result = converted(path)
    assert computes_in(model) == {"a": "fp32", "y": "fp16"}
    assert said in result.offenders[0].why
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in model.graph.initializer)


@pytest.mark.parametrize(("limit", "files"), [(1 << 30, []), (0, ["out.onnx.data"])], ids=["inline", "beside"])
def test_weights_beside_the_file(tmp_path, monkeypatch, limit, files):
    weight = RNG.standard_normal((256, 256)).astype(np.float32)
    path = saved(tmp_path, [node("MatMul", "x w", "y")], {"x": [2, 256]}, "y", w=weight)
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(str(path)), str(outside), save_as_external_data=True, location="outside.onnx.data")
    monkeypatch.setattr(rewriting, "INLINE_LIMIT", limit)
    target = tmp_path / "out.onnx"
    for _ in range(2):  # a second run replaces the data
        result = convert(outside, target, "fp16")
    assert [p.name for p in tmp_path.glob("out.onnx.data")] == files
    assert result.bytes == sum(p.stat().st_size for p in tmp_path.glob("out.onnx*"))
    assert result.bytes < 0.52 * result.bytes_before
    (tmp_path / "outside.onnx.data").unlink()
    x = RNG.standard_normal((2, 256)).astype(np.float32)
    exact = x.astype(np.float16).astype(np.float64) @ weight.astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(session(target).run(None, {"x": x})[0], exact, atol=0.05)


def test_underflow_is_noted(tmp_path):
    weight = W.copy()
    weight[0] = 1e-9
    path = saved(tmp_path, [node("MatMul", "x w", "y")], {"x": [2, 8]}, "y", w=weight)
    assert converted(path)[1].underflow == {"w": 1 / 8}
    assert converted(path, "bf16")[1].underflow == {}


def branches(op="Relu", domain=""):
    """An If, both branches of which apply an operator to x of the graph around them."""
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])
    nodes = [helper.make_node(op, ["x"], ["m"], name="inner", domain=domain), helper.make_node("Neg", ["m"], ["z"])]
    branch = helper.make_graph(nodes, "b", [], [value])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)


def refused_graphs():
    gelu = helper.make_node("Gelu", ["x"], ["y"], name="outer", domain="com.microsoft")
    yield "'outer' is Gelu, an operator of 'com.microsoft'", gelu, TensorProto.FLOAT
    yield "'inner' is Gelu, an operator of 'com.microsoft'", branches("Gelu", "com.microsoft"), TensorProto.FLOAT
    yield "FLOAT16 already", helper.make_node("Relu", ["x"], ["y"]), TensorProto.FLOAT16
    yield "is not known", helper.make_node("NoSuchOperator", ["x"], ["y"]), TensorProto.FLOAT
    yield "is not known", branches("NoSuchOperator"), TensorProto.FLOAT


@pytest.mark.parametrize(("said", "made", "elem"), refused_graphs(), ids=lambda v: v if isinstance(v, str) else "")
def test_refused(tmp_path, said, made, elem):
    inputs = [helper.make_tensor_value_info("x", elem, [2]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    last = helper.make_node("Identity", ["y"], ["out"])
    graph = helper.make_graph([made, last], "g", inputs, [helper.make_tensor_value_info("out", elem, [2])])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(path))
    with pytest.raises(PrecisionError, match=said):
        convert(path, tmp_path / "out.onnx", "fp16")
    assert not (tmp_path / "out.onnx").exists()


def test_subgraphs_stay_float32_and_read_float32(tmp_path):
    """What they capture is cast back, and a constant that 16-bit nodes read, too, is there in both types."""
    value = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["m"]), helper.make_node("Add", ["m", "shift"], ["z"])],
        "b", [], [value("z", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(np.full(8, 1 / 3, np.float32), "shift")],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="make_h"),
        helper.make_node("Equal", ["i", "one"], ["c"]),
        helper.make_node("If", ["c"], ["y0"], name="make_y0", then_branch=branch, else_branch=branch),
        helper.make_node("Relu", ["y0"], ["y"], name="make_y"),
    ]
    path = saved(tmp_path, nodes, {"x": [4, 8], "i": [1]}, "y", w=W, one=np.array([1]))
    model, result = converted(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.node, o.why) for o in result.offenders] == [("make_y0", "the subgraph of If computes in FP32")]
    assert computes_in(model) == {"h": "fp16", "y": "fp16"}
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert sorted(elem for name, elem in kinds.items() if name.startswith("w")) == [1, 10]
    assert ("h", "h.fp32") in casts(model)
    x = RNG.standard_normal((4, 8)).astype(np.float32)
    half, w16 = x.astype(np.float16).astype(np.float32), W.astype(np.float16).astype(np.float32)
    expected = np.maximum((half @ w16).astype(np.float16).astype(np.float32) @ W + np.float32(1 / 3), 0)
    for made in both(path):
        np.testing.assert_allclose(made.run(None, {"x": x, "i": np.array([1])})[0], expected, atol=2e-2)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_operators_outside_onnx_by_their_declaration(tmp_path, kind):
    """Two in a row, of which no type is recorded in the file."""
    attend = {"domain": "com.microsoft", "num_heads": 2, "scale": 1.0}
    nodes = [
        node("MatMul", "x w", "q"),
        node("MultiHeadAttention", "q q q", "a", **attend),
        node("MultiHeadAttention", "a q a", "b", **attend),
        node("LayerNormalization", "b one", "y"),
    ]
    path = saved(tmp_path, nodes, {"x": [1, 4, 8]}, "y", strict=False, w=W, one=np.ones(8, np.float32))
    model, result = converted(path, kind)
    low = low_types(model)
    assert {"q", "a", "b"} <= low.keys() and result.fp32 == {"norm": 1} and result.offenders == ()
    # x down to 16 bits, b up to the norm.
    assert [(n.input[0], n.output[0]) for n in model.graph.node if n.op_type == "Cast"] == [
        ("x", f"x.{kind}"), ("b", "b.fp32"),
    ]  # fmt: skip
    x = RNG.standard_normal((1, 4, 8)).astype(np.float32)
    fake_quantised(path.with_name(f"{kind}.onnx"), tmp_path / "fake.onnx")
    runnable = [tmp_path / "fake.onnx", *([path.with_name("fp16.onnx")] if kind == "fp16" else [])]
    exact, *made = (session(p).run(None, {"x": x})[0] for p in (path, *runnable))
    for found in made:
        assert 0 < np.abs(exact - found).max() < (0.02 if kind == "fp16" else 0.2)
