"""What every backend must do; a toy backend of one file and one line gets all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench_files import dense

from structsam_export import backends
from structsam_export.backends import BACKENDS, backend, bench_runners, choose_backend, choose_engines
from structsam_export.backends.base import Engine, RunOptions
from structsam_export.backends.plugin_library import BESIDE
from structsam_export.config import ExportConfig
from structsam_export.doctor import diagnose
from structsam_export.errors import ArtifactError, MissingRuntimeError, UsageError
from structsam_export.folder import companion
from structsam_export.pipeline import export
from structsam_export.validate import latency


@pytest.fixture(params=[*BACKENDS, "toy"])
def name(request, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(backends.BACKENDS, "toy", "toy_backend:Toy")
    return request.param


@pytest.fixture
def own(name):
    return backend(name)


@pytest.fixture
def encoder(tmp_path):
    """A tiny stock encoder as an ONNX file."""
    onnx.save(onnx.shape_inference.infer_shapes(dense()), str(tmp_path / "encoder.onnx"))
    return tmp_path / "encoder.onnx"


@pytest.fixture
def built(own, encoder, tmp_path):
    """What a backend makes of it for its default targets here."""
    if not own.BUILDS or not own.installed():
        with pytest.raises((UsageError, MissingRuntimeError, ImportError)):
            own.check_build()
            own.build(encoder, tmp_path, "encoder", "auto", {})
        return []
    try:
        own.check_build()
    except MissingRuntimeError:
        return []
    return [own.build(encoder, tmp_path, "encoder", target, {}) for target in own.targets("auto")]


def test_it_is_known_by_its_name(name, own):
    assert name == own.NAME and own.INSTALL
    assert ExportConfig(backend=name).backend == name
    for runner, how in own.RUNNERS.items():
        assert bench_runners()[runner] == (name, how)


def test_doctor_tells_what_it_can_do(name, own):
    row = diagnose()["backends"][name]
    assert row["installed"] == own.installed()
    assert row["can"] and (row["installed"] or row["to_do"] == own.INSTALL)


def test_what_is_not_installed_is_refused_with_the_command(own, monkeypatch):
    monkeypatch.setattr(type(own), "installed", lambda self: False)
    for refused in (own.check_installed, own.check_build, own.check_run):
        with pytest.raises(MissingRuntimeError, match="pip install|nothing"):
            refused()
    assert not own.runs_here()


def test_unknown_targets_are_refused(own):
    if own.installed():
        with pytest.raises((UsageError, MissingRuntimeError), match=r"target|GPU"):
            own.targets("sm1,nonsense")


def test_an_engine_is_a_file_named_for_what_it_is(name, own, built, tmp_path):
    for engine in built:
        path = tmp_path / engine.file
        assert path.is_file() and engine.bytes > 0
        assert engine.file.startswith(f"encoder.{name}-{engine.version}-{engine.sm}.")
        assert (engine.part, engine.backend, engine.executed) == ("encoder", name, False)
        assert Engine.from_dict(engine.to_dict()) == engine
        beside, plugins = companion(engine.file), BESIDE.format(name=engine.file)
        left = {p.name for p in tmp_path.iterdir()}
        assert left >= ({engine.file, beside} - {None, plugins}), "and nothing else is left"
        assert plugins not in left, "without a plugin library there is no archive of one"
        assert not [p for p in left if p.startswith(".")]


def test_engines_of_this_machine_compute_what_onnx_runtime_does(own, built, encoder, tmp_path):
    feed = {"image": np.random.default_rng(0).normal(size=(1, 3, 96, 96)).astype(np.float32)}
    with backend("onnxruntime").runner(encoder, "reference") as reference:
        assert reference.inputs == {"image": (1, 3, 96, 96)}
        want = reference.infer(feed)["image_embeddings"]
        assert reference.seconds > 0
    for engine in built:
        if own.fits(engine):
            with own.runner(tmp_path / engine.file, "engine") as runner:
                first = runner.infer(feed)["image_embeddings"]
                runner.infer({"image": 0 * feed["image"]})  # results are copies, which this leaves alone
                assert runner.inputs == reference.inputs and runner.seconds > 0
            assert np.abs(first - want).max() <= 2e-2 * np.abs(want).max()


def test_a_graph_that_cannot_be_read_is_refused(own, tmp_path):
    (tmp_path / "encoder.onnx").write_bytes(b"nonsense")
    if own.NAME in ("tensorrt-rtx", "openvino"):
        with pytest.raises(ArtifactError):
            own.build(tmp_path / "encoder.onnx", tmp_path, "encoder", own.targets("auto")[0], {})
        assert [p.name for p in tmp_path.iterdir()] == ["encoder.onnx"]


def test_a_whole_export_with_it(name, own, tiny_model, tmp_path, monkeypatch):
    """Engines that run here are executed, judged and timed; the others stay built."""
    monkeypatch.setattr(latency, "ROUNDS", 1)
    try:
        own.check_build()
    except MissingRuntimeError:
        with pytest.raises(MissingRuntimeError):
            export(ExportConfig(model="tiny", checkpoint=str(tiny_model), backend=name), tmp_path / "out")
        return
    config = ExportConfig(
        model="tiny", checkpoint=str(tiny_model), backend=name, target=(*own.targets("auto"), "auto")[0]
    )
    report, _ = export(config, tmp_path / "out")
    assert report["passed"], report["parity"]
    runs = own.BUILDS and own.runs_here()
    assert ("engine" in report["parity"]) == ("engine" in report["latency"]) == runs
    assert {e["executed"] for e in report["engines"]} == ({runs} if own.BUILDS else set())
    assert (report["engine"] or {}).get("backend") == (name if own.BUILDS else None)


def engine(part, name, sm, version="1.0"):
    return Engine(f"{part}.{name}-{version}-{sm}.engine", part, name, version, sm, "0" * 64, 1)


@pytest.fixture
def gpu(monkeypatch):
    """As if an sm89 and both TensorRTs were here."""
    monkeypatch.setattr("structsam_export.backends.cuda._device", lambda: ("a GPU", "sm89"))
    monkeypatch.setattr("structsam_export.backends.base.Backend.installed", lambda self: True)


def test_the_engines_of_this_machine_are_one_pair(gpu):
    """Of one backend, version and SM: never the encoder of one with the decoder of another."""
    every = [
        engine("encoder", "tensorrt-rtx", "sm86"),
        engine("decoder", "tensorrt-rtx", "sm86"),
        engine("encoder", "tensorrt", "sm89"),
        engine("decoder", "tensorrt-rtx", "sm89"),
    ]
    assert choose_engines(every) is None, "no backend has both parts for this GPU"
    every.append(engine("encoder", "tensorrt-rtx", "sm89"))
    pair = choose_engines(every)
    assert pair.backend.NAME == "tensorrt-rtx" and pair.encoder.sm == pair.decoder.sm == "sm89"
    every.append(engine("decoder", "tensorrt", "sm89"))
    assert choose_engines(every).backend.NAME == "tensorrt", "preferred where both fit, whatever came first"
    assert choose_engines(every, "tensorrt-rtx").backend.NAME == "tensorrt-rtx"
    assert choose_engines(every, "openvino") is None


def test_of_two_builds_the_later_one_counts(gpu):
    old = [engine(part, "tensorrt", "sm89", "1.0") for part in ("encoder", "decoder")]
    new = [engine(part, "tensorrt", "sm89", "2.0") for part in ("encoder", "decoder")]
    assert choose_engines([*old, *new]).encoder.version == "2.0"


def test_auto_builds_without_a_gpu(monkeypatch):
    monkeypatch.setattr("structsam_export.backends.cuda._device", lambda: None)
    assert choose_backend("auto").NAME == "tensorrt-rtx"
    assert choose_backend("none") is None
    with pytest.raises(UsageError, match="Did you mean 'openvino'"):
        choose_backend("openvin")
    monkeypatch.setattr("structsam_export.backends.base.Backend.installed", lambda self: False)
    assert choose_backend("auto") is None


def test_auto_prefers_the_full_library_on_a_gpu(gpu):
    assert choose_backend("auto").NAME == "tensorrt"
    assert backend("tensorrt").targets("auto") == backend("tensorrt-rtx").targets("auto") == ("current",)


def test_providers_of_onnx_runtime(monkeypatch):
    import onnxruntime

    own = backend("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert own.providers() == ["cpu"]
    with pytest.raises(MissingRuntimeError, match=r"\[gpu\]"):
        own.runner(Path("x"), "x", RunOptions(provider="cuda"))
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    assert own.providers() == ["cpu", "cuda"]
    assert replace(RunOptions(), provider="cuda") == own.RUNNERS["ort-cuda"].options
