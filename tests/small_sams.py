"""A SAM as small as can be, by its architecture: 128 px, windows of 3, heads of 14 channels, an MLP that is not 4x."""

from __future__ import annotations

import torch

from structsam_export.geometry import EncoderGeometry
from structsam_export.models.architecture import Architecture, DecoderGeometry, build

SMALL = Architecture(
    EncoderGeometry(128, 16, (8, 8), 28, 3, 2, 58, 32, (3, 0, 3)),
    DecoderGeometry(inner_dim=16, mlp_dim=64, iou_dim=32),
)


def random_sam(architecture=SMALL):
    torch.manual_seed(0)
    made = build(architecture).eval().requires_grad_(False)
    for name, p in made.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(p, std=0.2)
    return made
