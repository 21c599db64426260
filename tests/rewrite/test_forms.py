"""Whole encoders in every form: the numbers of the portable one, its own operators, and nothing of another form's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graphs import MODULES, run, traced, unless_alike
from snapshots import check_snapshot

from structsam_export.backends import backend
from structsam_export.config import ExportConfig
from structsam_export.errors import ArtifactError, UsageError
from structsam_export.macs import graph_macs
from structsam_export.rewrite import FORMS, RULES, Rewritten, apply_rules, mlp_blocks, rewrite
from structsam_export.rewrite.subgraphs import all_nodes

DEPTH, BATCH, OPSET = 3, 2, 23
LAYERS = tuple(range(DEPTH))
# Of every kind of merging one: the forms' rules see no methods.
CASES = [("none", "dense"), ("structsam", "cell"), ("structsam", "proportional"), ("tome", "alternate")]
CASES += [("cubist", "window"), ("sparsesam", "stripe")]
OPERATORS = {"portable": None, "attention": "Attention", "ort-cpu": "MultiHeadAttention", "openvino": None}
# Forms that leave attention as products and a softmax.
IN_PRODUCTS = ("portable", "openvino")
MERGED = [("structsam", "cell"), ("structsam", "bsm"), ("pitome", "grid"), ("gradtome", "alternate")]
SNAPSHOT = Path(__file__).with_name("rule_counts.json")
IMAGE = np.random.default_rng(0).standard_normal((BATCH, 3, 96, 96)).astype(np.float32)

each_form = pytest.mark.parametrize("form", FORMS)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(filter(None, case)))


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    """72 rows of two images of 6x6 tokens, or half of them on a grid that shrank, in portions."""
    monkeypatch.setattr(mlp_blocks, "ROWS", 8)


def layers_of(method):
    return () if method == "none" else LAYERS


@dataclass(frozen=True)
class Formed:
    """What the rules report, the model in this form with all its outputs, and those outputs for `IMAGE`."""

    made: Rewritten
    model: onnx.ModelProto
    outputs: dict


@cache
def formed(method, variant, form):
    graph = gs.import_onnx(traced(method, variant, layers_of(method), BATCH, OPSET))
    made = apply_rules(graph, form=form)
    model = gs.export_onnx(graph)
    return Formed(made, model, run(model, {"image": IMAGE}))


def kinds(graph):
    """Operator types of a graph, those in subgraphs included."""
    return [n.op_type for n in all_nodes(graph)]


def test_every_form_can_be_asked_for():
    assert FORMS["portable"] == {}
    assert {ExportConfig(form=form, opset=23, backend="none").form for form in FORMS} == set(OPERATORS)
    with pytest.raises(UsageError, match="Choose from: portable, attention, ort-cpu"):
        ExportConfig(form="no-such-form")


def test_names_of_forms_need_no_heavy_import():
    """The command reads them before it knows what to do."""
    code = "import sys; import structsam_export.rewrite; print({'onnx', 'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_no_rule_is_in_two_places():
    rules = [rule for rules in FORMS.values() for rule in rules]
    assert len(rules) == len(set(rules)) and not set(rules) & set(RULES)
    assert all(import_module(module).apply for module in MODULES.values())


@each_form
@each_case
def test_the_numbers_of_the_portable_form(case, form):
    """Decisions are taken on the same numbers; FP32 sums in another order are all that may differ."""
    expected, found = formed(*case, "portable").outputs, formed(*case, form).outputs
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
    """Portable rules fire as in every form, and those of the form in every block."""
    portable, counts = formed(*case, "portable").made.counts, formed(*case, form).made.counts
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
    key = f"{'-'.join(case)} opset {OPSET} {form}"
    check_snapshot(SNAPSHOT, key, {rule: n for rule, n in counts.items() if n})


@each_form
@each_case
def test_operators_are_those_of_the_form(case, form):
    model = formed(*case, form).model
    onnx.checker.check_model(model, full_check=True)
    found = kinds(model.graph)
    for name, operator in OPERATORS.items():
        if operator is not None:
            assert found.count(operator) == (DEPTH if name == form else 0)
    assert found.count("Softmax") == (DEPTH if form in IN_PRODUCTS else 0)
    assert found.count("Scan") == (DEPTH if form == "ort-cpu" else 0)
    assert {n.domain for n in model.graph.node} == ({"", "com.microsoft"} if form == "ort-cpu" else {""})


@each_form
@each_case
def test_reasons_are_of_the_rules(case, form):
    assert {reason.split(": ")[0] for reason in formed(*case, form).made.skipped} <= set(RULES)


@each_form
@each_case
def test_a_second_run_fires_nothing(case, form):
    """Neither rules of the form nor those after them; only a chain of movements may take a Pad of values along."""
    again = apply_rules(gs.import_onnx(formed(*case, form).model), form=form).counts
    assert {rule: n for rule, n in again.items() if n}.keys() <= {"movement_gather"}
    assert form == "attention" or again["movement_gather"] == 0
    assert set(again) >= {*FORMS[form], "reshape_chain"}


@pytest.mark.parametrize(("method", "variant"), [pytest.param(*pair, marks=unless_alike(*pair)) for pair in MERGED])
def test_an_export_for_onnx_runtime(method, variant):
    """Opset 18, whose activations are made of Erf, and a stock block beside those that merge."""
    raw = traced(method, variant, (0, 1), BATCH)
    graph = gs.import_onnx(raw)
    counts = apply_rules(graph, form="ort-cpu").counts
    assert counts["gelu"] == counts["attention_ort"] == counts["mlp_blocks"] == DEPTH
    before, found = run(raw, {"image": IMAGE}), run(graph, {"image": IMAGE})
    assert list(found) == list(before)
    largest = np.abs(before["image_embeddings"]).max()
    assert np.allclose(found["image_embeddings"], before["image_embeddings"], rtol=0, atol=1e-5 * largest)
    assert all(np.array_equal(found[name], before[name]) for name in before if name != "image_embeddings")


def test_names_in_bodies_are_unique():
    model = formed("structsam", "cell", "ort-cpu").model
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
        onnx.save(formed("none", "dense", name).model, str(paths[name]))
    # Windows of 4x4 in the outer two blocks (4 with pads), a grid of 6x6 between; two heads, positions h + w.
    padding = BATCH * 2 * (2 * 4 * 16**2 * 8 + 36**2 * 12)
    added = padding if form == "attention" else 0
    assert graph_macs(paths[form]) == graph_macs(paths["portable"]) + added


@pytest.fixture
def source(tmp_path):
    onnx.save(traced("structsam", "cell", LAYERS, 1, OPSET), str(tmp_path / "raw.onnx"))
    return tmp_path / "raw.onnx"


rtx = pytest.mark.skipif(not backend("tensorrt-rtx").installed(), reason="TensorRT-RTX is not installed")


@rtx
def test_attention_in_fp32_is_what_tensorrt_refuses(source, tmp_path):
    """Why the configuration refuses it; and a graph that cannot be built is no traceback."""
    rewrite(source, tmp_path / "encoder.onnx", keep_outputs=("image_embeddings",), form="attention")
    with pytest.raises(ArtifactError, match=r"tensorrt-rtx 1\.\d+\.\d+ cannot build .*encoder\.onnx for sm86"):
        backend("tensorrt-rtx").build(tmp_path / "encoder.onnx", tmp_path, "encoder", "sm86", {})
    assert list(tmp_path.glob("*.engine*")) == []


@rtx
def test_operators_of_onnx_runtime_are_what_tensorrt_refuses(source, tmp_path):
    rewrite(source, tmp_path / "encoder.onnx", keep_outputs=("image_embeddings",), form="ort-cpu")
    with pytest.raises(ArtifactError, match="cannot build"):
        backend("tensorrt-rtx").build(tmp_path / "encoder.onnx", tmp_path, "encoder", "sm86", {})
