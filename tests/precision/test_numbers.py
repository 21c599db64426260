"""16-bit rounding against PyTorch's, and constants that do not survive it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from structsam_export.precision.numbers import LowType, as_float32, fit, low_tensor, rounded_bits

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def values():
    """Every magnitude, halfway cases and the ends of both ranges."""
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(20_000) * 10.0 ** rng.uniform(-45, 38, 20_000)
    halfway = np.float32(1) + np.arange(64, dtype=np.float32) * np.float32(2.0**-12)
    ties = 1 + np.arange(64) * 2.0**-9
    ends = [0, -0.0, 65504, 65519, 65520, 1e5, 6e-8, 3e-8, 2.98e-8, 3.39e38, 3.4028235e38, np.inf, -np.inf, np.nan]
    with np.errstate(over="ignore"):
        return np.concatenate([wide, halfway, ties, ends]).astype(np.float32)


@pytest.mark.parametrize("kind", TORCH)
def test_rounding_is_that_of_pytorch(kind, values):
    expected = torch.from_numpy(values).to(TORCH[kind]).float().numpy()
    np.testing.assert_array_equal(as_float32(rounded_bits(values, kind), kind), expected)


@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_low_tensor_is_what_onnx_reads(kind, shape):
    wanted = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tensor = low_tensor("w", wanted, LowType.of(kind))
    onnx.checker.check_tensor(tensor)
    read = numpy_helper.to_array(tensor).astype(np.float32)
    assert read.shape == shape
    np.testing.assert_array_equal(read, torch.from_numpy(np.asarray(wanted)).to(TORCH[kind]).float().numpy())


@pytest.mark.parametrize(
    ("values", "kind", "problem", "underflow"),
    [
        ([65504.0, 1.0], "fp16", None, 0),
        ([65519.0], "fp16", None, 0),  # rounds down to 65504
        ([65520.0], "fp16", "reaches 6.55e+04", 0),
        ([-1e9, 0.0], "fp16", "reaches 1e+09", 0),
        ([-1e9, 0.0], "bf16", None, 0),
        ([3.4028235e38], "bf16", "reaches 3.4e+38", 0),
        ([np.inf, 1.0], "fp16", None, 0),  # is infinite on purpose
        ([1e-12], "fp16", "becomes zero", 1),
        ([1e-12, 1.0, 0.0], "fp16", None, 1),
        ([1e-12], "bf16", None, 0),
        ([0.0, 0.0], "fp16", None, 0),
        ([], "fp16", None, 0),
    ],
)
def test_what_does_not_fit(values, kind, problem, underflow):
    found = fit("w", np.array(values, np.float32), kind)
    assert found.underflow == underflow
    assert (found.problem is None) if problem is None else (problem in found.problem)
