"""What scenes are drawn with when they use no picture: noise, blobs and thin structures."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw


def noise(rng: random.Random, size: int) -> Image.Image:
    """Smooth colour noise over several octaves, RGB (size, size)."""
    gen = np.random.default_rng(rng.getrandbits(32))
    total = np.zeros((size, size, 3), np.float32)
    for octave in rng.sample((2, 4, 8, 16, 32, 64), 3):
        small = Image.fromarray(gen.integers(0, 256, (octave, octave, 3), dtype=np.uint8))
        total += np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((total / 3).astype(np.uint8))


def draw_blob(rng: random.Random, size: int) -> Image.Image:
    """Star-shaped polygon or ellipse, alpha (size, size)."""
    alpha = Image.new("L", (size, size))
    pen = ImageDraw.Draw(alpha)
    cx, cy, r = rng.uniform(0.1, 0.9) * size, rng.uniform(0.1, 0.9) * size, rng.uniform(0.06, 0.28) * size
    if rng.random() < 0.3:
        ry = r * rng.uniform(0.4, 1.0)
        pen.ellipse((cx - r, cy - ry, cx + r, cy + ry), fill=255)
    else:
        corners, rough = rng.randint(3, 12), rng.uniform(0.0, 0.6)
        turn = rng.uniform(0, math.tau)
        points = []
        for i in range(corners):
            reach, angle = r * (1 - rough * rng.random()), turn + i * math.tau / corners
            points.append((cx + reach * math.cos(angle), cy + reach * math.sin(angle)))
        pen.polygon(points, fill=255)
    return alpha


def draw_thin(rng: random.Random, size: int) -> Image.Image:
    """Stroke, ring, comb or lattice a few pixels wide, alpha (size, size)."""
    alpha = Image.new("L", (size, size))
    pen = ImageDraw.Draw(alpha)
    width = max(2, int(size * rng.uniform(0.012, 0.035)))
    cx, cy, r = rng.uniform(0.2, 0.8) * size, rng.uniform(0.2, 0.8) * size, rng.uniform(0.1, 0.35) * size
    kind = rng.choice(("stroke", "ring", "comb", "lattice", "spokes"))
    if kind == "stroke":
        angle, points = rng.uniform(0, math.tau), [(cx, cy)]
        for _ in range(rng.randint(4, 14)):
            angle += rng.uniform(-0.8, 0.8)
            x, y = points[-1]
            points.append((x + r / 3 * math.cos(angle), y + r / 3 * math.sin(angle)))
        pen.line(points, fill=255, width=width, joint="curve")
    elif kind == "ring":
        ry = r * rng.uniform(0.4, 1.0)
        pen.ellipse((cx - r, cy - ry, cx + r, cy + ry), outline=255, width=width)
    elif kind == "spokes":
        arms, turn = rng.randint(3, 9), rng.uniform(0, math.tau)
        for i in range(arms):
            angle = turn + i * math.tau / arms
            pen.line((cx, cy, cx + r * math.cos(angle), cy + r * math.sin(angle)), fill=255, width=width)
    else:
        bars = rng.randint(3, 7)
        for i in range(bars):
            x = cx - r + 2 * r * i / (bars - 1)
            pen.line((x, cy - r, x, cy + r), fill=255, width=width)
            if kind == "lattice":
                y = cy - r + 2 * r * i / (bars - 1)
                pen.line((cx - r, y, cx + r, y), fill=255, width=width)
        if kind == "comb":
            pen.line((cx - r, cy + r, cx + r, cy + r), fill=255, width=2 * width)
        alpha = alpha.rotate(rng.uniform(0, 90), Image.Resampling.BILINEAR, center=(cx, cy))
    return alpha
