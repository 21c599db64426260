"""Figures of the demo model: mean IoU by box and by point on held-out scenes and on real pictures with masks.

Real sets lie in DATA/real (`fetch_pictures.sh`); coins come with the package. Each is reported by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from demo_model.package import filled_boxes, iou, objects_of
from demo_model.scenes import SceneGenerator
from demo_model.steps import box_of, decode, encode
from PIL import Image, ImageDraw

FIRST_SEED, SCENES = 10_000_000, 120
SIZE = 512


def centre_of(mask: np.ndarray) -> tuple[int, int]:
    """A pixel (x, y) among those farthest inside a boolean mask (h, w)."""
    left = torch.from_numpy(np.pad(mask, 1)).float()[None]
    while True:
        next_left = -F.max_pool2d(-left, 3, 1, 1)
        if not next_left.any():
            ys, xs = np.nonzero(left[0].numpy())
            k = len(ys) // 2
            return int(xs[k]) - 1, int(ys[k]) - 1
        left = next_left


@torch.no_grad()
def predict(sam: Any, image: np.ndarray, prompts: list[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Single masks bool (P, h, w) and predicted IoUs (P,) of an image uint8 (h, w, 3) and prompts in its pixels.

    A prompt is a box (4,) or a point (2,). The longer side becomes `size` px, the rest is padded with SAM's mean.
    """
    h, w = image.shape[:2]
    scale = size / max(h, w)
    nh, nw = round(h * scale), round(w * scale)
    small = np.asarray(Image.fromarray(image).resize((nw, nh), Image.Resampling.BILINEAR))
    canvas = sam.pixel_mean.expand(3, size, size).clone()
    canvas[:, :nh, :nw] = torch.from_numpy(small.copy()).permute(2, 0, 1).float()
    embedding = encode(sam, canvas[None])[0]
    coords = np.stack([p.reshape(2, 2) if p.size == 4 else np.array([p, (0, 0)]) for p in prompts]) * scale
    labels = [(2, 3) if p.size == 4 else (1, -1) for p in prompts]
    masks, scores = [], []
    for at in range(0, len(prompts), 16):
        place = torch.tensor(coords[at : at + 16] / size).float()
        logits, iou = decode(sam, embedding, place, torch.tensor(labels[at : at + 16]))
        full = F.interpolate(logits[:, :1].float(), (size, size), mode="bilinear", align_corners=False)
        full = F.interpolate(full[..., :nh, :nw], (h, w), mode="bilinear", align_corners=False)
        masks.append((full[:, 0] > 0).numpy())
        scores.append(iou[:, 0].float().numpy())
    return np.concatenate(masks), np.concatenate(scores)


def figures_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over masks, and how well predicted IoUs go with true ones (Pearson, boxes and points together)."""
    mean = lambda key: float(np.mean([row[key] for row in rows]))  # noqa: E731
    figures = {"masks": len(rows), "box": mean("box"), "filled": mean("filled"), "point": mean("point")}
    true = [row[k] for k in ("box", "point") for row in rows]
    said = [row[f"{k} said"] for k in ("box", "point") for row in rows]
    if len(rows) > 1:
        figures["iou r"] = float(np.corrcoef(true, said)[0, 1])
    figures["iou error"] = float(np.mean(np.abs(np.subtract(true, said))))
    return figures


def rows_of(sam: Any, image: np.ndarray, masks: Any, points: list[Any], size: int = SIZE) -> list[dict[str, float]]:
    """IoU by box, by point and of the filled box for each mask of an image."""
    boxes = [box_of(mask) for mask in masks]
    got, said = predict(sam, image, boxes + [np.asarray(p, float) for p in points], size)
    rows = []
    for k, (mask, filled) in enumerate(zip(masks, filled_boxes(np.stack(masks)))):
        row = {"box": iou(got[k], mask), "filled": iou(filled, mask), "box said": float(said[k])}
        k += len(boxes)
        rows.append({**row, "point": iou(got[k], mask), "point said": float(said[k])})
    return rows


def generated_figures(sam: Any, root: str, scenes: int = SCENES, size: int = SIZE) -> dict[str, float]:
    """Over every object of held-out scenes; a point is one inner pixel drawn at random."""
    generator = SceneGenerator(root, held_out=True)
    rows, kinds = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        scene = generator.scene(seed, size)
        gen = np.random.default_rng(seed)
        points = []
        for mask in scene.masks:
            ys, xs = np.nonzero(mask)
            k = gen.integers(len(ys))
            points.append((xs[k], ys[k]))
        rows += rows_of(sam, scene.image, scene.masks, points, size)
        kinds += scene.kinds
    figures = figures_of(rows)
    for kind in ("thin", "cutout", "blob"):
        some = figures_of([row for row, its in zip(rows, kinds) if its == kind])
        figures |= {f"{kind} {key}": some[key] for key in ("masks", "box", "filled", "point")}
    return figures


def real_figures(sam: Any, root: str) -> dict[str, dict[str, float]]:
    """Over every mask of each real set; a point is the pixel farthest inside."""
    figures = {}
    for name, (image, masks) in real_sets(Path(root) / "real").items():
        figures[name] = figures_of(rows_of(sam, image, masks, [centre_of(m) for m in masks]))
    return figures


def real_sets(folder: Path) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
    """Image uint8 (h, w, 3) and boolean masks (h, w) of each set."""
    photos = Path(str(resources.files("structsam_export"))) / "assets" / "photos"
    labels = np.asarray(Image.open(photos / "coins.mask.png"))
    sets = {"coins": (np.asarray(Image.open(photos / "coins.jpg").convert("RGB")), list(objects_of(labels) > 0))}
    quokka = Image.open(folder / "quokka.jpg").convert("RGB")
    outline = Image.new("1", quokka.size)
    for polygon in json.loads((folder / "quokka_annotations.json").read_text())["polygons"]:
        ImageDraw.Draw(outline).polygon([(p["x"], p["y"]) for p in polygon["keypoints"]], fill=1)
    sets["quokka"] = (np.asarray(quokka), [np.asarray(outline)])
    for name in ("voc", "arc2017"):
        with np.load(folder / f"{name}.npz") as data:
            sets[name] = (data["rgb"], [m == 1 for m in data["masks"] if (m == 1).any()])
    nuclei = np.asarray(Image.open(folder / "img2d.tif"), dtype=float)
    low, high = np.percentile(nuclei, (1, 99.8))
    grey = (255 * ((nuclei - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    sets["nuclei"] = (np.stack([grey] * 3, -1), list(objects_of(np.asarray(Image.open(folder / "mask2d.tif"))) > 0))
    return sets


def all_figures(sam: Any, root: str) -> Iterator[tuple[str, dict[str, float]]]:
    """(set, figures) of the model card: generated scenes, then each real set."""
    yield "generated", generated_figures(sam, root)
    yield from real_figures(sam, root).items()
