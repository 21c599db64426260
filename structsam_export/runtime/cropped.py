"""Photos for timm's models: resized, cropped and normalised as the model's own data configuration says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import floor
from typing import Any

import numpy as np

from structsam_export.errors import ArtifactError
from structsam_export.runtime.images import Prepared
from structsam_export.schema import Misfit, check, one_of, require

CROPS = ("center", "squash")
SMALLEST = 0.1  # share of a side: the rest is resized for nothing
FILTERS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}

FORM: dict[Any, Any] = {
    **dict.fromkeys(("mean", "std"), [float]),
    "interpolation": one_of(*FILTERS),
    "crop_pct": float,
    "crop_mode": one_of(*CROPS),
}


@dataclass(frozen=True)
class DataConfig:
    """What timm's `resolve_model_data_config` says of a model, without the size.

    Args:
        mean, std: of red, green and blue, of values from 0 to 1.
        interpolation: a key of `FILTERS`.
        crop_pct: the square is this share of the resized photo's side.
        crop_mode: "center": the shorter side is resized and the middle taken; "squash": both sides are resized.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataConfig:
        """Inverse of `to_dict`, of values that a manifest holds.

        Raises:
            ArtifactError: missing, or out of all proportion.
        """
        where = "manifest.model.data"
        try:
            require(data, FORM, where)
            check(data, FORM, where)
            colours = [tuple(map(float, data[key])) for key in ("mean", "std")]
            if set(data) != set(FORM) or [len(c) for c in colours] != [3, 3] or min(colours[1]) <= 0:
                raise Misfit(f"{where} is not of three colours")
            if not SMALLEST <= data["crop_pct"] <= 1:
                raise Misfit(f"{where}.crop_pct is out of range")
        except Misfit as error:
            raise ArtifactError(f"The manifest cannot be used: {error}. Export again with --force.") from None
        return cls(colours[0], colours[1], data["interpolation"], float(data["crop_pct"]), data["crop_mode"])

    def resized(self, original: tuple[int, int], size: int) -> tuple[int, int]:
        """(height, width) of a photo of (h, w) before the square of `size` px is cut out."""
        side, (height, width) = floor(size / self.crop_pct), original
        if self.crop_mode == "squash":
            return side, side
        if height <= width:
            return side, int(side * width / height)
        return int(side * height / width), side


def prepare_cropped(image: np.ndarray, size: int, data: DataConfig) -> Prepared:
    """A photo (h, w, 3) uint8 as timm's evaluation transform makes it, for a model that takes `size` px.

    `seen` of the result is the square that was cut out; its `scale` leads to no place in the photo.
    """
    from PIL import Image

    height, width = data.resized((image.shape[0], image.shape[1]), size)
    method = Image.Resampling[FILTERS[data.interpolation]]
    pixels = np.asarray(Image.fromarray(image).resize((width, height), method))
    top, left = (round((side - size) / 2) for side in (height, width))
    seen = np.ascontiguousarray(pixels[top : top + size, left : left + size])
    values: np.ndarray = seen.astype(np.float32) / np.float32(255)
    values = np.divide(values - np.array(data.mean, np.float32), np.array(data.std, np.float32))
    tensor = np.ascontiguousarray(values.transpose(2, 0, 1)[None])
    return Prepared(tensor, (image.shape[0], image.shape[1]), (size, size), (1.0, 1.0), seen)
