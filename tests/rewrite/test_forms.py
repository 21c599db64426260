"""Whole encoders in every form: the numbers of the portable one, its own operators, and nothing of another form's."""

from __future__ import annotations

from functools import cache
from importlib import import_module

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graphs import MODULES, run, traced

from structsam_export import config
from structsam_export.build import build_engine, installed
from structsam_export.errors import ArtifactError, PrecisionError
from structsam_export.macs import graph_macs
from structsam_export.pipeline import OUTPUTS
from structsam_export.precision import convert, emulated, scan
from structsam_export.rewrite import FORMS, RULES, apply_rules, mlp_blocks, rewrite

DEPTH, BATCH, OPSET = 3, 2, 23
LAYERS = tuple(range(DEPTH))
# Of every kind of merging one: the forms' rules see no methods.
CASES = [("none", "dense"), ("structsam", "cell"), ("tome", "alternate"), ("cubist", "window"), ("sparsesam", "stripe")]
OPERATORS = {"portable": None, "attention": "Attention", "ort-cpu": "MultiHeadAttention", "openvino": None}
# Forms that leave attention as products and a softmax.
IN_PRODUCTS = ("portable", "openvino")
MERGED = [("structsam", "cell"), ("structsam", "bsm"), ("pitome", "grid"), ("gradtome", "alternate")]
IMAGE = np.random.default_rng(0).standard_normal((BATCH, 3, 96, 96)).astype(np.float32)

each_form = pytest.mark.parametrize("form", FORMS)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(filter(None, case)))


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    """72 rows of two images of 6x6 tokens, or half of them on a grid that shrank, in portions."""
    monkeypatch.setattr(mlp_blocks, "ROWS", 8)


def layers_of(method):
    return () if method == "none" else LAYERS


@cache
def made(method, variant, form):
    """(counts, reasons, the model in this form with all its outputs, those outputs for one image)."""
    graph, skipped = gs.import_onnx(traced(method, variant, layers_of(method), BATCH, OPSET)), []
    counts = apply_rules(graph, skipped, form)
    model = gs.export_onnx(graph)
    return counts, skipped, model, run(model, {"image": IMAGE})


def kinds(graph):
    """Operator types of a graph, those in bodies of loops included."""
    for n in graph.node:
        yield n.op_type
        for attribute in n.attribute:
            if attribute.HasField("g"):
                yield from kinds(attribute.g)


def test_forms_are_those_one_may_ask_for():
    assert tuple(FORMS) == config.FORMS == tuple(OPERATORS)
    assert FORMS["portable"] == {}
    rules = [rule for rules in FORMS.values() for rule in rules]
    assert len(rules) == len(set(rules)) and not set(rules) & set(RULES)
    assert all(import_module(module).apply for module in MODULES.values())


@each_form
@each_case
def test_the_numbers_of_the_portable_form(case, form):
    """Decisions are taken on the same numbers; FP32 sums in another order are all that may differ."""
    expected, found = made(*case, "portable")[3], made(*case, form)[3]
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert np.ptp(value) > 0
        if name == "image_embeddings":
            assert np.allclose(found[name], value, rtol=0, atol=1e-5 * np.abs(value).max())
        else:
            assert np.array_equal(found[name], value), name


@each_form
@each_case
def test_counts(case, form):
    """Rules of every graph fire as before, and those of the form in every block."""
    portable, counts = made(*case, "portable")[0], made(*case, form)[0]
    assert list(counts) == [*RULES, *FORMS[form]]
    views = {"reshape_chain"} if FORMS[form] else set()
    assert {r: n for r, n in counts.items() if r in RULES.keys() - views} == {
        r: n for r, n in portable.items() if r not in views
    }
    assert counts["reshape_chain"] >= portable["reshape_chain"]
    if form == "openvino":
        # Norms, sums and the MLP of every block at least.
        assert counts["token_rows"] >= DEPTH
    else:
        assert {r: counts[r] for r in FORMS[form]} == dict.fromkeys(FORMS[form], DEPTH)


@each_form
@each_case
def test_operators_are_those_of_the_form(case, form):
    _, _, model, _ = made(*case, form)
    onnx.checker.check_model(model, full_check=True)
    found = list(kinds(model.graph))
    for name, operator in OPERATORS.items():
        if operator is not None:
            assert found.count(operator) == (DEPTH if name == form else 0)
    assert found.count("Softmax") == (DEPTH if form in IN_PRODUCTS else 0)
    assert found.count("Scan") == (DEPTH if form == "ort-cpu" else 0)
    assert {n.domain for n in model.graph.node} == ({"", "com.microsoft"} if form == "ort-cpu" else {""})


@each_form
@each_case
def test_reasons_are_of_the_rules(case, form):
    skipped = made(*case, form)[1]
    assert {reason.split(": ")[0] for reason in skipped} <= set(RULES)


@each_form
@each_case
def test_a_second_run_fires_nothing(case, form):
    """Neither rules of the form nor those after them; a layout's rule may take padded values along."""
    again = apply_rules(gs.import_onnx(made(*case, form)[2]), form=form)
    assert {rule: n for rule, n in again.items() if n}.keys() <= {"layout_gather"}
    assert form == "attention" or again["layout_gather"] == 0
    assert set(again) >= {*FORMS[form], "reshape_chain"}


