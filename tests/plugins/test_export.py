"""Exports with fused operators: matched where they must be, and right on every runtime that runs here."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from fused_graphs import IMAGE, KINDS, fused_encoders
from graphs import run, traced
from small_exports import rewritten

from structsam_export.backends import backend
from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.folder import ExportFolder
from structsam_export.fused import DOMAIN, PLUGINS, chosen, without_functions
from structsam_export.graphs import load
from structsam_export.macs import graph_macs
from structsam_export.methods.plan import MergePlan
from structsam_export.pipeline import export, rewrite_folder
from structsam_export.precision import low_types
from structsam_export.precision.inference import tensor_types
from structsam_export.rewrite import apply_plugins, rewrite
from structsam_export.validate.decisions import readable
from structsam_export.validate.stages import decisions_for

DEPTH = 3
LAYERS = tuple(range(DEPTH))
# What merging adds to a dense block, where nothing is fused.
ADDED = {
    "TopK",
    "ScatterElements",
    "GatherElements",
    "Gather",
    "ReduceL2",
    "ReduceMean",
    "ReduceMax",
    "ArgMin",
    "Softmax",
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A folder with encoders of structsam in all three blocks: KIND.onnx, and KIND.plugins.onnx with all plugins."""
    folder = tmp_path_factory.mktemp("plugins")
    for made in fused_encoders(folder, "structsam", "cell", LAYERS):
        assert made.counts == {f"use_plugin.{name}": DEPTH for name in PLUGINS}
        assert made.skipped == () and made.nodes < made.nodes_before - 30 * DEPTH
    return folder


def fused_nodes(model):
    return [n for n in model.graph.node if n.domain == DOMAIN]


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_has_each_operator_once(graphs, kind):
    model = load(graphs / f"{kind}.plugins.onnx")  # with all its checks of functions
    assert sorted(n.op_type for n in fused_nodes(model)) == sorted([*PLUGINS.values()] * DEPTH)
    assert sorted(f.name for f in model.functions) == sorted(PLUGINS.values())
    assert not ADDED & {n.op_type for n in model.graph.node}
    for node in fused_nodes(model):
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert (given["plugin_namespace"], given["plugin_version"]) == (b"structsam", b"1")
        assert all(type(v) is int for name, v in given.items() if not name.startswith("plugin_"))


@pytest.mark.parametrize("kind", KINDS)
def test_operators_have_the_types_around_them(graphs, kind):
    model = onnx.load(str(graphs / f"{kind}.plugins.onnx"))
    types, low = tensor_types(model), low_types(model)
    assert (kind == "fp32") == (not low)
    for node in fused_nodes(model):
        reads = [name in low for name in node.input]
        expected = {
            "TokenEnergy": [False],
            "MergePlan": [False],
            "TokenMerge": [True, False],
            "TokenUnmerge": [True, False, False],
            "RelposAttention": [True] * 4 + [False],
        }[node.op_type]
        assert reads == ([False] * len(reads) if kind == "fp32" else expected)
        assert all(name in types for name in node.output)


def test_functions_compute_what_the_graph_did(graphs):
    before = run(onnx.load(str(graphs / "fp32.onnx")), {"image": IMAGE})["image_embeddings"]
    after = run(onnx.load(str(graphs / "fp32.plugins.onnx")), {"image": IMAGE})["image_embeddings"]
    assert 0 < np.abs(after - before).max() < 2e-6 * np.abs(before).max()


def test_functions_compute_in_fp16(graphs):
    exact = run(onnx.load(str(graphs / "fp32.onnx")), {"image": IMAGE})["image_embeddings"]
    half, fused = (run(onnx.load(str(graphs / f"fp16{x}.onnx")), {"image": IMAGE}) for x in ("", ".plugins"))
    errors = [np.abs(made["image_embeddings"] - exact) for made in (half, fused)]
    assert 0 < np.median(errors[1]) < 1.5 * np.median(errors[0])
    assert errors[1].max() < 5e-3 * np.abs(exact).max()


@pytest.mark.parametrize("name", PLUGINS)
def test_each_plugin_alone(graphs, tmp_path, name):
    """Plans are int64 where one side of them is not fused."""
    made = apply_plugins(graphs / "fp32.onnx", tmp_path / "one.onnx", (name,))
    assert made.counts == {f"use_plugin.{name}": DEPTH}
    model = onnx.load(str(tmp_path / "one.onnx"))
    assert {n.op_type for n in fused_nodes(model)} == {PLUGINS[name]}
    before = run(onnx.load(str(graphs / "fp32.onnx")), {"image": IMAGE})["image_embeddings"]
    after = run(model, {"image": IMAGE})["image_embeddings"]
    assert np.abs(after - before).max() < 2e-6 * np.abs(before).max()


