"""Source: EfficientSAM's checkpoints, whose modules have names of their own for parts that are SAM's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from structsam_export.models.reading import POSITIONS, Stated

if TYPE_CHECKING:
    from torch import Tensor

ANCHOR = "prompt_encoder.invalid_points.weight"
RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(image_encoder\.blocks\.\d+\.mlp)\.fc([12])\.", r"\1.lin\2."),
        (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.0\.0\.", r"\1.lin1."),
        (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.fc\.", r"\1.lin2."),
        (r"^mask_decoder\.final_output_upscaling_layers\.0\.([01])\.", r"mask_decoder.output_upscaling.\1."),
        (r"^mask_decoder\.final_output_upscaling_layers\.1\.0\.", "mask_decoder.output_upscaling.3."),
    )
)
# Heads of linear layers: numbered ones with their activations, and a last one.
INNER = re.compile(r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers)\.(\d+)\.0\.(.*)$")
LAST = re.compile(r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.fc\.(.*)$")


class EfficientSam:
    """`EfficientSam` of github.com/yformer/EfficientSAM."""

    NAME: ClassVar[str] = "efficient_sam"
    ANCHOR: ClassVar[str] = ANCHOR

    def renamed(self, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Tensors by SAM's names, positions (1, n, n, D) without the class token's, which no image uses."""
        found = [match for name in state if (match := INNER.match(name))]
        layers = {head: sum(m[1] == head for m in found if m[3] == "weight") for head in {m[1] for m in found}}
        made = {_renamed(name, layers): tensor for name, tensor in state.items()}
        table = made.get(POSITIONS)
        if table is not None and table.ndim == 3 and (side := isqrt(table.shape[1] - 1)) ** 2 + 1 == table.shape[1]:
            made[POSITIONS] = table[:, 1:].reshape(table.shape[0], side, side, table.shape[2])
        return made

    def stated(self, folder: Path) -> Stated:
        """SAM's own values; what all of these models share is the family's to say."""
        return Stated()


def _renamed(name: str, layers: Mapping[str, int]) -> str:
    if match := INNER.match(name):
        return f"{match[1]}.{match[2]}.{match[3]}"
    if match := LAST.match(name):
        return f"{match[1]}.layers.{layers.get(f'{match[1]}.layers', 0)}.{match[2]}"
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name
