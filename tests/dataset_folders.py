"""Tiny data sets of every layout, made in a temporary folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 12, 16


def photo(seed: int = 0, shape: tuple[int, ...] = (H, W, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def disk(x: int = 6, y: int = 5, r: int = 4) -> np.ndarray:
    ys, xs = np.indices((H, W))
    return (xs - x) ** 2 + (ys - y) ** 2 < r * r


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def save_mask(path: Path, mask: np.ndarray) -> Path:
    return save(path, mask.astype(np.uint8) * 255)


def make_hqsam(images: str, masks: str):
    def make(root: Path) -> Path:
        for i, name in enumerate(("b", "a 1")):
            save(root / images / f"{name}.jpg", photo(i))
            save_mask(root / masks / f"{name}.png", disk(6 + i))
        return root

    return make


def make_folder(root: Path) -> Path:
    for i, name in enumerate(("cat.png", "dog.jpg", "owl.webp", "elk.tif", "elk_2.png")):
        save(root / "images" / name, photo(i))
    save_mask(root / "masks" / "cat.png", disk())
    for i in (0, 10, 9):
        save_mask(root / "masks" / f"dog_{i}.png", disk(3 + i // 2, r=3))
    save_mask(root / "masks" / "owl" / "beak.png", disk(9))
    save_mask(root / "masks" / "owl" / "wing.png", disk(5))
    save_mask(root / "masks" / "elk_mask.png", disk(5))
    save_mask(root / "masks" / "elk_2.png", disk(8))
    return root


def make_labels(root: Path) -> Path:
    save(root / "images" / "a.png", photo(0))
    save(root / "images" / "b.bmp", photo(1))
    two = np.where(disk(4, r=3), 7, 0) + np.where(disk(11, r=3), 255, 0)
    save(root / "labels" / "a.png", two.astype(np.uint8))
    save(root / "labels" / "b.tif", np.where(disk(), 300, 0).astype(np.uint16))
    return root


def make_nnunet(root: Path) -> Path:
    save(root / "imagesTs" / "case_1_0000.png", photo(0))
    save(root / "labelsTs" / "case_1.png", disk().astype(np.uint8))
    return root


def make_npz(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    labels = np.where(disk(4, r=3), 1, 0) + np.where(disk(11, r=3), 2, 0)
    np.savez_compressed(root / "2D_a.npz", imgs=photo(0), gts=labels.astype(np.uint8))
    np.savez_compressed(root / "2D_b.npz", imgs=photo(1, (H, W)).astype(np.float32), gts=disk().astype(np.uint16))
    return root


def make_npy(root: Path) -> Path:
    for folder in ("imgs", "gts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    np.save(root / "imgs" / "a.npy", photo(0) / 255.0)
    np.save(root / "gts" / "a.npy", disk().astype(np.uint8))
    np.save(root / "imgs" / "b.npy", photo(1))
    np.save(root / "gts" / "b.npy", np.where(disk(), 3, 0).astype(np.uint8))
    return root


def coco_table() -> dict:
    from pycocotools import mask as coded

    rle = coded.encode(np.asfortranarray(disk().astype(np.uint8)))
    runs = np.concatenate([[0], disk(8).T.ravel().astype(int), [0]])
    edges = np.flatnonzero(np.diff(runs))
    counts = [int(n) for n in np.diff(np.concatenate([[0], edges, [H * W]]))]
    shapes = [
        (1, 7, [[2, 2, 12, 2, 12, 9, 2, 9]], 0),
        (1, 3, {"size": [H, W], "counts": rle["counts"].decode()}, 0),
        (1, 5, {"size": [H, W], "counts": counts}, 0),
        (1, 9, [[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]], 0),  # too small to cover a pixel
        (2, 1, {"size": [H, W], "counts": counts}, 1),  # a crowd
        (3, 2, [[1, 1, 6, 1, 6, 6], [8, 8, 14, 8, 14, 11]], 0),
    ]
    keys = ("image_id", "id", "segmentation", "iscrowd")
    return {
        "images": [{"id": i, "file_name": f"{i:012}.jpg", "height": H, "width": W} for i in (1, 2, 3)],
        "annotations": [dict(zip(keys, shape)) for shape in shapes],
    }


def make_coco(root: Path) -> Path:
    for i in (1, 2, 3):
        save(root / "val2017" / f"{i:012}.jpg", photo(i))
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(coco_table()))
    (root / "annotations" / "instances_train2017.json").write_text("{}")
    return root


HQ = {
    "dis5k-vd": ("DIS5K/DIS-VD", "im", "gt"),
    "coift": ("thin_object_detection/COIFT", "images", "masks"),
    "hrsod": ("thin_object_detection/HRSOD", "images", "masks_max255"),
    "thinobject5k-te": ("thin_object_detection/ThinObject5K", "images_test", "masks_test"),
}
# Name -> (maker, samples, objects in all).
MAKERS = {
    **{name: (make_hqsam(f"{place}/{i}", f"{place}/{m}"), 2, 2) for name, (place, i, m) in HQ.items()},
    "coco": (make_coco, 2, 4),
    "folder": (make_folder, 5, 8),
    "labels": (make_labels, 2, 3),
    "medsam-npz": (make_npz, 2, 3),
    "medsam-npy": (make_npy, 2, 2),
}
