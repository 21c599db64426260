"""Forms of typed encoders: portable rules, then FP16 or BF16, then the rules of a form."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import run, traced

from structsam_export.backends import backend
from structsam_export.precision import calibrate, convert, fake_quantised, low_types
from structsam_export.rewrite import FORMS, apply_form, mlp_blocks, rewrite
from structsam_export.rewrite.subgraphs import all_nodes

DEPTH, OPSET = 3, 23
OPERATORS = {"attention": "Attention", "ort-cpu": "MultiHeadAttention"}
IMAGES = [{"image": np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32)}]
TYPED_CASES = [("none", "dense"), ("structsam", "cell")]
each_typed_form = pytest.mark.parametrize("form", OPERATORS)
each_kind = pytest.mark.parametrize("kind", ["fp16", "bf16"])


@pytest.fixture(scope="module", params=TYPED_CASES, ids="-".join)
def typed(request, tmp_path_factory):
    """A folder with an encoder rewritten for every runtime, in FP32 (encoder.onnx), FP16 and BF16."""
    folder = tmp_path_factory.mktemp("typed")
    layers = () if request.param[0] == "none" else tuple(range(DEPTH))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp_blocks, "ROWS", 8)
        onnx.save(traced(*request.param, layers, 2, OPSET), str(folder / "raw.onnx"))
        rewrite(folder / "raw.onnx", folder / "encoder.onnx", keep_outputs=("image_embeddings",))
        amax = calibrate(folder / "encoder.onnx", IMAGES)
        for kind in ("fp16", "bf16"):
            convert(folder / "encoder.onnx", folder / f"{kind}.onnx", kind, amax)
            for form in FORMS:
                apply_form(folder / f"{kind}.onnx", folder / f"{kind}.{form}.onnx", form)
    return folder


def embeddings(path, fake=False):
    """What a file computes of two images, as it is or fake-quantised."""
    if fake:
        fake_quantised(path, path.with_suffix(".fake.onnx"))
        path = path.with_suffix(".fake.onnx")
    return run(onnx.load(str(path)), IMAGES[0])["image_embeddings"]


def operators(model):
    """Operator types of a model, those in subgraphs included."""
    return [n.op_type for n in all_nodes(model.graph)]


@each_kind
def test_the_portable_form_is_the_typed_file_itself(typed, kind):
    assert (typed / f"{kind}.portable.onnx").read_bytes() == (typed / f"{kind}.onnx").read_bytes()


@each_kind
@each_typed_form
def test_the_forms_operators_compute_in_16_bits(typed, form, kind):
    """As the products and the softmax they replace did; norms and residual sums stay FP32, in a Scan too."""
    model = onnx.load(str(typed / f"{kind}.{form}.onnx"))
    low = low_types(model)
    found = [n for n in all_nodes(model.graph) if n.op_type in ("Gelu", OPERATORS[form])]
    assert len(found) == 2 * DEPTH
    assert all(name in low for n in found for name in (*n.input, *n.output))
    norms = [n for n in all_nodes(model.graph) if n.op_type == "LayerNormalization"]
    assert len(norms) == 2 * DEPTH + 2 and not low.keys() & {name for n in norms for name in (*n.input, *n.output)}
    bodies = [a.g for n in model.graph.node for a in n.attribute if a.HasField("g")]
    assert len(bodies) == (DEPTH if form == "ort-cpu" else 0)
    for body in bodies:
        assert [n.op_type for n in body.node][0] == "LayerNormalization" and body.node[-1].op_type == "Add"
        assert [v.type.tensor_type.elem_type for v in (*body.input, *body.output)] == [onnx.TensorProto.FLOAT] * 2


@each_kind
@each_typed_form
def test_a_form_adds_no_casts(typed, form, kind):
    portable, model = (onnx.load(str(typed / f"{name}.onnx")) for name in (kind, f"{kind}.{form}"))
    assert operators(model).count("Cast") == operators(portable).count("Cast")
    assert "Softmax" not in operators(model)


@each_typed_form
def test_a_form_in_fp16_is_valid_and_runs(typed, form):
    """ONNX has no BF16 Einsum, which stock blocks use, so that only FP16 passes its checks."""
    path = typed / f"fp16.{form}.onnx"
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)
    exact = embeddings(typed / "encoder.onnx")
    assert 0 < np.abs(embeddings(path) - exact).max() < 5e-3 * np.abs(exact).max()


@each_kind
@each_typed_form
def test_a_form_computes_what_the_portable_graph_does(typed, form, kind):
    """Scores and their softmax are not stored, hence not rounded: a form errs no more than the portable graph."""
    exact = embeddings(typed / "encoder.onnx")
    portable = np.abs(embeddings(typed / f"{kind}.onnx", fake=True) - exact)
    errors = np.abs(embeddings(typed / f"{kind}.{form}.onnx", fake=True) - exact)
    assert 0 < np.median(errors) < 1.5 * np.median(portable)
    assert errors.max() < 1.5 * portable.max() < 0.05 * np.abs(exact).max()


@each_typed_form
def test_a_second_form_finds_nothing(typed, form, tmp_path, monkeypatch):
    monkeypatch.setattr(mlp_blocks, "ROWS", 8)
    again = apply_form(typed / f"fp16.{form}.onnx", tmp_path / "again.onnx", form)
    assert set(again.counts.values()) == {0} and again.nodes == again.nodes_before


def test_source_and_target_may_be_one_file(typed, tmp_path):
    path = tmp_path / "encoder.onnx"
    path.write_bytes((typed / "fp16.onnx").read_bytes())
    made = apply_form(path, path, "attention")
    assert path.read_bytes() == (typed / "fp16.attention.onnx").read_bytes()
    assert list(made.counts) == ["attention_operator", "fold_constants", "reshape_chain"]
    assert made.nodes_before == len(onnx.load(str(typed / "fp16.onnx")).graph.node)
    assert made.nodes == len(onnx.load(str(path)).graph.node)


def test_a_form_is_typed_too_where_it_comes_first(typed, tmp_path, monkeypatch):
    """Declared operators get 16 bits, and whole subgraphs stay FP32 and are named."""
    monkeypatch.setattr(mlp_blocks, "ROWS", 8)
    rewrite(typed / "raw.onnx", tmp_path / "form.onnx", keep_outputs=("image_embeddings",), form="ort-cpu")
    amax = calibrate(tmp_path / "form.onnx", IMAGES)
    result = convert(tmp_path / "form.onnx", tmp_path / "half.onnx", "fp16", amax)
    assert {(o.op, o.why) for o in result.offenders} == {("Scan", "the subgraph of Scan computes in FP32")}
    model = onnx.load(str(tmp_path / "half.onnx"))
    onnx.checker.check_model(model, full_check=True)
    low = low_types(model)
    found = [n for n in model.graph.node if n.op_type == "MultiHeadAttention"]
    assert len(found) == DEPTH and all(name in low for n in found for name in (*n.input, *n.output))
    exact = embeddings(typed / "encoder.onnx")
    for fake in (False, True):
        error = np.abs(embeddings(tmp_path / "half.onnx", fake) - exact).max()
        assert 0 < error < 5e-3 * np.abs(exact).max()


@pytest.mark.skipif(not backend("tensorrt-rtx").installed(), reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("form", ["portable", "attention"])
def test_engines_of_a_form(typed, form, tmp_path):
    half = typed / f"fp16.{form}.onnx"
    assert backend("tensorrt-rtx").build(half, tmp_path, "encoder", "sm86", {}).bytes > 100_000
    assert len(list(tmp_path.glob("encoder.*-sm86.engine"))) == 1
