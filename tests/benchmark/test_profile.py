"""What every node of an encoder is for, and how a run's time is shared out."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
import pytest
from bench_files import dense, merged, save
from graphs import graph_of, node, traced
from onnx import helper

from structsam_export.benchmark.profile import PARTS, outermost, part_of, parts_of, summary
from structsam_export.rewrite import apply_rules, mlp_blocks

EXPECTED = {
    "make_lin": "linear",
    "make_biased": "linear",
    "make_energy": "decide",
    "top": "decide",
    "make_flat_order": "decide",
    "make_x2": "other",
    "make_rows": "move",
    "make_pairs": "move",
    "make_means": "move",
    "make_q": "linear",
    "make_k": "other",
    "make_scores": "attention",
    "make_probs": "attention",
    "make_mixed": "attention",
    "make_fixed": "other",
    "make_normed": "other",
    "make_gelu": "other",
    "make_residual": "other",
}


@pytest.fixture
def graph():
    """Four of eight tokens, chosen by their mean, gathered, averaged in pairs, and attended to."""
    import numpy as np

    weight = np.ones((16, 16), np.float32)
    return graph_of(
        [
            node("MatMul", "x weight", "lin"),
            node("Add", "lin bias", "biased"),
            node("ReduceMean", "biased last", "energy", keepdims=0),
            helper.make_node("TopK", ["energy", "four"], ["", "order"], name="top", axis=1),
            node("Reshape", "order flat", "flat_order"),
            node("Reshape", "biased tokens", "x2"),
            node("Gather", "x2 flat_order", "rows", axis=0),
            node("Reshape", "rows two_by_two", "pairs"),
            node("ReduceMean", "pairs middle", "means", keepdims=0),
            node("MatMul", "means weight", "q"),
            node("Transpose", "q", "k", perm=[1, 0]),
            node("MatMul", "q k", "scores"),
            node("Softmax", "scores", "probs", axis=-1),
            node("MatMul", "probs q", "mixed"),
            # By a constant: the layout of windows, say, which no method decided.
            node("Gather", "x2 firsts", "fixed", axis=0),
            node("LayerNormalization", "mixed bias", "normed"),
            node("Erf", "normed", "gelu"),
            node("Add", "gelu fixed", "residual"),
        ],
        {"x": (1, 8, 16)},
        "residual",
        weight=weight,
        bias=np.ones(16, np.float32),
        last=[2],
        middle=[1],
        four=[4],
        flat=[4],
        tokens=[8, 16],
        two_by_two=[2, 2, 16],
        firsts=[0, 1],
    )


def test_parts_of_a_graph_made_by_hand(graph, tmp_path):
    path = save(gs.export_onnx(graph), tmp_path / "hand.onnx")
    assert parts_of(path) == EXPECTED


def test_nodes_without_names_do_not_take_others_along(graph, tmp_path):
    """Other exporters leave names out; a decision without one is not every node without one."""
    model = gs.export_onnx(graph)
    for made in model.graph.node:
        if made.name in ("make_biased", "top"):
            made.name = ""
    found = parts_of(save(model, tmp_path / "hand.onnx"))
    assert {name: part for name, part in found.items() if name} == {
        name: part for name, part in EXPECTED.items() if name not in ("make_biased", "top")
    }


def test_fused_nodes_belong_to_the_node_they_are_named_after():
    parts = {"make_rows": "move", "/blocks.0/attn/MatMul": "attention"}
    assert part_of("make_rows", "Gather", parts) == "move"
    assert part_of("make_rows/MatMulAddFusion", "Gemm", parts) == "move"
    assert part_of("/blocks.0/attn/MatMul", "MatMul", parts) == "attention"
    assert part_of("/blocks.0/attn/MatMul/MatMulAddFusion/", "Gemm", parts) == "attention"
    assert part_of("made_up", "Gemm", parts) == "linear"
    assert part_of("/blocks.0/made_up", "Transpose", parts) == "other"


def event(name, op, microseconds, index, suffix="_kernel_time", start=0):
    arguments = {"op_name": op, "node_index": str(index)}
    return {"name": name + suffix, "ts": start, "dur": microseconds, "args": arguments}


def test_a_summary_takes_each_nodes_fastest_run(graph, tmp_path):
    path = save(gs.export_onnx(graph), tmp_path / "hand.onnx")
    events = [
        event("make_lin/MatMulAddFusion", "Gemm", 9000, 0),
        event("make_lin/MatMulAddFusion", "Gemm", 4000, 0),
        event("make_lin/MatMulAddFusion", "Gemm", 700_000, 0, "_fence_before"),
        event("top", "TopK", 1000, 1),
        event("top", "TopK", 1500, 1),
        event("make_rows", "Gather", 2000, 2),
        event("token", "Transpose", 500, 3),
        event("token", "Transpose", 250, 4),  # of one name, but another node
    ]
    found = summary(path, events)
    assert found["parts_ms"] == {"linear": 4.0, "attention": 0.0, "decide": 1.0, "move": 2.0, "other": 0.75}
    assert found["total_ms"] == 7.75
    assert found["merging_share"] == round(3 / 7.75, 4)
    assert list(found["ops_ms"].items()) == [("Gemm", 4.0), ("Gather", 2.0), ("TopK", 1.0), ("Transpose", 0.75)]


def scan(start, microseconds=100, index=0):
    return event("portions", "Scan", microseconds, index, start=start)


def test_nodes_of_a_loops_body_are_the_loops(graph, tmp_path):
    """ONNX Runtime reports both, and the loop's time holds the time of all its portions."""
    path = save(gs.export_onnx(graph), tmp_path / "hand.onnx")
    events = [
        event("make_lin", "Gemm", 1000, 0, start=0),
        # As they end: the nodes of a portion come before their loop; numbers begin anew in a body.
        event("make_lin", "Gemm", 300, 0, start=1100),
        event("make_lin", "Gemm", 400, 0, start=1500),
        event("body", "Erf", 500, 1, start=2100),
        scan(1001, 3000, 1),
        event("top", "TopK", 250, 2, start=4001),
        # The same once more, a little slower.
        event("make_lin", "Gemm", 1200, 0, start=10_000),
        event("make_lin", "Gemm", 10, 0, start=11_300),
        event("body", "Erf", 600, 1, start=11_900),
        scan(11_201, 3100, 1),
        event("top", "TopK", 260, 2, start=14_301),
    ]
    found = summary(path, events)
    assert found["ops_ms"] == {"Scan": 3.0, "Gemm": 1.0, "TopK": 0.25}
    assert found["total_ms"] == 4.25


