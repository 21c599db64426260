"""Flash attention with decomposed relative positions, for tokens at any places of a window.

Scores are q . k + rel[row_i - row_j + SH - 1] + rel[2 SH - 1 + column_i - column_j + SW - 1]; neither they nor the bias
are ever in memory. `rel`, the products of queries and R, come from outside: made inside, they cost all registers.
"""

import triton
import triton.language as tl
from kernel_launch import POINTERS, Launch, pieces, power_of_two

# How the bias of a tile of keys is made.
NO_BIAS = tl.constexpr(0)  # for comparisons
ONE_HOT = tl.constexpr(1)  # a product with one-hot lines: tokens anywhere
GATHER = tl.constexpr(2)  # a load for each score: tokens anywhere
ALIGNED = tl.constexpr(3)  # a tile is one line of a dense window: nearly free
MODES = {"none": 0, "one_hot": 1, "gather": 2, "aligned": 3}


@triton.jit
def scores_of(q, q_rest, k_ptr, key, exists, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, EXACT: tl.constexpr):
    """Products of a tile of queries with the keys at offsets `key`."""
    d = tl.arange(0, D0)
    k = tl.load(k_ptr + key[None, :] + d[:, None], mask=exists[None, :] & (d < D)[:, None], other=0.0)
    x = tl.dot(q, k, input_precision=EXACT)
    if D1 > 0:
        e = D0 + tl.arange(0, D1)
        k = tl.load(k_ptr + key[None, :] + e[:, None], mask=exists[None, :] & (e < D)[:, None], other=0.0)
        x = tl.dot(q_rest, k, x, input_precision=EXACT)
    return x


