"""What the kernel computes, in NumPy: one window and one cell after the other."""

from __future__ import annotations

import numpy as np

MIXED = 1e9  # rank of a cell of pads and real tokens


def reference(energy: np.ndarray, window: tuple[int, int], merged: int) -> tuple[np.ndarray, np.ndarray]:
    """energy (B, H, W) float32 -> pos (B * windows, n) and slot (B * windows, N) int32; ties by index."""
    B, H, W = energy.shape
    h, w = window
    plans = [
        plan_of(image[top : top + h, left : left + w], window, merged)
        for image in energy
        for top in range(0, H, h)
        for left in range(0, W, w)
    ]
    return np.stack([pos for pos, _ in plans]), np.stack([slot for _, slot in plans])


def plan_of(real: np.ndarray, window: tuple[int, int], merged: int) -> tuple[np.ndarray, np.ndarray]:
    """The plan of one window from the energies of its real tokens; NaN is steepest, and lowest inside a cell."""
    h, w = window
    ranks, destinations, cells = [], [], []
    for r in range(0, h - 1, 2):
        for c in range(0, w - 1, 2):
            tokens = [(r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)]
            values = [float(real[t]) if t[0] < real.shape[0] and t[1] < real.shape[1] else None for t in tokens]
            known = [v for v in values if v is not None]
            number = len(cells)
            rank = -1.0 - number if not known else MIXED if len(known) < 4 else float(np.max(known))
            ranks.append(np.inf if np.isnan(rank) else rank)
            destinations.append(int(np.argmin([0.0 if v is None else v for v in values])))
            cells.append([row * w + column for row, column in tokens])
    # NaN after infinity, then by number.
    order = sorted(range(len(cells)), key=lambda i: (ranks[i], bool(np.isnan(cell_top(real, cells[i], w))), i))
    inside = {t for cell in cells for t in cell}
    rest = [t for t in range(h * w) if t not in inside]
    pos = [t for i in order[merged:] for t in cells[i]] + rest + [cells[i][destinations[i]] for i in order[:merged]]
    slot = np.zeros(h * w, np.int32)
    slot[pos] = np.arange(len(pos))
    for place, i in enumerate(order[:merged]):
        slot[cells[i]] = len(pos) - merged + place
    return np.array(pos, np.int32), slot


def cell_top(real: np.ndarray, cell: list[int], w: int) -> float:
    """The steepest token of a cell without pads, NaN if one is; 0 for a cell with pads."""
    tokens = [(t // w, t % w) for t in cell]
    if any(r >= real.shape[0] or c >= real.shape[1] for r, c in tokens):
        return 0.0
    return float(np.max([real[t] for t in tokens]))
