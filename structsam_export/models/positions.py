"""Weights of a SAM trained at one image size, fitted to another: only what depends on the grid changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ABSOLUTE = "pos_embed"
RELATIVE = ("rel_pos_h", "rel_pos_w")


def fitted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with positions interpolated to the shapes that a model expects.

    The absolute embedding (1, H, W, D) is interpolated bicubically, as ViTs are moved to other sizes; tables of
    relative positions (2 N - 1, D) linearly, as `segment_anything`'s own `get_rel_pos` does on every call: masks
    stay as they are. What has another number of channels is left for `load_into` to refuse.

    Args:
        state: a checkpoint's weights, under the model's own names.
        expected: the model's state dict; only shapes are looked at.
    """
    import torch.nn.functional as F

    made = dict(state)
    for name, want in expected.items():
        have, kind = state.get(name), name.rpartition(".")[2]
        if have is None or have.ndim != want.ndim or have.shape == want.shape or have.shape[-1] != want.shape[-1]:
            continue
        if not have.is_floating_point():  # quantised: `load_into` refuses it
            continue
        if kind == ABSOLUTE:
            planes = have.float().permute(0, 3, 1, 2)
            size = (want.shape[1], want.shape[2])
            made[name] = F.interpolate(planes, size, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        elif kind in RELATIVE:
            made[name] = F.interpolate(have.float().T[None], want.shape[0], mode="linear")[0].T
    return made
