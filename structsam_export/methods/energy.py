"""Energies of tokens. Gradient energy: high = structure, low = flat. Redundancy energy: high = like many others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.tokens import WindowGrid

Kernel = tuple[tuple[float, float, float], ...]

SOBEL_X: Kernel = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
SOBEL_Y: Kernel = ((-1.0, -2.0, -1.0), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0))
# As published with GradToMe and copied since: the sign error makes a constant field look steep.
SOBEL_Y_THESIS: Kernel = ((-1.0, -2.0, 1.0), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0))


def sobel_energy(features: Tensor, *, thesis: bool = False) -> Tensor:
    """Gradient magnitude sqrt(mean_c(gx^2 + gy^2)) of features (B, H, W, d) -> (B, H, W), float32.

    Replicate border, so that a constant map has no energy anywhere; both kernels as printed in StructSAM's
    overview figure. `thesis`: zero border and the published kernel with its sign error.
    """
    import torch
    import torch.nn.functional as F

    d = features.shape[-1]
    pair = [SOBEL_X, SOBEL_Y_THESIS if thesis else SOBEL_Y]
    kernels = torch.tensor(pair, dtype=torch.float32, device=features.device)
    border = "constant" if thesis else "replicate"
    x = F.pad(features.float().permute(0, 3, 1, 2), (1, 1, 1, 1), mode=border)
    g = F.conv2d(x, kernels.unsqueeze(1).repeat(d, 1, 1, 1), groups=d)
    return torch.linalg.vector_norm(g, dim=1) / d**0.5


def central_energy(features: Tensor) -> Tensor:
    """Central differences sqrt(sum_c(dx^2 + dy^2)) of features (B, H, W, d) -> (B, H, W) float32, border repeated."""
    import torch
    import torch.nn.functional as F

    x = F.pad(features.float().permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    dx = (x[:, :, 1:-1, 2:] - x[:, :, 1:-1, :-2]) / 2
    dy = (x[:, :, 2:, 1:-1] - x[:, :, :-2, 1:-1]) / 2
    return torch.linalg.vector_norm(torch.cat([dx, dy], 1), dim=1)


def gradient_energy(features: Tensor, grid: WindowGrid, kind: str, *, thesis: bool = False) -> Tensor:
    """Gradient energy (B, N) of every window of a block.

    Args:
        features: (B, H, W, d).
        grid: how the block cuts its tokens into windows.
        kind: "sobel" or "central".
        thesis: taken in each window, pads included, as published; otherwise on the whole grid, so that the border
            of a window is no edge of the image; pads then have none.
    """
    if not thesis:
        energy = sobel_energy(features) if kind == "sobel" else central_energy(features)
        return grid.partition(energy.unsqueeze(-1)).squeeze(-1)
    windows = grid.partition(features.float())
    windows = windows.view(windows.shape[0], *grid.window_shape, -1)
    energy = sobel_energy(windows, thesis=True) if kind == "sobel" else central_energy(windows)
    return energy.flatten(1)


def redundancy_energy(unit: Tensor, margin: float, alpha: float) -> Tensor:
    """PiToMe's energy of unit tokens (B, N, d) -> (B, N): mean over all tokens of ELU_alpha(cosine - margin).

    PiToMe (arXiv 2405.16148), eq. 3-4. FP32 only: FP16 leaves about 400 different values for 4096 tokens.
    """
    import torch.nn.functional as F

    cosine = unit @ unit.transpose(1, 2)
    return F.elu(cosine - margin, alpha).mean(-1)
