"""The main job on the bundled model: files, report, parity, engines, and single stages on the same folder."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from demo_exports import FEW_PHOTOS, demo_export
from safetensors.torch import load_file, save_file

from structsam_export import job
from structsam_export.cli import main
from structsam_export.config import ExportConfig
from structsam_export.errors import ArtifactError
from structsam_export.files import sha256_of
from structsam_export.folder import ExportFolder
from structsam_export.methods import METHODS, method_class
from structsam_export.methods.base import MergeMethod
from structsam_export.models import load_model
from structsam_export.pipeline import export
from structsam_export.validate import latency


def variant_of(name):
    """A method's first variant whose decisions survive FP16; the others have many ties, which take long."""
    cls = method_class(name)
    return next(variant for variant in cls.VARIANTS if variant not in cls.FP32_VARIANTS)


# What the tests of rewriting trace, too, so that all of them share it: two images, two of the three blocks.
SHARED = {"batch": 2, "layers": "0-1"}


def shared(name):
    """Options of a method's export whose trace others use."""
    return SHARED if issubclass(method_class(name), MergeMethod) else {}


# Every variant with every MLP policy is in test_matrix.py, an hour; here is each method once, and what only some do.
CASES = [{"method": name, "variant": variant_of(name), **shared(name), "backend": "none"} for name in METHODS]
CASES += [
    {"method": "structsam", "variant": "bsm", **SHARED},
    {"method": "structsam", "variant": "proportional", **SHARED},
    {"method": "structsam", "prompt_aware": True, "mlp": "merge"},
    {"method": "sparsesam", "rate": 0.6, "mlp": "residual-consistency", "mlp_density": 0.4},
    {"method": "structsam"},
    {"method": "structsam", "form": "attention", "opset": 23, "batch": 2, "backend": "none"},
    {"method": "structsam", "form": "ort-cpu", "backend": "auto"},
]
RARE = [
    {"method": "sparsesam", "variant": "diagonal"},
    {"method": "algm", "rate": "0.3:0-1,0.5:2", "mlp": "residual-consistency", "backend": "none"},
    {"method": "tome", "compat": "thesis", "backend": "none"},
]
CASES += [pytest.param(case, marks=pytest.mark.slow) for case in RARE]
OWN_OPERATORS = {"portable": set(), "attention": {"Attention"}, "ort-cpu": {"MultiHeadAttention", "Scan"}}
# Of the whole registry, one of each kind on the model that is shipped; the others run on the tiny one.
KINDS = [
    {"method": "sparsesam", "rate": 0.6},
    {"method": "cubist"},
    {"method": "structsam", "prompt_aware": True, "mlp": "merge"},
]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A copy of the full run that all tests share (structsam .5, FP32, TensorRT-RTX engines)."""
    return Path(shutil.copytree(demo_export(), tmp_path_factory.mktemp("export") / "out"))


def run_export(folder: Path, **given) -> Path:
    """FP32 throughout, whose gates are for exactness; on one bundled photo."""
    plain = {"rate": 0.5 if given["method"] != "none" else None, "backend": "tensorrt-rtx"}
    config = ExportConfig(**{**plain, **given}, precision="fp32", target="sm86")
    with mock.patch.object(job, "VALIDATION_MACS", 1), mock.patch.object(latency, "ROUNDS", 1):
        report, made = export(config, folder)
    assert made == folder
    check_parity(report)
    return folder


def check_parity(report) -> None:
    """Passed, within the gates of FP32, and decided alike but for ties."""
    assert report["passed"], report["parity"]
    assert list(report["parity"]) == ["onnx_raw", "onnx"]
    for row in report["parity"].values():
        assert row["max_rel"] <= 1e-4
        assert row["mask_iou_mean"] >= 0.9999
        assert row["decision_agreement"] in (None, 1.0) or row["ties"]["ties"] == row["ties"]["differ"] > 0


@pytest.fixture
def copy(exported, tmp_path):
    """A copy to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_report_has_the_stable_keys_and_passes(exported):
    report = report_of(exported)
    stable = [
        "schema",
        "model",
        "method",
        "rate",
        "layers",
        "tokens",
        "macs",
        "rewrite",
        "parity",
        "quality",
        "latency",
        "engine",
        "passed",
    ]
    assert set(stable) <= set(report)
    check_parity(report)
    assert report["layers"] == list(range(8))
    assert report["tokens"] == {
        "global": {"N": 1024, "n": 514, "effective_rate": 0.498047},
        "window": {"N": 144, "n": 72, "effective_rate": 0.5},
    }
    for stage in ("onnx_raw", "onnx"):
        row = report["parity"][stage]
        assert row["mask_iou_mean"] >= 0.9999
        assert row["decision_agreement"] == 1.0
        assert row["max_rel"] <= 1e-4
    assert report["macs"]["graph"] < report["macs"]["paper"] < report["macs"]["dense"]
    assert report["graph"]["encoder"]["nodes"] <= 620
    assert report["quality"]["miou_vs_dense"] > 0.5
    for name in ("dense", "eager", "onnx_raw", "onnx"):
        row = report["latency"][name]
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]


