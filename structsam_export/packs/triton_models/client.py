"""Masks of a picture from a Triton server: python client.py photo.jpg --point 320,240 --out mask.png

Needs: pip install 'tritonclient[all]' numpy pillow
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def numbers(text: str) -> list[float]:
    """ "320,240" as numbers."""
    return [float(part) for part in text.split(",")]


def parsed() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--point", action="append", type=numbers, help="x,y or x,y,0 for background; repeatable")
    parser.add_argument("--box", type=numbers, help="x0,y0,x1,y1")
    parser.add_argument("--out", default="mask.png")
    parser.add_argument("--url", help="default: localhost:8000, or :8001 with --grpc")
    parser.add_argument("--grpc", action="store_true")
    return parser.parse_args()


def feeds(asked: Any) -> dict[str, Any]:
    """The inputs of model `sam`: one prompt."""
    with Image.open(asked.image) as picture:
        found: dict[str, Any] = {"image": np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))}
    if asked.point:
        found["point_coords"] = np.array([[point[:2] for point in asked.point]], np.float32)
        found["point_labels"] = np.array([[int(point[2]) if len(point) > 2 else 1 for point in asked.point]])
    if asked.box:
        found["boxes"] = np.array([asked.box], np.float32)
    return found


def main() -> None:
    """Ask for three masks, keep the one that the model thinks best of."""
    asked = parsed()
    from tritonclient.utils import np_to_triton_dtype

    protocol: Any = import_module(f"tritonclient.{'grpc' if asked.grpc else 'http'}")
    client = protocol.InferenceServerClient(asked.url or f"localhost:{8001 if asked.grpc else 8000}")
    inputs = []
    for name, values in feeds(asked).items():
        tensor = protocol.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    answer = client.infer("sam", inputs)
    masks, scores = answer.as_numpy("masks")[0], answer.as_numpy("iou_predictions")[0]
    best = int(scores.argmax())
    Image.fromarray(masks[best]).save(asked.out)
    print(f"{asked.out}: {int(masks[best].sum())} pixels, predicted IoU {scores[best]:.3f}")


if __name__ == "__main__":
    main()