@triton.jit
def relpos_attention(
    q_ptr,
    k_ptr,
    v_ptr,
    rel_ptr,
    pos_ptr,
    n,
    out_ptr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    HP: tl.constexpr,
    WP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    MODE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """q, k, v (B, n, HEADS * D), rel (B, n, HEADS, L), pos (B, n) int32 -> like q; L = 2 SH - 1 + 2 SW - 1.

    q is scaled. pos is a token's index in its window of SH x SW; a key outside of it (-1) is not there, a query outside
    of it has no bias. ALIGNED: n == SH * SW, tokens in raster order, pos is not read.
    """
    b, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    LOG2E: tl.constexpr = 1.4426950408889634
    base = b.to(tl.int64) * n
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    there = row < n
    d = tl.arange(0, D0)
    query = ((base + row) * HEADS + head) * D
    q = tl.load(q_ptr + query[:, None] + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0)
    acc = tl.zeros([BM, D0], tl.float32)
    e = D0 + tl.arange(0, D1 if D1 > 0 else 16)
    q_rest, acc_rest = q, acc
    if D1 > 0:
        q_rest = tl.load(q_ptr + query[:, None] + e[None, :], mask=there[:, None] & (e < D)[None, :], other=0.0)
        acc_rest = tl.zeros([BM, D1], tl.float32)
    lines, columns = tl.arange(0, HP), tl.arange(0, WP)
    # Where a query's products with all lines begin; line s is that many before it.
    own, placed = row, there
    if MODE == ONE_HOT or MODE == GATHER:
        own = tl.load(pos_ptr + base + row, mask=there, other=-1)
        placed = (own >= 0) & (own < SH * SW)
        own = tl.where(placed, own, 0)
    L: tl.constexpr = 2 * SH - 1 + 2 * SW - 1
    at_row = ((base + row) * HEADS + head) * L + own // SW + SH - 1
    at_column = ((base + row) * HEADS + head) * L + 2 * SH - 1 + own % SW + SW - 1
    if MODE == ONE_HOT:
        mask = placed[:, None] & (lines < SH)[None, :]
        by_row = tl.load(rel_ptr + at_row[:, None] - lines[None, :], mask=mask, other=0.0)
    if MODE == ONE_HOT or MODE == ALIGNED:
        mask = placed[:, None] & (columns < SW)[None, :]
        by_column = tl.load(rel_ptr + at_column[:, None] - columns[None, :], mask=mask, other=0.0)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    STEP: tl.constexpr = SW if MODE == ALIGNED else BN
    for start in range(0, n, STEP):
        key = start + tl.arange(0, BN)
        exists = key < n
        if MODE == ALIGNED:
            exists = tl.arange(0, BN) < SW
        at = ((base + key) * HEADS + head) * D
        x = scores_of(q, q_rest, k_ptr, at, exists, D, D0, D1, EXACT)
        if MODE == ALIGNED:
            line = tl.load(rel_ptr + at_row - start // SW, mask=placed, other=0.0)
            x += by_column.to(tl.float32) + line.to(tl.float32)[:, None]
        elif MODE != NO_BIAS:
            place = tl.load(pos_ptr + base + key, mask=exists, other=-1)
            exists = (place >= 0) & (place < SH * SW)
            place = tl.where(exists, place, 0)
            if MODE == ONE_HOT:
                of_line = (lines[:, None] == (place // SW)[None, :]).to(q.dtype)
                of_column = (columns[:, None] == (place % SW)[None, :]).to(q.dtype)
                bias = tl.dot(by_row, of_line, input_precision=EXACT)
                x += tl.dot(by_column, of_column, bias, input_precision=EXACT)
            else:
                mask = placed[:, None] & exists[None, :]
                line = tl.load(rel_ptr + at_row[:, None] - (place // SW)[None, :], mask=mask, other=0.0)
                column = tl.load(rel_ptr + at_column[:, None] - (place % SW)[None, :], mask=mask, other=0.0)
                x += line.to(tl.float32) + column.to(tl.float32)
        x = tl.where(exists[None, :], x * LOG2E, float("-inf"))
        highest = tl.maximum(top, tl.max(x, 1))
        # As long as no key was there, nothing may become NaN.
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        p = tl.exp2(x - shift[:, None])
        fix = tl.exp2(top - shift)
        total = total * fix + tl.sum(p, 1)
        v = tl.load(v_ptr + at[:, None] + d[None, :], mask=exists[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * fix[:, None], input_precision=EXACT)
        if D1 > 0:
            v = tl.load(v_ptr + at[:, None] + e[None, :], mask=exists[:, None] & (e < D)[None, :], other=0.0)
            acc_rest = tl.dot(p.to(v.dtype), v, acc_rest * fix[:, None], input_precision=EXACT)
        top = highest
    kind = out_ptr.dtype.element_ty
    y = acc / total[:, None]
    tl.store(out_ptr + query[:, None] + d[None, :], y.to(kind), mask=there[:, None] & (d < D)[None, :])
    if D1 > 0:
        y = acc_rest / total[:, None]
        tl.store(out_ptr + query[:, None] + e[None, :], y.to(kind), mask=there[:, None] & (e < D)[None, :])


def head_parts(dim: int) -> tuple[int, int]:
    """Powers of two (D0, D1) that cover a head: 64 -> 64 + 0, 80 -> 64 + 16. One of 128 would not fit in registers."""
    first = power_of_two(dim, 16)
    if first == max(dim, 16):
        return first, 0
    return (first // 2, power_of_two(dim - first // 2, 16)) if first > 16 else (16, 0)


def launch(
    batch: int,
    n: int,
    heads: int,
    dim: int,
    window: tuple[int, int],
    dtype: str,
    mode: str = "one_hot",
    tile: tuple[int, int] | None = None,
    warps: int | None = None,
) -> Launch:
    """Launch for q, k, v (batch, n, heads * dim) of `dtype` in a window of `window` places.

    Args:
        batch: windows of all images.
        n: tokens of a window.
        heads, dim: heads, channels of each.
        window: rows and columns of places.
        dtype: float16, bfloat16 or float32.
        mode: one of MODES; "aligned" only for n = all places in raster order.
        tile: queries and keys of a tile; None: 64 and 32, in FP32 half the queries, as more would spill.
        warps: of a program; None: 4, in FP32 8.
    """
    (SH, SW), (D0, D1) = window, head_parts(dim)
    wide = dtype == "float32"
    BM, BN = tile or (32 if wide else 64, 32)
    warps = warps or (8 if wide else 4)
    if mode == "aligned":
        assert n == SH * SW
        BN = power_of_two(SW, 16)
    kind = POINTERS[dtype]
    names = ("q_ptr", "k_ptr", "v_ptr", "rel_ptr")
    signature = {**dict.fromkeys(names, kind), "pos_ptr": "*i32", "n": "i32", "out_ptr": kind}
    constants = {"HEADS": heads, "D": dim, "D0": D0, "D1": D1, "SH": SH, "SW": SW}
    constants |= {"HP": power_of_two(SH, 16), "WP": power_of_two(SW, 16), "BM": BM, "BN": BN, "MODE": MODES[mode]}
    constants["EXACT"] = "ieee" if dtype == "float32" else "tf32"
    return Launch(relpos_attention, (pieces(n, BM), batch * heads, 1), signature, {"n": n}, constants, warps)
