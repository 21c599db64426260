"""Masks as JSON."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from structsam_export.runtime.regions import area_of, box_of, compressed, mask_of, run_lengths, xywh


def mask_record(mask: np.ndarray, encoding: str) -> dict[str, Any]:
    """A mask bool (H, W): `area` in pixels, `bbox` (x, y, width, height), and itself.

    Raises:
        MissingRuntimeError: "coco_rle" without pycocotools.
    """
    return {"area": int(mask.sum()), "bbox": xywh(box_of(mask)), **_encoded(mask, run_lengths(mask), encoding)}


def run_record(found: dict[str, Any], encoding: str) -> dict[str, Any]:
    """The same of a record of `AutomaticMaskGenerator` in run lengths, with what it says of itself."""
    runs = found["segmentation"]
    mask = mask_of(runs) if encoding == "png" else np.zeros((0, 0), bool)
    return {
        "area": area_of(runs),
        "bbox": found["bbox"],
        "score": round(found["predicted_iou"], 6),
        "stability": round(found["stability_score"], 6),
        "point": found["point_coords"][0],
        **_encoded(mask, runs, encoding),
    }


def _encoded(mask: np.ndarray, runs: dict[str, Any], encoding: str) -> dict[str, Any]:
    if encoding == "png":
        return {"png": base64.b64encode(_png(mask)).decode()}
    return {"segmentation": compressed(runs) if encoding == "coco_rle" else runs}


def _png(mask: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")  # one bit a pixel
    return buffer.getvalue()


def floats_as_text(values: np.ndarray) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def npy(values: np.ndarray) -> bytes:
    """A NumPy file."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