@pytest.mark.parametrize(("method", "variant"), MERGED)
def test_an_export_for_onnx_runtime(method, variant):
    """Opset 18, whose activations are made of Erf, and a stock block beside those that merge."""
    raw, skipped = traced(method, variant, (0, 1), BATCH), []
    graph = gs.import_onnx(raw)
    counts = apply_rules(graph, skipped, "ort-cpu")
    assert counts["gelu"] == counts["attention_ort"] == counts["mlp_blocks"] == DEPTH
    before, found = run(raw, {"image": IMAGE}), run(graph, {"image": IMAGE})
    assert list(found) == list(before)
    largest = np.abs(before["image_embeddings"]).max()
    assert np.allclose(found["image_embeddings"], before["image_embeddings"], rtol=0, atol=1e-5 * largest)
    assert all(np.array_equal(found[name], before[name]) for name in before if name != "image_embeddings")


def test_names_in_bodies_are_unique():
    model = made("structsam", "cell", "ort-cpu")[2]
    bodies = [a.g for n in model.graph.node for a in n.attribute if a.HasField("g")]
    assert len(bodies) == DEPTH
    names = []
    for graph in (model.graph, *bodies):
        names += [v.name for v in graph.input] + [t.name for t in graph.initializer]
        names += [name for n in graph.node for name in n.output if name]
    assert sorted(names) == sorted(set(names))


@each_form
def test_macs_of_a_form(form, tmp_path):
    """Zeros beside values are the only products that a form adds: as many channels as keys have for positions."""
    paths = {}
    for name in ("portable", form):
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(made("none", "dense", name)[2], str(paths[name]))
    # Windows of 4x4 in the outer two blocks (4 with pads), a grid of 6x6 between; two heads, positions h + w.
    padding = BATCH * 2 * (2 * 4 * 16**2 * 8 + 36**2 * 12)
    added = padding if form == "attention" else 0
    assert graph_macs(paths[form]) == graph_macs(paths["portable"]) + added


@pytest.fixture
def source(tmp_path):
    onnx.save(traced("structsam", "cell", LAYERS, 1, OPSET), str(tmp_path / "raw.onnx"))
    return tmp_path / "raw.onnx"


def in_fp16(source, form):
    """(rewritten file, converted file, its result)."""
    folder = source.parent
    rewrite(source, folder / "encoder.onnx", keep_outputs=OUTPUTS["encoder"], form=form)
    peaks = scan(folder / "encoder.onnx", [{"image": IMAGE[:1]}])
    return (
        folder / "encoder.onnx",
        folder / "half.onnx",
        convert(folder / "encoder.onnx", folder / "half.onnx", "fp16", peaks),
    )


def test_attention_computes_in_fp16(source):
    """As both products and the softmax do; what a graph of this form is for."""
    exact, half, result = in_fp16(source, "attention")
    model = onnx.load(str(half))
    onnx.checker.check_model(model, full_check=True)
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    found = [n for n in model.graph.node if n.op_type == "Attention"]
    assert len(found) == DEPTH
    assert {types[name] for n in found for name in (*n.input, *n.output)} == {onnx.TensorProto.FLOAT16}
    assert result.offenders == ()
    emulated(half, half.with_name("emulated.onnx"))
    one = run(onnx.load(str(exact)), {"image": IMAGE[:1]})["image_embeddings"]
    other = run(onnx.load(str(half.with_name("emulated.onnx"))), {"image": IMAGE[:1]})["image_embeddings"]
    # Random weights have ties everywhere, so most values are looked at, not all.
    assert 0 < np.median(np.abs(one - other)) < 5e-3 * np.abs(one).max()


def test_what_is_for_onnx_runtime_has_no_fp16(source):
    with pytest.raises(PrecisionError, match="Scan|MultiHeadAttention"):
        in_fp16(source, "ort-cpu")


rtx = pytest.mark.skipif(not installed("tensorrt-rtx"), reason="TensorRT-RTX is not installed")


@rtx
@pytest.mark.parametrize("form", ["portable", "attention"])
def test_engines_of_a_form(source, form, tmp_path):
    _, half, _ = in_fp16(source, form)
    assert build_engine(half, tmp_path, "encoder", "tensorrt-rtx", "sm86", {}).bytes > 100_000
    assert len(list(tmp_path.glob("encoder.*-sm86.engine"))) == 1


@rtx
def test_attention_in_fp32_is_what_tensorrt_refuses(source, tmp_path):
    """Why the configuration refuses it; and a graph that cannot be built is no traceback."""
    rewrite(source, tmp_path / "encoder.onnx", keep_outputs=OUTPUTS["encoder"], form="attention")
    with pytest.raises(ArtifactError, match=r"tensorrt-rtx 1\.\d+\.\d+ cannot build .*encoder\.onnx for sm86"):
        build_engine(tmp_path / "encoder.onnx", tmp_path, "encoder", "tensorrt-rtx", "sm86", {})
    assert list(tmp_path.glob("*.engine*")) == []


@rtx
def test_operators_of_onnx_runtime_are_what_tensorrt_refuses(source, tmp_path):
    rewrite(source, tmp_path / "encoder.onnx", keep_outputs=OUTPUTS["encoder"], form="ort-cpu")
    with pytest.raises(ArtifactError, match="cannot build"):
        build_engine(tmp_path / "encoder.onnx", tmp_path, "encoder", "tensorrt-rtx", "sm86", {})