def test_engines_are_built_and_recorded(exported):
    report, manifest = report_of(exported), ExportFolder.read(exported).manifest
    assert {e["part"] for e in report["engines"]} == {"encoder", "decoder"}
    for engine in report["engines"]:
        path = exported / engine["file"]
        assert re.fullmatch(rf"{engine['part']}\.tensorrt-rtx-\d+\.\d+\.\d+-sm86\.engine", path.name)
        assert path.stat().st_size == engine["bytes"] > 1_000_000
        assert sha256_of(path) == engine["sha256"] == manifest.files[path.name]["sha256"]
    assert report["engine"]["backend"] == "tensorrt-rtx"


def test_manifest_covers_every_file(exported):
    manifest = ExportFolder.read(exported).manifest
    assert {p.name for p in exported.iterdir()} == {*manifest.files, "manifest.json"}
    for name, record in manifest.files.items():
        assert sha256_of(exported / name) == record["sha256"]


def test_html_report_stands_alone(exported):
    page = (exported / "report.html").read_text()
    assert "Passed" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    for title in ("Parity", "Quality", "latency", "Merged tokens", "Engines"):
        assert title in page
    assert page.count("data:image/jpeg") >= 3 * len(FEW_PHOTOS)


def test_encoder_contract(exported):
    model = onnx.load(str(exported / "encoder.onnx"))
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["image_embeddings"]
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert shape == [1, 256, 32, 32]


