"""Masks of a picture from Ray Serve: python client.py photo.jpg --point 320,240 --out mask.png

Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import base64
import json
import urllib.request
from pathlib import Path
from typing import Any


def numbers(text: str) -> list[float]:
    """ "320,240" as numbers."""
    return [float(part) for part in text.split(",")]


def post(url: str, body: bytes) -> Any:
    """The answer of a POST."""
    with urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=300) as answer:
        return json.load(answer)


def main() -> None:
    """Embed the photo, ask for three masks of a prompt, keep the one that the model thinks best of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--point", action="append", type=numbers, help="x,y or x,y,0 for background; repeatable")
    parser.add_argument("--box", type=numbers, help="x0,y0,x1,y1")
    parser.add_argument("--out", type=Path, default=Path("mask.png"))
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    asked = parser.parse_args()
    prompt: dict[str, Any] = {"image": post(f"{asked.url}/embed", asked.image.read_bytes())["image"]}
    if asked.point:
        prompt["points"] = [point[:2] for point in asked.point]
        prompt["labels"] = [int(point[2]) if len(point) > 2 else 1 for point in asked.point]
    if asked.box:
        prompt["box"] = asked.box
    best = post(f"{asked.url}/predict", json.dumps(prompt).encode())["masks"][0]
    asked.out.write_bytes(base64.b64decode(best["png"]))
    print(f"{asked.out}: predicted IoU {best['score']:.3f}")


if __name__ == "__main__":
    main()
