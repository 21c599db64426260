"""GPUs that kernels are compiled for, and what their drivers read."""

from __future__ import annotations

# SM -> version of PTX (times ten) that every driver of that platform reads: that of the first CUDA with the SM, at
# least of CUDA 12.0; of JetPack 6's CUDA 12.6 for Orin.
SMS = {75: 80, 80: 80, 86: 80, 87: 85, 89: 80, 90: 80, 100: 86, 110: 90, 120: 87}
# CUDA -> version of PTX.
CUDA = {"12.0": 80, "12.2": 82, "12.4": 84, "12.6": 85, "12.8": 87, "12.9": 88, "13.0": 90}
# SM -> KB of shared memory one program can have at all.
SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 110: 227, 120: 99}
# Plugin -> first SM, and why none before.
FIRST = {"relpos_attention": (80, "Triton has no tensor-core code for SM 75: it would spill 25 KB of registers")}


def ptx_version(sm: int, cuda: str | None) -> int | str:
    """The version of PTX (times ten) to write, or why there is none."""
    if cuda is None:
        return SMS[sm]
    least = SMS[sm] if sm > 90 else 80
    return min(SMS[sm], CUDA[cuda]) if CUDA[cuda] >= least else f"CUDA {cuda} does not know SM {sm}"
