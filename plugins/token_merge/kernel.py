"""Slots of all windows of a layer from the tokens of its grid, in one launch: gather, and the mean of merged cells."""

import triton
import triton.language as tl
from kernel_launch import POINTERS, Launch, pieces, power_of_two


@triton.jit
def token_merge(
    y_ptr,
    pos_ptr,
    n,
    merged,
    out_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    D: tl.constexpr,
    BS: tl.constexpr,
    BD: tl.constexpr,
):
    """Tokens y (B, H, W, D), pos (B * windows, n) int32 -> slots (B * windows, n, D).

    The last `merged` slots of a window are means of 2x2 cells, with pads as zeros. A position outside of its window
    gives zeros.
    """
    ACROSS: tl.constexpr = (W + SW - 1) // SW
    WINDOWS: tl.constexpr = ((H + SH - 1) // SH) * ACROSS
    call = tl.program_id(1).to(tl.int64)
    image, window = call // WINDOWS, call % WINDOWS
    top, left = window // ACROSS * SH, window % ACROSS * SW
    slot = tl.program_id(0) * BS + tl.arange(0, BS)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    pos = tl.load(pos_ptr + call * n + slot, mask=slot < n, other=-1)
    known = (pos >= 0) & (pos < SH * SW)
    pos = tl.where(known, pos, 0)
    r, c = pos // SW, pos % SW
    merges = known & (slot >= n - merged) & (r < SH // 2 * 2) & (c < SW // 2 * 2)
    r, c = tl.where(merges, r // 2 * 2, r), tl.where(merges, c // 2 * 2, c)
    total = tl.zeros([BS, BD], tl.float32)
    for part in tl.static_range(4):
        row, column = top + r + part // 2, left + c + part % 2
        wanted = known if part == 0 else merges
        wanted = wanted & (row < H) & (column < W)
        at = ((image * H + row) * W + column)[:, None] * D + d[None, :]
        value = tl.load(y_ptr + at, mask=wanted[:, None] & (d < D)[None, :], other=0.0)
        total += value.to(tl.float32)
    total = tl.where(merges[:, None], total * 0.25, total)
    at = (call * n + slot)[:, None] * D + d[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=(slot < n)[:, None] & (d < D)[None, :])


def launch(batch: int, shape: tuple[int, int], window: tuple[int, int], merged: int, dim: int, dtype: str) -> Launch:
    """Launch for tokens (batch, *shape, dim) of `dtype`, `merged` cells in each window of `window` tokens."""
    (H, W), (SH, SW) = shape, window
    n = SH * SW - 3 * merged
    signature = {"y_ptr": POINTERS[dtype], "pos_ptr": "*i32", "n": "i32", "merged": "i32", "out_ptr": POINTERS[dtype]}
    constants = {"H": H, "W": W, "SH": SH, "SW": SW, "D": dim, "BS": 16, "BD": min(256, power_of_two(dim))}
    grid = (pieces(n, 16), batch * pieces(H, SH) * pieces(W, SW), pieces(dim, constants["BD"]))
    return Launch(token_merge, grid, signature, {"n": n, "merged": merged}, constants)
