"""Many validations in one process: nothing grows. And two exports of one request: byte for byte the same."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import psutil
import pytest
import shared_traces
import torch
from PIL import Image

from structsam_export import pipeline
from structsam_export.config import ExportConfig
from structsam_export.pipeline import rewrite_folder, trace_only, validate_folder

VALIDATIONS, FEW = 20, 3
GROWTH = 48 << 20  # bytes between the fifth validation and the last; allocators keep a little


@pytest.fixture
def exported(tiny_model, tmp_path):
    """A rewritten export of the tiny model, FP32, with one small photo."""
    photo = tmp_path / "photo.png"
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(photo)
    config = ExportConfig(
        "tiny", str(tiny_model), method="tome", precision="fp32", images=(str(photo),), backend="none"
    )
    folder = trace_only(config, tmp_path / "out")
    rewrite_folder(folder)
    return folder


def test_validations_leave_nothing_behind(exported, large, counted):
    process = psutil.Process()
    sizes, descriptors, temporary = [], [], []
    for _ in range(VALIDATIONS if large else FEW):
        assert validate_folder(exported)["passed"]
        counted("validations in one process", 0)
        gc.collect()
        sizes.append(process.memory_info().rss)
        descriptors.append(process.num_fds())
        temporary.append(sorted(p.name for p in Path(tempfile.gettempdir()).glob("structsam-*")))
    assert descriptors[-1] <= descriptors[1], descriptors
    assert temporary[-1] == temporary[0]
    assert [p.name for p in exported.glob(".*")] == []
    if large:
        assert sizes[-1] - sizes[4] < GROWTH, sizes
        print(f"resident MiB after each validation: {[s >> 20 for s in sizes]}")


def test_two_exports_are_equal(tiny_model, exported, tmp_path, large, monkeypatch):
    """In the large suite traced twice; else from one trace."""
    if large:
        monkeypatch.setattr(pipeline, "trace_stage", shared_traces.own_stage)
        monkeypatch.setattr(torch.onnx, "export", shared_traces.own_export)
    config = ExportConfig("tiny", str(tiny_model), method="tome", precision="fp16")
    folders = [trace_only(config, tmp_path / name) for name in ("first", "second")]
    for folder in folders:
        rewrite_folder(folder)
    first, second = ({p.name: p.read_bytes() for p in f.iterdir() if p.name != "manifest.json"} for f in folders)
    assert first.keys() == second.keys() and all(first[name] == second[name] for name in first)
