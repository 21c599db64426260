"""Fake-quantised graphs: the values of PyTorch's own 16-bit tensors, whatever ONNX Runtime optimises."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from graphs import node
from precision_graphs import converted, saved, session

from structsam_export.precision import fake_quantised

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
LEVELS = [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]
RNG = np.random.default_rng(0)
W = RNG.standard_normal((64, 64)).astype(np.float32)
X = RNG.standard_normal((16, 64)).astype(np.float32) * 3


def mlp(folder):
    """x -> x + (norm(x) @ w + b) * 0.3, with a one-hot product in between."""
    nodes = [
        node("LayerNormalization", "x one", "n"),
        node("MatMul", "n w", "a"),
        node("Add", "a bias", "b"),
        node("Mul", "b factor", "c"),
        node("Equal", "i same", "hit"),
        node("Cast", "hit", "onehot", to=1),
        node("MatMul", "onehot c", "d"),
        node("Transpose", "d", "e", perm=[1, 0]),
        node("Transpose", "e", "f", perm=[1, 0]),
        node("Add", "x f", "g"),
        node("LayerNormalization", "g one", "y"),
    ]
    constants = {"one": np.ones(64, np.float32), "w": W, "bias": W[0], "factor": np.float32(0.3), "same": np.array(1)}
    return saved(folder, nodes, {"x": [16, 64], "i": [16, 16]}, "y", **constants)


def by_torch(kind):
    """The same, every 16-bit tensor rounded by PyTorch and all arithmetic in float32."""

    def r(t):
        return t.to(TORCH[kind]).float()

    x, w = torch.from_numpy(X), torch.from_numpy(W)
    n = r(torch.nn.functional.layer_norm(x, (64,)))
    c = r(r(r(n @ r(w)) + r(w[0])) * r(torch.tensor(0.3)))
    return torch.nn.functional.layer_norm(x + c, (64,)).numpy()


@pytest.mark.parametrize("level", LEVELS, ids=["off", "on"])
@pytest.mark.parametrize("kind", TORCH)
def test_every_rounding_is_there(tmp_path, kind, level):
    path = mlp(tmp_path)
    converted(path, kind)
    fake_quantised(path.with_name(f"{kind}.onnx"), tmp_path / "fake.onnx")
    feeds = {"x": X, "i": np.eye(16, dtype=np.int64)}
    made = session(tmp_path / "fake.onnx", level).run(None, feeds)[0]
    exact = session(path, level).run(None, feeds)[0]
    error, lost = np.abs(made - by_torch(kind)), np.abs(made - exact)
    # Sums in another order may land on the other side of a rounding now and then; most values are the same.
    assert np.median(error) < 1e-6
    assert error.max() < 4 * np.finfo(np.float16).eps * (8 if kind == "bf16" else 1)
    assert np.median(lost) > 20 * np.median(error), "the rounding must show"


def test_direct_fp16_runs_stay_within_the_fake_quantised_error(tmp_path):
    """ONNX Runtime has no FP16 kernels on the CPU and drops roundings: nearer to FP32 than what is stored."""
    path = mlp(tmp_path)
    converted(path, "fp16")
    fake_quantised(path.with_name("fp16.onnx"), tmp_path / "fake.onnx")
    feeds = {"x": X, "i": np.eye(16, dtype=np.int64)}
    exact = session(path).run(None, feeds)[0]
    worst = np.abs(session(tmp_path / "fake.onnx").run(None, feeds)[0] - exact).max()
    direct = [session(path.with_name("fp16.onnx"), level).run(None, feeds)[0] for level in LEVELS]
    for made in direct:
        assert 0 < np.abs(made - exact).max() < 1.5 * worst
    assert np.abs(direct[0] - direct[1]).max() < 2 * worst