def test_only_events_within_a_loop_are_dropped():
    before, first, inside, last = (event("n", "Add", 5, i, start=s) for i, s in enumerate((99, 101, 150, 199)))
    at_the_end, after = event("n", "Add", 5, 8, start=200), event("n", "Add", 5, 9, start=250)
    second, within = scan(300), event("n", "Add", 5, 10, start=350)
    events = [before, first, inside, last, scan(100), at_the_end, after, second, within]
    assert outermost(events) == [before, events[4], at_the_end, after, second]
    assert outermost([before, after]) == [before, after]
    assert outermost([]) == []


def test_attention_and_loops_have_parts(tmp_path, monkeypatch):
    """A form's operators belong to the part of what they stand for."""
    monkeypatch.setattr(mlp_blocks, "ROWS", 9)
    found = {}
    for form, opset in (("attention", 23), ("ort-cpu", 18)):
        made = gs.import_onnx(onnx.shape_inference.infer_shapes(traced("none", None, (), 1, opset)))
        made.outputs = made.outputs[:1]
        apply_rules(made, form=form)
        model = gs.export_onnx(made)
        parts = parts_of(save(model, tmp_path / f"{form}.onnx"))
        found[form] = {n.op_type: parts[n.name] for n in model.graph.node}
    assert found["attention"]["Attention"] == found["ort-cpu"]["MultiHeadAttention"] == "attention"
    assert found["ort-cpu"]["Scan"] == "linear"


def test_no_events_are_no_division_by_zero(graph, tmp_path):
    found = summary(save(gs.export_onnx(graph), tmp_path / "hand.onnx"), [])
    assert found["merging_share"] == 0 and set(found["parts_ms"]) == set(PARTS)


@pytest.mark.parametrize("rewritten", [False, True])
def test_only_a_merged_encoder_decides_and_moves(rewritten, tmp_path):
    counts = {}
    for name, model in (("dense", dense()), ("merged", merged())):
        graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
        if rewritten:
            graph.outputs = graph.outputs[:1]
            apply_rules(graph)
        parts = list(parts_of(save(gs.export_onnx(graph), tmp_path / f"{name}.onnx")).values())
        counts[name] = {part: parts.count(part) for part in PARTS}
    assert counts["dense"]["decide"] == counts["dense"]["move"] == 0
    assert min(counts["merged"].values()) > 0
    # Three blocks of two products each, but for those that went to the rules.
    assert counts["dense"]["attention"] >= 6