def test_decoder_takes_any_number_of_prompts(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported / "decoder.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(1, 256, 32, 32)).astype(np.float32)

    def masks(coords, labels):
        P = len(coords)
        feed = {
            "image_embeddings": embedding,
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": np.zeros((P, 1, 128, 128), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
        }
        return session.run(["low_res_masks", "iou_predictions"], feed)

    for P, K in ((1, 1), (1, 5), (7, 2)):
        coords = rng.uniform(0, 512, (P, K, 2)).astype(np.float32)
        labels = np.ones((P, K), np.int64)
        together, scores = masks(coords, labels)
        assert together.shape == (P, 4, 128, 128)
        assert scores.shape == (P, 4)
        alone, _ = masks(coords[-1:], labels[-1:])
        np.testing.assert_allclose(together[-1:], alone, atol=1e-4)


def test_decoder_uses_a_mask_prompt_like_sam(exported):
    """has_mask_input = 1 feeds the previous mask, against SAM's own prompt encoder and decoder."""
    import onnxruntime
    import torch

    from structsam_export.models import load_model

    sam = load_model("demo").sam
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(1, 256, 32, 32)).astype(np.float32)
    mask = rng.normal(size=(1, 1, 128, 128)).astype(np.float32)
    point = np.array([[[100.0, 200.0]]], np.float32)
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(
            points=(torch.tensor(point), torch.ones(1, 1, dtype=torch.int64)), boxes=None, masks=torch.tensor(mask)
        )
        want, _ = sam.mask_decoder(torch.tensor(embedding), sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    session = onnxruntime.InferenceSession(str(exported / "decoder.onnx"), providers=["CPUExecutionProvider"])
    feed = {
        "image_embeddings": embedding,
        "point_coords": np.concatenate([point, np.zeros((1, 1, 2), np.float32)], 1),
        "point_labels": np.array([[1, -1]], np.int64),
        "mask_input": mask,
        "has_mask_input": np.ones(1, np.float32),
    }
    got = session.run(["low_res_masks"], feed)[0]
    np.testing.assert_allclose(got[:, 1:], want.numpy(), atol=1e-3)
    unused = feed | {"has_mask_input": np.zeros(1, np.float32)}
    plain = session.run(["low_res_masks"], unused)[0]
    unfilled = session.run(["low_res_masks"], unused | {"mask_input": np.full_like(mask, np.nan)})[0]
    assert (plain == unfilled).all() and abs(plain - got).max() > 0.1


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_every_method_exports_static_and_exact(case, shared_model, tmp_path, monkeypatch):
    """Over the registry, on a tiny model, whose MLPs have few rows to cut into portions."""
    monkeypatch.setattr("structsam_export.rewrite.mlp_blocks.ROWS", 8)
    folder = run_export(tmp_path / "out", model="shared", checkpoint=str(shared_model), **case)
    check_graph(folder, case.get("form", "portable"))
    assert bool(list(folder.glob("*.engine"))) == ("backend" not in case)


@pytest.mark.slow
@pytest.mark.parametrize("case", KINDS, ids=lambda case: "-".join(map(str, case.values())))
def test_every_kind_exports_on_the_demo_model(case, tmp_path):
    check_graph(run_export(tmp_path / "out", backend="none", **case), "portable")


def check_graph(folder: Path, form: str) -> None:
    """Forbidden operators, static shapes."""
    graph = onnx.load(str(folder / "encoder.onnx")).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    every = {op for own in OWN_OPERATORS.values() for op in own}
    assert {n.op_type for n in graph.node} & every == OWN_OPERATORS[form]
    for node in graph.node:
        assert node.op_type != "NonZero"
        if node.op_type.startswith("Scatter"):
            reduction = [a.s for a in node.attribute if a.name == "reduction"]
            assert reduction in ([], [b"none"])
        if node.op_type == "TopK":
            assert int(constants[node.input[1]][0]) <= 3840
    for value in [*graph.input, *graph.output, *graph.value_info]:
        dims = value.type.tensor_type.shape.dim
        assert all(d.HasField("dim_value") and d.dim_value > 0 for d in dims), value.name


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.raw.onnx.data", "decoder.onnx"])
def test_changed_onnx_is_refused(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="changed after the manifest was written"):
        ExportFolder.read(copy).verified(name.removesuffix(".data"))
    assert run_cli("validate", copy) == 5


def test_changed_engine_is_refused(copy):
    (engine,) = copy.glob("encoder.*.engine")
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    assert run_cli("validate", copy) == 5


def test_missing_file_is_refused(copy):
    (copy / "decoder.onnx").unlink()
    assert run_cli("validate", copy) == 5


def test_damaged_manifest_is_refused(copy):
    (copy / "manifest.json").write_text('{"config": ')
    assert run_cli("build", copy, "--backend", "none") == 5


def run_cli(*arguments) -> int:
    """Exit code of the command, run in this process."""
    saved = sys.argv
    sys.argv = ["structsam-export", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        sys.argv = saved
    return stopped.value.code


def test_stages_one_by_one(tmp_path, exported, capsys):
    """trace, rewrite, build, validate on a folder give the full run's graphs and verdict."""
    folder = tmp_path / "staged"
    assert run_cli("trace", "--precision", "fp32", "--output", folder) == 0
    assert run_cli("build", folder) == 5, "there is nothing to build before rewriting"
    assert run_cli("rewrite", folder) == 0
    assert run_cli("build", folder, "--backend", "none") == 0
    capsys.readouterr()
    assert run_cli("validate", folder, "--image", *FEW_PHOTOS, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["engine"] is None
    assert report["rewrite"] == report_of(exported)["rewrite"]
    assert run_cli("rewrite", folder) == 0
    assert not (folder / "report.json").exists(), "a report of earlier graphs must not survive rewriting"


def test_broken_graph_fails_parity_and_keeps_its_files(copy):
    """A graph that computes something else ends with exit code 3 and a report that says so."""
    model = onnx.load(str(copy / "encoder.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("blocks.5.mlp.lin2.bias"):
            values = onnx.numpy_helper.to_array(tensor) + 0.05
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            break
    else:
        raise AssertionError("no such weight")
    onnx.save(model, str(copy / "encoder.onnx"))
    folder = ExportFolder.read(copy)
    folder.add("encoder.onnx")
    folder.write()
    assert run_cli("validate", copy) == 3
    report = report_of(copy)
    assert report["passed"] is False
    assert report["parity"]["onnx_raw"]["passed"] is True
    assert report["parity"]["onnx"]["passed"] is False
    assert "FAILED" in (copy / "report.html").read_text()


LOW = [
    {"method": "structsam", "model": "demo"},
    {"method": "structsam", "form": "attention", "opset": 23, "batch": 2},
    {"method": "sparsesam", "variant": "diagonal", "precision": "fp16"},
    {"method": "structsam", "variant": "bsm", "precision": "bf16", **SHARED},
    {"method": "none"},
]


@pytest.mark.parametrize("case", LOW, ids=lambda case: "-".join(map(str, case.values())))
def test_low_precision_passes_its_gates_and_builds(case, shared_model, tmp_path, monkeypatch):
    """FP16 unless told otherwise. The FP32 graph is validated first, as its reference; then the typed one, rounded."""
    monkeypatch.setattr(latency, "ROUNDS", 1)
    folder, kind = tmp_path / "out", case.get("precision", "fp16")
    tiny = {"model": "shared", "checkpoint": str(shared_model)} if "model" not in case else {}
    rate = None if case["method"] == "none" else 0.5
    report, _ = export(ExportConfig(**case, **tiny, rate=rate, backend="tensorrt-rtx", target="sm86"), folder)
    assert report["passed"], report["parity"]
    assert list(report["parity"]) == ["onnx_raw", "onnx_fp32", "onnx"]
    assert report["parity"]["onnx_fp32"]["max_rel"] <= 1e-4
    row = report["parity"]["onnx"]
    assert row["against"] == "onnx_fp32" and row["max_rel"] > 1e-5
    assert report["engine"]["backend"] == "tensorrt-rtx"
    if kind == "fp16":
        assert row["mask_iou_mean"] >= 0.998 and row["mask_iou_min"] >= 0.99
        assert row["decision_agreement"] is None or row["decision_agreement"] >= 0.995
    made = report["precision"]
    assert ExportFolder.read(folder).config.precision == made["kind"] == kind
    assert 0 < max(made["largest"].values()) < 65504 / 4
    assert made["bytes"] <= (0.52 if "model" in case else 0.85) * made["bytes_before"]
    types = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    weights = onnx.load(str(folder / "encoder.onnx")).graph.initializer
    low = sum(t.data_type == types[kind] for t in weights if len(t.dims) == 2)
    assert low >= 4 * (8 if "model" in case else 3)  # in every block two for the MLP, three or four for attention
    assert {p.name for p in folder.iterdir()} == {*ExportFolder.read(folder).manifest.files, "manifest.json"}
    assert "Precision" in (folder / "report.html").read_text()


def test_stages_one_by_one_in_fp16(tiny_model, tmp_path):
    """The default."""
    folder = tmp_path / "staged"
    assert run_cli("trace", "--model", "tiny", "--checkpoint", tiny_model, "--output", folder) == 0
    assert run_cli("rewrite", folder) == 0
    types = {t.data_type for t in onnx.load(str(folder / "encoder.onnx")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    types = {t.data_type for t in onnx.load(str(folder / "encoder.fp32.onnx")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in types
    assert run_cli("validate", folder) == 0
    (folder / "encoder.fp32.onnx").unlink()
    assert run_cli("validate", folder) == 5


def test_existing_output_needs_force(copy):
    before = sha256_of(copy / "report.json")
    assert run_cli("--output", copy, "--backend", "none") == 2
    assert sha256_of(copy / "report.json") == before


def test_another_checkpoint_is_noticed(copy):
    data = json.loads((copy / "manifest.json").read_text())
    data["model"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(data))
    assert run_cli("validate", copy) == 5


def test_the_checkpoint_may_have_moved(copy, tmp_path, capsys):
    where = tmp_path / "moved.safetensors"
    shutil.copy(load_model("demo").checkpoint, where)
    data = json.loads((copy / "manifest.json").read_text())
    data["config"]["checkpoint"] = "gone.safetensors"
    (copy / "manifest.json").write_text(json.dumps(data))
    assert run_cli("validate", copy) == 5
    assert "gone.safetensors" in capsys.readouterr().err
    assert run_cli("validate", copy, "--checkpoint", where) == 0
    capsys.readouterr()

    weights = load_file(where)
    weights["image_encoder.pos_embed"] = weights["image_encoder.pos_embed"] + 1
    save_file(weights, where)
    assert run_cli("validate", copy, "--checkpoint", where) == 5
    assert "is not the checkpoint" in capsys.readouterr().err
