"""Energies that plans are made from, in one launch: Sobel gradients of tokens averaged over heads."""

import triton
import triton.language as tl
from kernel_launch import POINTERS, Launch, pieces, power_of_two


@triton.jit
def token_energy(
    y_ptr,
    energy_ptr,
    H: tl.constexpr,
    W: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BT: tl.constexpr,
):
    """Sobel energy of tokens y (B, H, W, HEADS * D) averaged over heads -> (B, H, W) float32; border repeated."""
    row = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * BT + tl.arange(0, BT)
    d = tl.arange(0, DP)
    inside = (column < W)[:, None] & (d < D)[None, :]
    gx = tl.zeros([BT, DP], tl.float32)
    gy = tl.zeros([BT, DP], tl.float32)
    for dr in tl.static_range(-1, 2):
        r = tl.minimum(tl.maximum(row + dr, 0), H - 1)
        for dc in tl.static_range(-1, 2):
            if dr != 0 or dc != 0:
                c = tl.minimum(tl.maximum(column + dc, 0), W - 1)
                at = ((image * H + r) * W + c)[:, None] * (HEADS * D) + d[None, :]
                total = tl.zeros([BT, DP], tl.float32)
                for head in range(HEADS):
                    total += tl.load(y_ptr + at + head * D, mask=inside, other=0.0).to(tl.float32)
                # A factor of 0 would turn infinity into NaN.
                if dc != 0:
                    gx += total * (dc * (2 - dr * dr))
                if dr != 0:
                    gy += total * (dr * (2 - dc * dc))
    square = tl.sum(gx * gx + gy * gy, 1)
    energy = tl.sqrt(square) / (HEADS * tl.sqrt(float(D)))
    tl.store(energy_ptr + (image * H + row) * W + column, energy, mask=column < W)


def launch(batch: int, shape: tuple[int, int], heads: int, dim: int, dtype: str) -> Launch:
    """Launch of `token_energy` for tokens (batch, *shape, heads * dim) of `dtype`."""
    H, W = shape
    signature = {"y_ptr": POINTERS[dtype], "energy_ptr": "*fp32"}
    constants = {"H": H, "W": W, "HEADS": heads, "D": dim, "DP": power_of_two(dim), "BT": 16}
    return Launch(token_energy, (pieces(W, 16), H, batch), signature, {}, constants)
