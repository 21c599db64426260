"""amax of graphs whose values are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import node
from precision_graphs import saved

from structsam_export.precision import calibrate


def chain(folder):
    nodes = [
        node("Mul", "x three", "a"),
        node("Reshape", "a shape", "b"),
        node("Pad", "b pads fill", "c"),
        node("Sqrt", "c", "d"),
        node("ArgMax", "d", "i", axis=0),
        node("Concat", "a x", "e", axis=1),
    ]
    fill = {"pads": np.array([0, 0, 0, 1]), "fill": np.float32(100), "shape": np.array([2, 2]), "three": np.float32(3)}
    return saved(folder, nodes, {"x": [1, 4]}, "d i e", **fill)


def test_largest_magnitude_over_all_runs(tmp_path):
    feeds = [{"x": np.array([row], np.float32)} for row in ([1, 2, 3, 4], [0, -0.5, 1, 12])]
    assert calibrate(chain(tmp_path), feeds) == {"x": 12, "a": 36, "b": 36, "c": 100, "d": 10, "e": 36}


def test_nan_is_not_lost(tmp_path):
    feeds = [{"x": np.array([row], np.float32)} for row in ([1, 2, 3, 4], [-1, -1, -1, -1], [1, 2, 3, 4])]
    amax = calibrate(chain(tmp_path), feeds)
    assert np.isnan(amax["d"])
    assert amax["a"] == 12


def test_weights_beside_the_file_are_used_where_they_are(tmp_path):
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    path = saved(tmp_path, [node("MatMul", "x w", "y")], {"x": [1, 256]}, "y", w=weight)
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="model.onnx.data")
    before = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    x = np.eye(1, 256, dtype=np.float32)
    assert calibrate(path, [{"x": x}]) == {"x": 1, "y": float(np.abs(weight[0]).max())}
    assert {p.name: p.stat().st_size for p in tmp_path.iterdir()} == before


def test_no_file_is_left_where_a_session_cannot_be_made(tmp_path, monkeypatch):
    path = saved(tmp_path, [node("MatMul", "x w", "y")], {"x": [1, 256]}, "y", w=np.ones((256, 256), np.float32))
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="model.onnx.data")
    seen = []

    def refuse(source, *args, **kwargs):
        seen.append(Path(source).name)
        raise RuntimeError("no session")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no session"):
            calibrate(path, [])
    assert len(set(seen)) == 2, "the name cannot be foreseen"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
