"""Gradient energy of a feature map: high = structure, low = flat."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
SOBEL_Y = ((-1.0, -2.0, -1.0), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0))


def sobel_energy(features: Tensor) -> Tensor:
    """Gradient magnitude sqrt(mean_c(gx^2 + gy^2)) of features (B, H, W, d) -> (B, H, W), float32.

    Replicate border, so that a constant map has no energy anywhere; both kernels as printed in StructSAM's
    overview figure (the widely copied code has a sign error in the second).
    """
    import torch
    import torch.nn.functional as F

    d = features.shape[-1]
    kernels = torch.tensor([SOBEL_X, SOBEL_Y], dtype=torch.float32, device=features.device)
    x = F.pad(features.float().permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    g = F.conv2d(x, kernels.unsqueeze(1).repeat(d, 1, 1, 1), groups=d)
    return g.square().sum(1).div(d).sqrt()
