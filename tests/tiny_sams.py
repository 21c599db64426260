"""SAMs with a TinyViT as small as can be, random weights; LiteMedSAM's kind is 256 px, MobileSAM's 1024."""

from __future__ import annotations

from dataclasses import replace

import torch

from structsam_export.models.architecture import Architecture, DecoderGeometry, build
from structsam_export.stages import TinyStages

STAGES = TinyStages(1, (8, 16, 16, 24), (1, 1, 2, 1), (0, 1, 2, 3), (0, 7, 14, 7))
STRIDED = replace(STAGES, stem=3)


def architecture(stages=STAGES):
    decoder = DecoderGeometry(inner_dim=16, mlp_dim=64, iou_dim=32)
    return Architecture(stages.geometry(64 * stages.patch_size, 32), decoder, stages=stages)


def randomised(module):
    """Every weight and statistic is random, so that none can be swapped or left out unseen."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
        elif "attention_biases" in name:
            tensor.normal_(generator=generator)
    return module.eval().requires_grad_(False)


def tiny_sam(stages=STAGES):
    torch.manual_seed(0)
    return randomised(build(architecture(stages)))


def tiny_vit(stages=STAGES, image=64):
    """The encoder alone."""
    from structsam_export.models.tiny_vit import TinyViT

    torch.manual_seed(0)
    return randomised(TinyViT(stages, image, 32))
