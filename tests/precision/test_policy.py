"""Which nodes keep FP32, on graphs small enough to say so by hand."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import node
from precision_graphs import casts, computes_in, converted, saved

from structsam_export.precision.policy import keep_fp32
from structsam_export.precision.typed import read

W = np.eye(8, dtype=np.float32)
ONE = np.ones(8, np.float32)


def kept(path, low="tensor(float16)", **given):
    """Reason by node name; nodes in low precision are not there."""
    graph = read(path)
    found = keep_fp32(graph, low, {}, **given)
    return {graph.nodes[i].name.removeprefix("make_"): why.reason for i, why in found.items()}


def test_what_reaches_the_output_through_integers_only_keeps_fp32(tmp_path):
    nodes = [
        node("LayerNormalization", "x one", "n"),
        node("Mul", "n n", "energy"),
        node("ReduceSum", "energy axes", "score", keepdims=0),
        node("ArgMax", "score", "best", axis=0, keepdims=1),
        node("Gather", "n best", "rows", axis=0),
        node("MatMul", "rows w", "y"),
    ]
    path = saved(tmp_path, nodes, {"x": [4, 8]}, "y", one=ONE, w=W, axes=np.array([1]))
    assert kept(path) == {"n": "norm", "energy": "decision", "score": "decision", "best": "decision"}
    model, result = converted(path)
    assert computes_in(model) == {
        "n": "fp32", "energy": "fp32", "score": "fp32", "best": "fp32", "rows": "fp16", "y": "fp16",
    }  # fmt: skip
    assert [made for made, _ in casts(model)] == ["n", "y.fp16"]
    assert result.fp32 == {"norm": 1, "decision": 3}
    assert result.low == 2


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_norm_written_as_a_chain_with_its_scale_and_shift(tmp_path, square):
    nodes = [
        node("MatMul", "x w", "r"),
        node("ReduceMean", "r axes", "mean"),
        node("Sub", "r mean", "centred"),
        node(square, "centred two" if square == "Pow" else "centred centred", "square"),
        node("ReduceMean", "square axes", "variance"),
        node("Add", "variance eps", "safe"),
        node("Sqrt", "safe", "deviation"),
        node("Div", "centred deviation", "unit"),
        node("Mul", "scale unit", "scaled"),
        node("Add", "scaled shift", "shifted"),
        node("Mul", "shifted shift", "y"),
    ]
    constants = {"w": W[:4, :4], "axes": np.array([1]), "two": 2.0, "eps": 1e-6, "scale": ONE[:4], "shift": ONE[:4]}
    path = saved(tmp_path, nodes, {"x": [2, 4]}, "y", **constants)
    chain = ("mean", "centred", "square", "variance", "safe", "deviation", "unit", "scaled", "shifted")
    assert kept(path) == dict.fromkeys(chain, "norm")


def test_a_quotient_by_another_root_is_no_norm(tmp_path):
    nodes = [
        node("Sub", "x z", "centred"),
        node("Mul", "centred centred", "square"),
        node("ReduceMean", "square axes", "variance"),
        node("Add", "variance eps", "safe"),
        node("Sqrt", "safe", "deviation"),
        node("Div", "centred deviation", "y"),
    ]
    path = saved(tmp_path, nodes, {"x": [2, 4], "z": [2, 4]}, "y", axes=np.array([1]), eps=1e-6)
    assert kept(path) == {}


def test_positions_and_what_leads_to_them(tmp_path):
    nodes = [
        node("Div", "x size", "place"),
        node("MatMul", "place w", "turns"),
        node("Sin", "turns", "sin"),
        node("Cos", "turns", "cos"),
        node("Concat", "sin cos", "code", axis=1),
        node("MatMul", "code w2", "y"),
    ]
    path = saved(tmp_path, nodes, {"x": [2, 8]}, "y", size=512.0, w=W, w2=np.ones((16, 8), np.float32))
    assert kept(path) == dict.fromkeys(("place", "turns", "sin", "cos"), "position")


def block(tmp_path):
    """image -> embedding + table -> x + proj(norm(x)) -> y, where merging sums tokens, too."""
    nodes = [
        node("MatMul", "image w", "patches"),
        node("Add", "patches table", "stem"),
        node("LayerNormalization", "stem one", "n"),
        node("MatMul", "n w", "proj"),
        node("Add", "proj n", "merged"),
        node("MatMul", "merged w", "branch"),
        node("Reshape", "branch shape", "moved"),
        node("Add", "stem moved", "sum"),
        node("LayerNormalization", "sum one", "n2"),
        node("MatMul", "n2 w", "mlp"),
        node("Add", "sum mlp", "last"),
        node("MatMul", "last w", "y"),
    ]
    return saved(
        tmp_path, nodes, {"image": [4, 8]}, "y", w=W, one=ONE, table=np.zeros((4, 8), np.float32), shape=[4, 8]
    )


def test_stem_and_residual_sums(tmp_path):
    norms = {"n": "norm", "n2": "norm"}
    stem, residual = dict.fromkeys(("patches", "stem"), "stem"), dict.fromkeys(("sum", "last"), "residual")
    path = block(tmp_path)
    assert kept(path) == norms | stem | residual
    assert kept(path, also=("stem",)) == norms | stem
    assert kept(path, also=("residual",)) == norms | residual
    assert kept(path, also=()) == norms


def test_merging_between_a_sum_and_a_norm_keeps_fp32(tmp_path):
    nodes = [
        node("Relu", "x", "branch"),
        node("Add", "x branch", "sum"),
        node("LayerNormalization", "sum one", "n0"),
        node("Reshape", "sum pairs", "cells"),
        node("ReduceMean", "cells axes", "mean", keepdims=0),
        node("LayerNormalization", "mean one", "n"),
        node("MatMul", "n w", "z"),
        node("MatMul", "n0 w", "z0"),
        node("Concat", "z z0", "y", axis=0),
    ]
    path = saved(tmp_path, nodes, {"x": [4, 8]}, "y", one=ONE, w=W, pairs=[2, 2, 8], axes=np.array([1]))
    reasons = {"sum": "residual", "cells": "residual", "mean": "residual", "n": "norm", "n0": "norm"}
    assert kept(path) == reasons
    assert sorted(made for made, _ in casts(converted(path)[0])) == ["branch", "n", "n0", "x", "y.fp16"]


def test_movement_that_a_decision_shares_with_low_precision_keeps_fp32(tmp_path):
    nodes = [
        node("LayerNormalization", "x one", "n"),
        node("Transpose", "n", "turned", perm=[1, 0]),
        node("ArgMax", "turned", "best", axis=0, keepdims=0),
        node("Gather", "turned best", "rows", axis=0),
        node("MatMul", "rows w", "y"),
    ]
    path = saved(tmp_path, nodes, {"x": [8, 8]}, "y", one=ONE, w=W)
    assert kept(path) == {"n": "norm", "turned": "movement", "best": "decision"}
    model, _ = converted(path)
    assert [made for made, _ in casts(model)] == ["turned", "y.fp16"]


def test_transposed_convolutions_have_no_bf16(tmp_path):
    nodes = [node("Relu", "x", "r"), node("ConvTranspose", "r k", "up"), node("Relu", "up", "y")]
    path = saved(tmp_path, nodes, {"x": [1, 2, 4, 4]}, "y", k=np.ones((2, 3, 2, 2), np.float32))
    assert kept(path) == {}
    assert kept(path, "tensor(bfloat16)") == {"up": "operator"}
    _, result = converted(path, "bf16")
    assert [(o.node, o.op) for o in result.offenders] == [("make_up", "ConvTranspose")]
