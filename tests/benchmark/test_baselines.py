"""The stock encoder beside an output folder: made once, reused, and made again for other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_files import folder_of, outer_product, save

from structsam_export.benchmark import variants_of
from structsam_export.benchmark.baselines import baselines_of
from structsam_export.config import ExportConfig
from structsam_export.errors import ArtifactError
from structsam_export.folder import ExportFolder
from structsam_export.unmerged import unmerged_beside

SMALL = outer_product(4, 4)
SHA = "a" * 64


@pytest.fixture
def made(monkeypatch):
    """Tracing and rewriting a model takes half a minute: instead, folders as they leave them. Lists what was made."""
    configs = []

    def trace_only(config, output, force):
        configs.append(config)
        return folder_of(output, SMALL, sha256=SHA, files=("encoder.raw.onnx",), **{**vars(config), "rate": 0.0})

    def rewrite_stage(folder):
        save(SMALL, folder.path / "encoder.onnx")
        folder.add("encoder.onnx")
        folder.write()

    monkeypatch.setattr("structsam_export.pipeline.trace_only", trace_only)
    monkeypatch.setattr("structsam_export.pipeline.rewrite_stage", rewrite_stage)
    return configs


def bare(**given):
    """What is exported: the stock encoder in FP32, and no engine."""
    plain = {"checkpoint": "w.pth", "method": "none", "precision": "fp32", "backend": "none", "opset": 20, "batch": 2}
    return ExportConfig(**{**plain, **given})


@pytest.fixture
def ours(tmp_path):
    return folder_of(tmp_path / "mine", SMALL, sha256=SHA, checkpoint="w.pth", rate=0.5, opset=20, batch=2)


def stamps(folder: Path):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_made_once_beside_the_folder_and_reused(made, ours):
    beside = ours.parent / "w-none-r0-fp32"
    targets = baselines_of(str(ours))
    assert targets == [f"plain={beside / 'encoder.raw.onnx'}", f"rewritten={beside}"]
    # The same model in every way but for merging, or it would be compared with something else.
    assert made == [bare()]
    before = stamps(beside)
    assert baselines_of(f"named={ours}") == targets
    assert len(made) == 1 and stamps(beside) == before
    assert [v.name for v in variants_of([*targets, str(ours)], ["ort-cpu"])] == ["plain", "rewritten", "mine"]


def test_rewritten_where_only_traced(made, ours):
    beside = ours.parent / "w-none-r0-fp32"
    config = {**vars(bare()), "rate": 0.0}
    folder_of(beside, SMALL, sha256=SHA, files=("encoder.raw.onnx",), **config)
    baselines_of(str(ours))
    assert made == [] and "encoder.onnx" in ExportFolder.read(beside).manifest.files


@pytest.mark.parametrize(
    "other",
    [{"sha256": "b" * 64}, {"batch": 1}, {"opset": 18}, {"method": "structsam"}, {"precision": "fp16"}],
    ids=lambda other: next(iter(other)),
)
def test_made_again_where_it_is_of_something_else(made, ours, other):
    config = {**vars(bare()), "rate": 0.0, "sha256": SHA}
    folder_of(ours.parent / "w-none-r0-fp32", SMALL, **{**config, **other})
    baselines_of(str(ours))
    assert len(made) == 1
    assert ExportFolder.read(ours.parent / "w-none-r0-fp32").manifest.model["sha256"] == SHA


def test_reused_whatever_engines_it_was_made_for(made, ours):
    config = {**vars(bare()), "checkpoint": "elsewhere/w.pth", "rate": 0.0, "backend": "auto", "target": "sm86"}
    folder_of(ours.parent / "w-none-r0-fp32", SMALL, sha256=SHA, **config)
    baselines_of(str(ours))
    assert made == []


def test_found_beside_the_folder_only_if_it_is_the_same_model(made, ours):
    own = ExportFolder.read(ours)
    assert unmerged_beside(own) is None
    beside = ours.parent / "w-none-r0-fp32"
    folder_of(beside, SMALL, sha256="b" * 64, **{**vars(bare()), "rate": 0.0})
    assert unmerged_beside(own) is None  # other weights
    baselines_of(str(ours), "moved/w.pth")
    assert made[0].checkpoint == "moved/w.pth"
    found = unmerged_beside(own)
    assert found is not None and found.path == beside
    (beside / "manifest.json").write_text("{}")
    assert unmerged_beside(own) is None  # none of ours


@pytest.mark.parametrize(("form", "opset"), [("attention", 23), ("ort-cpu", 20)])
def test_in_the_form_of_the_target(made, tmp_path, form, opset):
    """Or the form's gains would count as merging's. The other form's folder is another."""
    folder_of(tmp_path / "portable", SMALL, sha256=SHA, checkpoint="w.pth", rate=0.5, opset=opset, batch=2)
    ours = folder_of(
        tmp_path / "mine", SMALL, sha256=SHA, checkpoint="w.pth", rate=0.5, opset=opset, batch=2, form=form
    )
    beside = tmp_path / f"w-none-r0-fp32-{form}"
    targets = baselines_of(str(ours))
    assert targets == [f"plain={beside / 'encoder.raw.onnx'}", f"rewritten={beside}"]
    assert made == [bare(form=form, opset=opset)]
    assert baselines_of(str(tmp_path / "portable"))[1] == f"rewritten={tmp_path / 'w-none-r0-fp32'}"
    assert baselines_of(str(ours)) == targets
    assert made == [bare(form=form, opset=opset), bare(opset=opset)]


def test_a_bare_onnx_file_has_no_model(made, tmp_path):
    save(SMALL, tmp_path / "peer.onnx")
    with pytest.raises(ArtifactError, match=r"peer\.onnx.*output folder"):
        baselines_of(str(tmp_path / "peer.onnx"))
    assert made == []


@pytest.mark.slow
def test_of_the_demo_model(tmp_path):
    from structsam_export.pipeline import rewrite_folder, trace_only

    folder = trace_only(ExportConfig(rate=0.5), tmp_path / "mine")
    rewrite_folder(folder)
    targets = baselines_of(str(folder))
    before = stamps(tmp_path / "demo-none-r0-fp32")
    assert baselines_of(str(folder)) == targets
    assert stamps(tmp_path / "demo-none-r0-fp32") == before
