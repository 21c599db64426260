"""Pictures for the HTML report, as data URIs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from structsam_export.runtime.overlay import COLOURS as COLOURS
from structsam_export.runtime.overlay import with_masks as with_masks

if TYPE_CHECKING:
    from structsam_export.runtime.images import Prepared
    from structsam_export.runtime.prompts import Prompt

WIDTH = 360


def data_uri(image: np.ndarray, width: int = WIDTH) -> str:
    """A picture (h, w, 3) uint8 as a JPEG data URI, `width` px wide."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def with_prompts(image: np.ndarray, prompts: tuple[Prompt, ...]) -> np.ndarray:
    """The photo with its boxes and points drawn in."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    unit = max(picture.size) / 200
    for i, prompt in enumerate(prompts):
        colour = COLOURS[i % len(COLOURS)]
        if prompt.box is not None:
            pen.rectangle(prompt.box, outline=colour, width=max(2, round(unit)))
        elif prompt.point is not None:
            x, y = prompt.point
            pen.ellipse((x - 2 * unit, y - 2 * unit, x + 2 * unit, y + 2 * unit), fill=colour, outline="white")
    return np.asarray(picture)


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where two sets of masks (P, h, w) differ: white on black, thickened so that one pixel can be seen."""
    from PIL import Image, ImageFilter

    changed = Image.fromarray(((first != second).any(0) * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
    return np.repeat(np.asarray(changed)[..., None], 3, -1)


def token_map(ready: Prepared, image: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Each token of the photo painted with the mean colour of the group it was merged into.

    Args:
        ready: the prepared photo; its padding is cropped.
        image: the photo, uint8 (h, w, 3).
        source: group id of each token on the grid, (H, W) int.

    Returns:
        uint8 (h', w', 3); groups of more than one token are outlined.
    """
    from PIL import Image

    H, W = source.shape
    size = ready.tensor.shape[-1]
    patch = size // max(H, W)
    square = np.zeros((size, size, 3), np.uint8)
    nh, nw = ready.resized
    square[:nh, :nw] = np.asarray(Image.fromarray(image).resize((nw, nh)))
    tokens = square.reshape(H, patch, W, patch, 3).mean((1, 3))
    _, group = np.unique(source, return_inverse=True)
    group = group.reshape(-1)
    count = np.bincount(group)
    mean = np.stack([np.bincount(group, tokens[..., c].ravel()) / count for c in range(3)], -1)
    merged = (count[group] > 1).reshape(H, W)
    cell = max(4, 512 // max(H, W))
    fine = np.asarray(Image.fromarray(square).resize((W * cell, H * cell)), np.float32)
    flat = np.kron(mean[group].reshape(H, W, 3), np.ones((cell, cell, 1)))
    inside = np.kron(merged, np.ones((cell, cell))).astype(bool)
    out = np.where(inside[..., None], flat, fine)
    edges = np.zeros((H * cell, W * cell), bool)
    ids = np.kron(group.reshape(H, W), np.ones((cell, cell), int))
    edges[1:] |= ids[1:] != ids[:-1]
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    out[edges & inside] = (230, 159, 0)
    crop = (round(nh / size * H * cell), round(nw / size * W * cell))
    return out[: crop[0], : crop[1]].astype(np.uint8)
