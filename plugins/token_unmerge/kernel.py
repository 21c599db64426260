"""Every token of a layer's grid gets its slot back and the residual added, in one launch."""

import triton
import triton.language as tl
from kernel_launch import POINTERS, Launch, pieces, power_of_two


@triton.jit
def token_unmerge(
    slots_ptr,
    slot_ptr,
    residual_ptr,
    n,
    tokens,
    out_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Slots (B * windows, n, D), slot (B * windows, SH * SW) int32, residual (B, H, W, D) -> residual + slots[slot].

    `tokens` is B * H * W. A slot outside of 0..n-1 adds nothing.
    """
    ACROSS: tl.constexpr = (W + SW - 1) // SW
    WINDOWS: tl.constexpr = ((H + SH - 1) // SH) * ACROSS
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    exists = token < tokens
    image, row, column = token // (H * W), token // W % H, token % W
    call = (image * WINDOWS + row // SH * ACROSS + column // SW).to(tl.int64)
    slot = tl.load(slot_ptr + call * (SH * SW) + row % SH * SW + column % SW, mask=exists, other=-1)
    known = (slot >= 0) & (slot < n)
    inside = exists[:, None] & (d < D)[None, :]
    value = tl.load(slots_ptr + (call * n + slot)[:, None] * D + d[None, :], mask=inside & known[:, None], other=0.0)
    at = token.to(tl.int64)[:, None] * D + d[None, :]
    value = value.to(tl.float32) + tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=inside)


def launch(
    batch: int,
    shape: tuple[int, int],
    window: tuple[int, int],
    merged: int,
    dim: int,
    dtype: str,
    residual: str | None = None,
) -> Launch:
    """Launch for slots of `dtype` and a grid (batch, *shape, dim) of `residual`, by default the same type."""
    (H, W), (SH, SW) = shape, window
    tokens, n = batch * H * W, SH * SW - 3 * merged
    kind = POINTERS[residual or dtype]
    signature = {"slots_ptr": POINTERS[dtype], "slot_ptr": "*i32", "residual_ptr": kind, "n": "i32", "tokens": "i32"}
    constants = {"H": H, "W": W, "SH": SH, "SW": SW, "D": dim, "BT": 16, "BD": min(256, power_of_two(dim))}
    grid = (pieces(tokens, 16), pieces(dim, constants["BD"]), 1)
    return Launch(token_unmerge, grid, {**signature, "out_ptr": kind}, {"n": n, "tokens": tokens}, constants)
