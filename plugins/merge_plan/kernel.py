"""Which 2x2 cells merge, in one launch for all windows of a layer, from the energies of its tokens.

No sort and no TopK: each cell counts the cells that come before it. Windows are indexed inside, so nothing is copied.
"""

import triton
import triton.language as tl
from kernel_launch import Launch, pieces, power_of_two

LEAST = tl.constexpr(-0x80000000)
MIXED = tl.constexpr(1e9)  # rank of a cell of pads and real tokens: last


@triton.jit
def ordered(x):
    """float32 -> int32 that sorts the same way; both zeros are one, NaN comes last as it does for TopK."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    bits = tl.where(bits == LEAST, 0, bits)
    return tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def energy_at(energy_ptr, image, top, left, r, c, mask, H: tl.constexpr, W: tl.constexpr):
    """Energy of a window's token, 0 where it is a pad, and whether it is real."""
    real = (top + r < H) & (left + c < W)
    return tl.load(energy_ptr + (image * H + top + r) * W + left + c, mask=mask & real, other=0.0), real.to(tl.int32)


@triton.jit
def cell_rank(energy_ptr, image, top, left, cell, mask, H: tl.constexpr, W: tl.constexpr, CW: tl.constexpr):
    """Rank of cells as sortable int32, and which of their four tokens is the destination."""
    r, c = cell // CW * 2, cell % CW * 2
    e0, real0 = energy_at(energy_ptr, image, top, left, r, c, mask, H, W)
    e1, real1 = energy_at(energy_ptr, image, top, left, r, c + 1, mask, H, W)
    e2, real2 = energy_at(energy_ptr, image, top, left, r + 1, c, mask, H, W)
    e3, real3 = energy_at(energy_ptr, image, top, left, r + 1, c + 1, mask, H, W)
    k0, k1, k2, k3 = ordered(e0), ordered(e1), ordered(e2), ordered(e3)
    steepest = tl.maximum(tl.maximum(k0, k1), tl.maximum(k2, k3))
    # NaN is the lowest of a cell as well as the steepest, as for argmin and amax.
    l0, l1 = tl.where(e0 != e0, LEAST, k0), tl.where(e1 != e1, LEAST, k1)
    l2, l3 = tl.where(e2 != e2, LEAST, k2), tl.where(e3 != e3, LEAST, k3)
    lowest = tl.minimum(tl.minimum(l0, l1), tl.minimum(l2, l3))
    dst = tl.where(l0 == lowest, 0, tl.where(l1 == lowest, 1, tl.where(l2 == lowest, 2, 3)))
    real = real0 + real1 + real2 + real3
    instead = ordered(tl.where(real == 0, -1.0 - cell.to(tl.float32), MIXED))
    return tl.where(real == 4, steepest, instead), dst


@triton.jit
def merge_plan(
    energy_ptr,
    merged,
    pos_ptr,
    slot_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RP: tl.constexpr,
):
    """Energies (B, H, W) float32 -> pos (B * windows, n) and slot (B * windows, SH * SW) int32; n = SH * SW - 3 merged.

    Protected cells come first in rank order, then an odd last column and row (at most RP tokens), then merged cells.
    """
    CW: tl.constexpr = SW // 2
    C: tl.constexpr = (SH // 2) * CW
    N: tl.constexpr = SH * SW
    ACROSS: tl.constexpr = (W + SW - 1) // SW
    WINDOWS: tl.constexpr = ((H + SH - 1) // SH) * ACROSS
    call = tl.program_id(1).to(tl.int64)
    image, window = call // WINDOWS, call % WINDOWS
    top, left = window // ACROSS * SH, window % ACROSS * SW
    pos_ptr += call * (N - 3 * merged)
    slot_ptr += call * N
    kept = (C - merged) * 4 + N - 4 * C

    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = cell < C
    rank, dst = cell_rank(energy_ptr, image, top, left, cell, mine, H, W, CW)
    place = tl.zeros([BLOCK], tl.int32)
    for start in range(0, C, CHUNK):
        other = start + tl.arange(0, CHUNK)
        exists = other < C
        ranks, _ = cell_rank(energy_ptr, image, top, left, other, exists, H, W, CW)
        earlier = (ranks[None, :] == rank[:, None]) & (other[None, :] < cell[:, None])
        before = ((ranks[None, :] < rank[:, None]) | earlier) & exists[None, :]
        place += tl.sum(before.to(tl.int32), 1)

    four = tl.arange(0, 4)
    corner = cell // CW * 2 * SW + cell % CW * 2
    token = corner[:, None] + (four // 2 * SW + four % 2)[None, :]
    merges = (place < merged)[:, None]
    slot = tl.where(merges, kept + place[:, None], (place[:, None] - merged) * 4 + four[None, :])
    tl.store(slot_ptr + token, slot, mask=mine[:, None])
    tl.store(pos_ptr + slot, token, mask=mine[:, None] & (~merges | (four[None, :] == dst[:, None])))
    if RP > 0:
        COLUMN: tl.constexpr = (SW % 2) * (SH // 2 * 2)  # rest tokens of the last column
        i = tl.arange(0, RP)
        odd = tl.where(i < COLUMN, i * SW + SW - 1, (SH - 1) * SW + i - COLUMN)
        first = (i < N - 4 * C) & (tl.program_id(0) == 0)
        at = (C - merged) * 4 + i
        tl.store(slot_ptr + odd, at, mask=first)
        tl.store(pos_ptr + at, odd, mask=first)


def launch(batch: int, shape: tuple[int, int], window: tuple[int, int], merged: int) -> Launch:
    """Launch of `merge_plan` for energies (batch, *shape), windows of `window` tokens and `merged` cells in each."""
    (H, W), (SH, SW) = shape, window
    cells = (SH // 2) * (SW // 2)
    rest = SH * SW - 4 * cells
    signature = {"energy_ptr": "*fp32", "merged": "i32", "pos_ptr": "*i32", "slot_ptr": "*i32"}
    constants = {"H": H, "W": W, "SH": SH, "SW": SW, "BLOCK": 32, "CHUNK": min(256, power_of_two(cells, 16))}
    constants["RP"] = power_of_two(rest) if rest else 0
    calls = batch * pieces(H, SH) * pieces(W, SW)
    return Launch(merge_plan, (pieces(cells, 32), calls, 1), signature, {"merged": merged}, constants)
