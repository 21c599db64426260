"""OpenVINO: precisions, files, and decisions read from inside the compiled model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench_files import merged
from demo_exports import demo_export

from structsam_export.backends import backend, openvino
from structsam_export.backends.base import RunOptions
from structsam_export.config import ExportConfig
from structsam_export.errors import MissingRuntimeError, UsageError
from structsam_export.folder import ExportFolder
from structsam_export.pipeline import build_folder, export, rewrite_folder, validate_folder
from structsam_export.validate import latency

own = backend("openvino")
FEED = {"image": np.random.default_rng(0).normal(size=(1, 3, 96, 96)).astype(np.float32)}


@pytest.fixture
def encoder(tmp_path):
    onnx.save(merged(), str(tmp_path / "encoder.onnx"))
    return tmp_path / "encoder.onnx"


def test_files_say_their_precision_and_are_read_with_it(encoder, tmp_path):
    made = {target: own.build(encoder, tmp_path, "encoder", target, {}) for target in ("f32", "bf16", "f16")}
    for target, engine in made.items():
        path = tmp_path / engine.file
        assert path.name == f"encoder.openvino-{own.version()}-{target}.xml"
        assert path.with_suffix(".bin").is_file()
        assert openvino.written_for(openvino.read(path)) == target
        assert own.fits(engine) == (target in openvino.precisions_here())
    assert made["f32"].options == {"computes_in": "f32"} and own.precision(made["f32"], "fp16") == "fp32"
    weights = {t: (tmp_path / e.file).with_suffix(".bin").stat().st_size for t, e in made.items()}
    assert weights["f16"] < 0.7 * weights["f32"]


def test_decisions_are_told_where_they_are_asked_for(encoder, tmp_path):
    names = [o.name for o in onnx.load(str(encoder)).graph.output]
    model = onnx.load(str(encoder))
    del model.graph.output[1:]
    onnx.save(model, str(tmp_path / "one.onnx"))
    engine = own.build(tmp_path / "one.onnx", tmp_path, "encoder", "f32", {})
    with own.runner(tmp_path / engine.file, "plain") as runner:
        assert list(runner.infer(FEED)) == ["image_embeddings"]
    with own.runner(tmp_path / engine.file, "telling", RunOptions(outputs=tuple(names[1:]))) as runner:
        told = runner.infer(FEED)
    with backend("onnxruntime").runner(encoder, "reference") as reference:
        want = reference.infer(FEED)
    # Sources are not used by cells, so that the graph no longer holds them.
    assert {f"plan.{i}.{part}" for i in range(3) for part in ("pos", "slot")} <= set(told) <= set(want)
    assert all(np.array_equal(told[name], want[name]) for name in told if name != "image_embeddings")


def test_a_precision_this_processor_lacks_is_refused(encoder, monkeypatch):
    monkeypatch.setattr(openvino, "precisions_here", lambda: ("f32",))
    with pytest.raises(MissingRuntimeError, match="computes in f32, not in bf16"):
        own.runner(encoder, "x", RunOptions(precision="bf16"))
    assert own.targets("auto") == ("f32",)
    monkeypatch.setattr(openvino, "precisions_here", lambda: ("f32", "bf16"))
    assert own.targets("auto") == ("bf16",)
    assert own.targets("f16, F32") == ("f16", "f32")
    with pytest.raises(UsageError, match="Choose from: f32, bf16, f16"):
        own.targets("sm86")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demo model, built and executed; what was built for others is forgotten by rewriting."""
    folder = rewrite_folder(Path(shutil.copytree(demo_export(), tmp_path_factory.mktemp("openvino") / "out"))).path
    build_folder(folder, "openvino", "f32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 1)
        return validate_folder(folder), folder


def test_the_demo_model_is_executed_and_exact(exported):
    report, folder = exported
    assert report["passed"] and report["config"]["precision"] == "fp32"
    row = report["parity"]["engine"]
    assert row["against"] == "onnx" and row["gates"]["max_rel"] == 1e-4
    assert row["mask_iou_mean"] >= 0.9999 and row["decision_agreement"] is not None
    assert report["engine"]["executed"] and report["engine"]["sm"] == "f32"
    manifest = ExportFolder.read(folder).manifest
    assert all(engine.executed for engine in manifest.engines)
    assert {p.name for p in folder.iterdir()} == {*manifest.files, "manifest.json"}
    assert sum(name.endswith(".bin") for name in manifest.files) == 2


def test_a_changed_weight_is_refused(exported):
    from structsam_export.errors import ArtifactError

    folder = ExportFolder.read(exported[1])
    pair = folder.engines_here()
    weights = (folder.path / pair.encoder.file).with_suffix(".bin")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(ArtifactError, match="was changed"):
            folder.verified(pair.encoder.file)
    finally:
        weights.write_bytes(content)


def test_an_engine_built_later_joins_the_report(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    config = ExportConfig(model="tiny", checkpoint=str(tiny_model), backend="none", rate=0.5)
    report, folder = export(config, tmp_path / "out")
    assert report["config"]["precision"] == "fp16" and report["engine"] is None
    build_folder(folder, "openvino", "auto")
    report = validate_folder(folder)
    # Built from the FP32 graph, so that is what it is compared with.
    assert report["parity"]["engine"]["against"] == "onnx_fp32" and report["passed"]
