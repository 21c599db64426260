"""Small images with true masks, drawn here, as a folder that `structsam_export.datasets` reads."""

from __future__ import annotations

import numpy as np
from PIL import Image


def scene(seed=0, size=(72, 96), objects=1):
    """An image (h, w, 3) of bright discs on a dim ground, and soft masks (objects, h, w), both uint8."""
    rng = np.random.default_rng(seed)
    h, w = size
    y, x = np.mgrid[:h, :w]
    image = rng.integers(20, 60, (h, w, 3)).astype(np.float64)
    masks = []
    for i in range(objects):
        cy, cx, r = h * rng.uniform(0.35, 0.65), w * (i + 0.5) / objects + rng.uniform(-4, 4), 0.2 * h
        alpha = np.clip(r - np.hypot(y - cy, x - cx) + 0.5, 0, 1)[..., None]
        image = image * (1 - alpha) + rng.integers(140, 250, 3) * alpha
        masks.append((alpha[..., 0] * 255).astype(np.uint8))
    return image.astype(np.uint8), np.stack(masks)


def write_folder(folder, count=3, objects=(1, 2, 1, 1)):
    """A folder of scenes; returns it."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        image, masks = scene(i, objects=objects[i])
        Image.fromarray(image).save(folder / "images" / f"s{i}.png")
        for k, mask in enumerate(masks):
            Image.fromarray(mask).save(folder / "masks" / f"s{i}_{k}.png")
    return folder
