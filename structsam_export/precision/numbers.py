"""FP16 and BF16 as numbers: rounding of constants, and what does not survive it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["fp16", "bf16"]

FP16_MAX = 65504.0
# The amax of a tensor comes from a handful of photos, and other photos will exceed it: a factor of 4 is kept free.
SAFETY = 4.0
LIMITS = {"fp16": FP16_MAX / SAFETY, "bf16": float("inf")}


@dataclass(frozen=True)
class LowType:
    """A 16-bit float as ONNX names it: `elem` in a tensor, `formal` in an operator's definition."""

    kind: Kind
    elem: int
    formal: str

    @classmethod
    def of(cls, kind: Kind) -> LowType:
        import onnx

        if kind == "fp16":
            return cls(kind, onnx.TensorProto.FLOAT16, "tensor(float16)")
        return cls(kind, onnx.TensorProto.BFLOAT16, "tensor(bfloat16)")


def rounded_bits(values: Any, kind: Kind) -> Any:
    """The 16 bits of each float32 value after rounding to nearest even, as uint16 of the same shape.

    Values beyond the range become infinite, as a Cast makes them.
    """
    import numpy as np

    if kind == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    # Adding just under half of the last kept bit, plus that bit, rounds half to even; NaN must not carry over.
    nearest = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


def as_float32(bits: Any, kind: Kind) -> Any:
    """The values of `rounded_bits` as float32, exactly."""
    import numpy as np

    if kind == "fp16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class Fit:
    """How a constant takes rounding: `problem` if it must not be rounded, and how many values become zero."""

    problem: str | None
    underflow: int


def fit(name: str, values: Any, kind: Kind) -> Fit:
    """Check a float32 constant against the range of a 16-bit type."""
    import numpy as np

    if not values.size:
        return Fit(None, 0)
    after = as_float32(rounded_bits(np.atleast_1d(values), kind), kind)
    lost = int(np.count_nonzero(values) - np.count_nonzero(after))
    largest = float(np.abs(values).max())
    if np.isinf(after).sum() > np.isinf(values).sum():
        return Fit(f"constant '{name}' reaches {largest:.3g}, which {kind} cannot hold", lost)
    if lost and not after.any():
        return Fit(f"constant '{name}' ({largest:.3g} at most) becomes zero in {kind}", lost)
    return Fit(None, lost)


def low_tensor(name: str, values: Any, low: LowType) -> Any:
    """An `onnx.TensorProto` of float32 values rounded to a 16-bit type."""
    import numpy as np
    import onnx

    bits = rounded_bits(np.atleast_1d(values), low.kind)
    return onnx.TensorProto(name=name, data_type=low.elem, dims=values.shape, raw_data=bits.astype("<u2").tobytes())