def test_a_second_run_finds_nothing(graphs, tmp_path):
    made = apply_plugins(graphs / "fp32.plugins.onnx", tmp_path / "again.onnx", tuple(PLUGINS))
    assert set(made.counts.values()) == {0} and made.nodes == made.nodes_before
    assert {f.name for f in load(tmp_path / "again.onnx").functions} == set(PLUGINS.values())


def test_none_copies_the_file(graphs, tmp_path):
    assert apply_plugins(graphs / "fp32.onnx", tmp_path / "same.onnx", ()).counts == {}
    assert (tmp_path / "same.onnx").read_bytes() == (graphs / "fp32.onnx").read_bytes()


def test_macs_are_those_of_the_products_left(graphs):
    """Attention by lines needs no product of one-hots, and relative positions are one product for all of them."""
    plain, fused = (graph_macs(graphs / f"fp32{x}.onnx") for x in ("", ".plugins"))
    assert 0.8 * plain < fused < 1.1 * plain


@pytest.mark.parametrize(("method", "variant"), [("none", "dense"), ("tome", "alternate"), ("cubist", "window")])
def test_unrelated_graphs_are_left_alone(method, variant, tmp_path):
    """Other methods have no cells that are equal groups, and dense blocks merge nothing."""
    onnx.save(traced(method, variant, () if method == "none" else LAYERS, 2), str(tmp_path / "raw.onnx"))
    rewrite(tmp_path / "raw.onnx", tmp_path / "plain.onnx", keep_outputs=("image_embeddings",))
    made = apply_plugins(
        tmp_path / "plain.onnx", tmp_path / "fused.onnx", ("token_merge", "token_energy", "merge_plan")
    )
    assert set(made.counts.values()) == {0}


def test_proportional_attention_and_its_plan_are_left_alone(tmp_path):
    """RelposAttention knows no sizes, MergePlan no spread; the dense block's attention is fused."""
    onnx.save(traced("structsam", "proportional", LAYERS[:2], 2), str(tmp_path / "raw.onnx"))
    rewrite(tmp_path / "raw.onnx", tmp_path / "plain.onnx", keep_outputs=("image_embeddings",))
    made = apply_plugins(tmp_path / "plain.onnx", tmp_path / "fused.onnx", tuple(PLUGINS))
    found = {name.removeprefix("use_plugin."): count for name, count in made.counts.items()}
    assert found == {"token_energy": 2, "token_merge": 2, "token_unmerge": 2, "merge_plan": 0, "relpos_attention": 1}
    before, after = (run(onnx.load(str(tmp_path / f)), {"image": IMAGE}) for f in ("plain.onnx", "fused.onnx"))
    error = np.abs(after["image_embeddings"] - before["image_embeddings"]).max()
    assert error < 2e-6 * np.abs(before["image_embeddings"]).max()


def test_a_changed_plan_is_no_match(graphs, tmp_path):
    """The same nodes with another table: what is not MergePlan's or TokenMerge's numbers stays as it is."""
    graph = gs.import_onnx(onnx.load(str(graphs / "fp32.onnx")))
    for node in graph.nodes:
        if node.op == "TopK":
            node.attrs["largest"] = 1
        if node.op == "ReduceL2":
            node.op = "ReduceL1"
    onnx.save(gs.export_onnx(graph), str(tmp_path / "other.onnx"))
    made = apply_plugins(tmp_path / "other.onnx", tmp_path / "fused.onnx", ("token_energy", "merge_plan"))
    assert set(made.counts.values()) == {0}


def test_relative_positions_that_are_none_are_no_match(graphs, tmp_path):
    """A table that does not depend on differences of lines alone."""
    graph = gs.import_onnx(onnx.load(str(graphs / "fp32.onnx")))
    changed = 0
    for node in graph.nodes:
        table = node.inputs[0] if node.op == "Gather" else None
        if isinstance(table, gs.Constant) and table.values.dtype == np.float32 and table.values.ndim == 3:
            table.values = table.values + np.random.default_rng(0).random(table.values.shape, np.float32)
            changed += 1
    assert changed
    onnx.save(gs.export_onnx(graph), str(tmp_path / "other.onnx"))
    made = apply_plugins(tmp_path / "other.onnx", tmp_path / "fused.onnx", ("relpos_attention",))
    assert made.counts == {"use_plugin.relpos_attention": 0}


