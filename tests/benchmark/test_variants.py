"""Which rows a command line means, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from bench_files import folder_of, outer_product, save

from structsam_export.backends.base import Engine
from structsam_export.benchmark import variants_of
from structsam_export.errors import ArtifactError, MissingRuntimeError, UsageError
from structsam_export.folder import ExportFolder

SMALL = outer_product(4, 4)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An output folder and a file of someone else, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "mine", SMALL)
    save(SMALL, tmp_path / "peer.onnx")
    return tmp_path


def names(*targets, runners=("ort-cpu",)):
    return [v.name for v in variants_of(targets, runners)]


def test_names_of_targets(place):
    assert names("mine") == ["mine"]
    assert names(str(place / "mine") + "/") == ["mine"]
    assert names("ours=mine", "theirs=peer.onnx") == ["ours", "theirs"]
    # A file's own name says little: encoder.onnx is one of many.
    assert names("mine/encoder.raw.onnx", "mine/encoder.onnx") == ["mine/encoder.raw.onnx", "mine/encoder.onnx"]
    assert names("peer.onnx") == [f"{place.name}/peer.onnx"]


def test_paths_with_an_equals_sign(place):
    folder_of(place / "lr=3", SMALL)
    assert names("lr=3", "named=lr=3") == ["lr=3", "named"]
    assert variants_of(["named=lr=3"], ["ort-cpu"])[0].file == Path("lr=3/encoder.onnx")


def test_every_target_on_every_runner(place):
    both = variants_of(["mine"], ["eager", "ort-cpu"])
    assert [v.name for v in both] == ["mine eager", "mine ort-cpu"]
    assert [v.file for v in both] == [Path("mine"), Path("mine/encoder.onnx")]
    assert {v.onnx for v in both} == {Path("mine/encoder.onnx")}


def test_a_runner_given_twice_runs_once(place):
    assert names("mine", runners=("ort-cpu", "ort-cpu")) == ["mine"]


@pytest.mark.parametrize(
    ("targets", "runners", "error", "message"),
    [
        (["mine", "mine"], ["ort-cpu"], UsageError, "Two targets are called 'mine'"),
        (["x=mine", "x=peer.onnx"], ["ort-cpu"], UsageError, "NAME=PATH"),
        (["mine"], ["ort-cup"], UsageError, "Did you mean 'ort-cpu'"),
        (["peer.onnx"], ["eager"], ArtifactError, "needs an export folder"),
        (["nowhere"], ["ort-cpu"], ArtifactError, "nowhere does not exist"),
        (["."], ["ort-cpu"], ArtifactError, "manifest.json is missing"),
    ],
)
def test_refused(place, targets, runners, error, message):
    with pytest.raises(error, match=message):
        variants_of(targets, runners)


def test_a_folder_that_was_only_traced(place):
    folder_of(place / "traced", SMALL, files=("encoder.raw.onnx",))
    with pytest.raises(ArtifactError, match=r"lists no encoder\.onnx"):
        variants_of(["traced"], ["ort-cpu"])


@pytest.mark.parametrize("runner", ["ort-cpu", "eager"])
def test_a_changed_file_is_refused(place, runner):
    save(outer_product(5, 4), place / "mine" / "encoder.onnx")
    with pytest.raises(ArtifactError, match="was changed"):
        variants_of(["mine"], [runner])


@pytest.mark.parametrize("runner", ["tensorrt", "tensorrt-rtx", "tensorrt-rtx-graph"])
@pytest.mark.parametrize("installed", [True, False])
def test_engines_without_a_gpu(place, monkeypatch, runner, installed):
    monkeypatch.setattr("structsam_export.backends.base.Backend.installed", lambda self: installed)
    monkeypatch.setattr("structsam_export.backends.cuda._device", lambda: None)
    with pytest.raises(MissingRuntimeError, match="no CUDA device" if installed else "pip install"):
        variants_of(["mine"], [runner])


def test_ort_without_cuda(place, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingRuntimeError, match="onnxruntime-gpu"):
        variants_of(["mine"], ["ort-cuda"])


def test_openvino_runs_files_and_folders(place):
    found = variants_of(["mine", "peer.onnx"], ["openvino", "openvino-f32"])
    assert [v.name.partition(" ")[2] for v in found] == ["openvino", "openvino-f32"] * 2
    assert [v.file.name for v in found] == ["encoder.onnx"] * 2 + ["peer.onnx"] * 2


def test_the_engine_of_this_gpu_is_chosen(place, monkeypatch):
    monkeypatch.setattr("structsam_export.backends.base.Backend.installed", lambda self: True)
    monkeypatch.setattr("structsam_export.backends.cuda._device", lambda: ("a GPU", "sm89"))
    with pytest.raises(ArtifactError, match="structsam-export build mine"):
        variants_of(["mine"], ["tensorrt-rtx"])
    folder = ExportFolder.read(place / "mine")
    for part, backend, sm in (
        ("encoder", "tensorrt-rtx", "sm86"),
        ("decoder", "tensorrt-rtx", "sm89"),
        ("encoder", "tensorrt", "sm89"),
        ("encoder", "tensorrt-rtx", "sm89"),
    ):
        name = f"{part}.{backend}-1.0-{sm}.engine"
        (place / "mine" / name).write_text(name)
        folder.add_engine(Engine(name, part, backend, "1.0", sm, "0" * 64, 1))
    folder.write()
    for runner in ("tensorrt-rtx", "tensorrt-rtx-graph"):
        found = variants_of(["mine"], [runner])[0]
        assert found.file.name == "encoder.tensorrt-rtx-1.0-sm89.engine"
        assert found.onnx.name == "encoder.onnx"
    (place / "mine" / "encoder.tensorrt-rtx-1.0-sm89.engine").write_text("another")
    with pytest.raises(ArtifactError, match="was changed"):
        variants_of(["mine"], ["tensorrt-rtx"])
