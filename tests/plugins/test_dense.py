"""Attention of blocks that do not merge becomes RelposAttention with `aligned`: a dense encoder, and a mixed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from fused_graphs import IMAGE, KINDS, fused_encoders
from graphs import run, traced
from shared_traces import sharing

from structsam_export.backends import backend
from structsam_export.fused import DOMAIN, PLUGINS, add_functions, part
from structsam_export.graphs import load
from structsam_export.rewrite import apply_plugins, rewrite, use_plugin

ROOT = Path(__file__).parents[2]
DEPTH = 3


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """KIND.onnx, a dense encoder, and KIND.plugins.onnx, with its three attentions fused."""
    folder = tmp_path_factory.mktemp("dense")
    for made in fused_encoders(folder, "none", "dense", ()):
        assert made.counts == {f"use_plugin.{name}": DEPTH * (name == "relpos_attention") for name in PLUGINS}
        assert made.nodes == made.nodes_before - 37
    return folder


def embedding(model):
    model = model if isinstance(model, onnx.ModelProto) else onnx.load(str(model))
    return run(model, {"image": IMAGE})["image_embeddings"]


def error(found, want):
    return float(np.abs(found - want).max() / np.abs(want).max())


@pytest.mark.parametrize("kind", KINDS)
def test_windows_and_the_grid_are_aligned(graphs, kind):
    """Attributes, positions in raster order, and nothing left of the stock attention."""
    model = load(graphs / f"{kind}.plugins.onnx")  # with all its checks of functions
    nodes = [n for n in model.graph.node if n.domain == DOMAIN]
    given = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in nodes]
    assert [(g["heads"], g["window_h"], g["window_w"], g["aligned"]) for g in given] == [
        (2, 4, 4, 1), (2, 6, 6, 1), (2, 4, 4, 1),
    ]  # fmt: skip
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert [constants[n.input[4]].shape for n in nodes] == [(8, 16), (2, 36), (8, 16)]
    assert all((constants[n.input[4]] == np.arange(constants[n.input[4]].shape[1])).all() for n in nodes)
    assert nodes[0].input[4] == nodes[2].input[4]
    assert not {"Softmax", "Einsum", "Split", "Squeeze"} & {n.op_type for n in model.graph.node}


def test_functions_compute_what_the_graph_did(graphs):
    exact = embedding(graphs / "fp32.onnx")
    assert 0 < error(embedding(graphs / "fp32.plugins.onnx"), exact) < 2e-6
    half, fused = (error(embedding(graphs / f"fp16{x}.onnx"), exact) for x in ("", ".plugins"))
    assert 0 < fused < 1.5 * half < 5e-3


def test_openvino_computes_the_same(graphs):
    own = backend("openvino")
    if not own.installed():
        pytest.skip("OpenVINO is not installed")
    from structsam_export.backends.base import RunOptions

    with own.runner(graphs / "fp32.plugins.onnx", "inlined", RunOptions(precision="f32")) as runner:
        assert error(runner.infer({"image": IMAGE})["image_embeddings"], embedding(graphs / "fp32.onnx")) < 1e-5


def test_blocks_that_merge_and_blocks_that_do_not(tmp_path):
    """One merging block among three: four operators of merging once, attention three times, `aligned` in two."""
    with sharing():
        onnx.save(traced("structsam", "cell", (1,), 2), str(tmp_path / "raw.onnx"))
    rewrite(tmp_path / "raw.onnx", tmp_path / "plain.onnx", keep_outputs=("image_embeddings",))
    made = apply_plugins(tmp_path / "plain.onnx", tmp_path / "fused.onnx", tuple(PLUGINS))
    counts = {name: made.counts[f"use_plugin.{name}"] for name in PLUGINS}
    assert counts == dict.fromkeys(PLUGINS, 1) | {"relpos_attention": DEPTH}
    aligned = [
        a.i for n in onnx.load(str(tmp_path / "fused.onnx")).graph.node for a in n.attribute if a.name == "aligned"
    ]
    assert aligned == [1, 0, 1]
    assert error(embedding(tmp_path / "fused.onnx"), embedding(tmp_path / "plain.onnx")) < 2e-6


def test_weights_that_stay_in_their_file_are_cut_by_operators(graphs):
    """Large encoders are rewritten without their weights (`rewrite.weights`): inputs take their place here."""
    model = onnx.load(str(graphs / "fp32.onnx"))
    large = [t for t in model.graph.initializer if list(t.dims) == [16, 48]]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in large}
    for tensor in large:
        model.graph.initializer.remove(tensor)
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, [16, 48]))
    graph = gs.import_onnx(model)
    assert len(weights) == DEPTH
    assert use_plugin.apply(graph, "relpos_attention").count == DEPTH
    model = gs.export_onnx(graph.cleanup().toposort())
    add_functions(model)
    assert [n.op_type for n in model.graph.node].count("Split") == DEPTH
    found = run(model, {"image": IMAGE, **weights})["image_embeddings"]
    assert error(found, embedding(graphs / "fp32.onnx")) < 2e-6


def values_of(node, which):
    """The values of a constant input, to be changed."""
    tensor = node.inputs[which]
    tensor.values = np.array(tensor.values)
    return tensor.values


def one_table(graph):
    """No table of relative positions: it does not depend on differences of lines alone."""
    node = next(n for n in graph.nodes if n.op == "Einsum")
    values_of(node, 1)[0, 1] += 1


def one_line(graph):
    """A key that is on two rows."""
    node = next(n for n in graph.nodes if n.op == "Concat" and hasattr(n.inputs[-1], "values"))
    values_of(node, 1)[:, 1, 0] = 1


def other_order(graph):
    """Keys and values the other way around."""
    node = next(n for n in graph.nodes if n.op == "Split")
    node.outputs = [node.outputs[0], node.outputs[2], node.outputs[1]]


def weights_read_elsewhere(graph):
    graph.outputs.append(next(n for n in graph.nodes if n.op == "Softmax").outputs[0])


@pytest.mark.parametrize("change", [one_table, one_line, other_order, weights_read_elsewhere])
def test_near_matches_are_left_alone(graphs, change):
    graph = gs.import_onnx(onnx.load(str(graphs / "fp32.onnx"))).toposort()
    change(graph)
    assert len(part("relpos_attention", "pattern").get_matching_subgraphs(graph)) == DEPTH - 1


def test_their_kernel_is_the_aligned_one(graphs):
    """What `scripts/plugin_kernels` compiles; test_kernels.py compares this mode with its reference."""
    pytest.importorskip("triton")
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "plugins"), str(ROOT / "plugins" / "registration")]
    from plugin_kernels.nodes import launches

    found = launches(graphs / "fp16.plugins.onnx")
    assert {launch.constants["MODE"] for launch in found.values()} == {3}
    assert sorted(launch.sizes["n"] for launch in found.values()) == [16, 36]


@pytest.mark.skipif(not backend("tensorrt-rtx").installed(), reason="TensorRT-RTX is not installed")
def test_tensorrt_makes_plugins_of_them_and_adds_no_launch(graphs):
    command = [sys.executable, str(ROOT / "scripts" / "plugin_launches"), str(graphs / "fp16.plugins.onnx"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["plugins"], found["blocks"]) == (DEPTH, [{}] * DEPTH)