def test_openvino_reads_them_inlined(graphs):
    own = backend("openvino")
    if not own.installed():
        pytest.skip("OpenVINO is not installed")
    before = run(onnx.load(str(graphs / "fp32.onnx")), {"image": IMAGE})["image_embeddings"]
    from structsam_export.backends.base import RunOptions

    with own.runner(graphs / "fp32.plugins.onnx", "inlined", RunOptions(precision="f32")) as runner:
        after = runner.infer({"image": IMAGE})["image_embeddings"]
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    with without_functions(graphs / "fp32.onnx") as same:
        assert same == graphs / "fp32.onnx"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_export_passes_its_gates(precision, shared_model, tmp_path):
    """Decisions included: those of the fused plan are read, and given where they differ."""
    from structsam_export.validate import latency

    config = ExportConfig(
        model="shared",
        checkpoint=str(shared_model),
        rate=0.5,
        layers="0,1",
        precision=precision,
        plugins="all",
        backend="none",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 1)
        report, path = export(config, tmp_path / "out")
    assert report["passed"]
    folder = ExportFolder.read(path)
    counts = folder.manifest.results.rewrite["encoder"]
    merging = dict.fromkeys(PLUGINS, 2)
    depth = folder.geometry["depth"]  # blocks that do not merge attend, too
    assert {name: counts[f"use_plugin.{name}"] for name in PLUGINS} == merging | {"relpos_attention": depth}
    assert report["parity"]["onnx"]["decision_agreement"] is not None
    session = ort.InferenceSession(str(folder.onnx("encoder")), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["image_embeddings"]
    # Once more from its traces: the same file.
    before = folder.digests("encoder.onnx")
    assert rewrite_folder(path).digests("encoder.onnx") == before


def test_decisions_of_fused_plans_are_read_and_given(graphs):
    """In int32, whatever PyTorch decides in; what the graph decides itself is told beside."""
    plans = {f"plan.{i}": MergePlan for i in LAYERS}
    raw = run(onnx.load(str(graphs / "raw.onnx")), {"image": IMAGE})
    with readable(graphs / "fp32.plugins.onnx", plans) as copy:
        told = run(onnx.load(str(copy)), {"image": IMAGE})
    own = [f"plan.{i}.{part}" for i in LAYERS for part in ("pos", "slot")]
    assert set(told) == {"image_embeddings", *own}
    assert all(np.array_equal(told[name], raw[name]) for name in own)
    other = {name: np.roll(value, 1, 0) for name, value in raw.items()}  # plans of another window
    with readable(graphs / "fp32.plugins.onnx", plans, given=True) as copy:
        feed = {"image": IMAGE}
        given = decisions_for(copy, {name: value[:1] for name, value in raw.items()}, {"image": IMAGE[:1]})
        assert {name: value.dtype for name, value in given.items()} == dict.fromkeys(own, np.dtype(np.int32))
        model = onnx.load(str(copy))
        same = run(model, feed | {name: raw[name].astype(np.int32) for name in own})
        moved = run(model, feed | {name: other[name].astype(np.int32) for name in own})
    assert np.allclose(same["image_embeddings"], raw["image_embeddings"], atol=1e-5)
    assert not np.allclose(moved["image_embeddings"], raw["image_embeddings"], atol=1e-3)
    assert np.array_equal(moved["plan.0.pos.computed"], raw["plan.0.pos"])


def test_build_puts_them_into_the_engine_alone(shared_model, tmp_path, in_process):
    """The folder's graphs stay as they are; nothing is registered here, so that TensorRT inlines the functions."""
    if not backend("tensorrt-rtx").installed():
        pytest.skip("TensorRT-RTX is not installed")
    folder = rewritten(tmp_path / "out", model="shared", checkpoint=str(shared_model), rate=0.5, layers="0,1")
    before = ExportFolder.read(folder).digests("encoder.onnx")
    some = "token_merge,token_unmerge"
    code, out, err = in_process("build", folder, "--backend", "tensorrt-rtx", "--target", "sm89", "--plugins", some)
    assert code == 0, err
    assert "token_unmerge 2, token_merge 2" in out + err and "no plugin is registered" in out + err
    made = ExportFolder.read(folder)
    options = {engine.part: engine.options for engine in made.manifest.engines}
    assert options["encoder"]["plugins"] == ["token_unmerge", "token_merge"]
    assert "plugins" not in options["decoder"] and "plugin_layers" not in options["encoder"]
    assert made.digests("encoder.onnx") == before
    code, _, err = in_process("build", folder, "--plugins", "all_of_them")
    assert code == 2 and "Choose from: none, all" in err


def test_names():
    assert chosen("none") == () and chosen("all") == tuple(PLUGINS)
    assert chosen("merge_plan, relpos_attention") == ("relpos_attention", "merge_plan")
    with pytest.raises(UsageError, match="Choose from: none, all, relpos_attention"):
        ExportConfig(plugins="fast_things")
    with pytest.raises(UsageError, match="portable graphs"):
        ExportConfig(plugins="all", form="openvino")
    assert ExportConfig(plugins="all").folder_name(0.5).endswith("-auto-plugins")
