"""Scenes with exact masks, to train and to measure the demo model.

A scene is a background (photograph, texture or noise) with three to eight objects pasted over it: cut-outs
with alpha, textured shapes, and thin structures (strokes, rings, combs, lattices). Later objects occlude
earlier ones, so every mask is the visible part only.

Sources are read from a folder made by `scripts/fetch_demo_data.sh` and are split by the hash of their file
name: one file in eight is held out and never trained on. Everything is drawn from one `random.Random(seed)`.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

HELD_OUT_SHARE = 8
# Objects that get a prompt: at least this share of the scene, and at least half of themselves, can be seen.
MIN_VISIBLE, MIN_SHOWN = 0.004, 0.5


def is_held_out(path: Path) -> bool:
    """Same answer on every machine: depends on the file's name only."""
    return hashlib.sha1(path.name.encode()).digest()[0] % HELD_OUT_SHARE == 0


@dataclass
class Scene:
    """`image` uint8 (S, S, 3) and `masks` bool (M, S, S), the visible part of each object."""

    image: np.ndarray
    masks: np.ndarray
    kinds: list[str] = field(default_factory=list)


class SceneGenerator:
    """Draws scenes from a source folder with `cutouts/` (RGBA) and `backgrounds/` (RGB)."""

    def __init__(self, root: str | Path, held_out: bool) -> None:
        keep = lambda folder: sorted(  # noqa: E731
            p for p in (Path(root) / folder).rglob("*") if p.is_file() and is_held_out(p) == held_out
        )
        self.cutouts, self.backgrounds = keep("cutouts"), keep("backgrounds")
        if not self.cutouts or not self.backgrounds:
            raise SystemExit(f"{root}: no cutouts/ or backgrounds/; run scripts/fetch_demo_data.sh {root}")
        self._cache: dict[Path, Image.Image] = {}

    def _open(self, path: Path, mode: str, limit: int) -> Image.Image:
        if path not in self._cache:
            image = Image.open(path).convert(mode)
            image.thumbnail((limit, limit))
            self._cache[path] = image
        return self._cache[path]

    def texture(self, rng: random.Random, size: int) -> Image.Image:
        """A (size, size) RGB patch: crop of a background, or smooth noise."""
        if rng.random() < 0.2:
            return noise(rng, size)
        photo = self._open(rng.choice(self.backgrounds), "RGB", 1600)
        side = int(min(photo.size) * rng.uniform(0.25, 1.0))
        x, y = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
        patch = photo.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + side, y + side))
        patch = ImageEnhance.Color(patch).enhance(rng.uniform(0.2, 1.5))
        patch = ImageEnhance.Brightness(patch).enhance(rng.uniform(0.5, 1.3))
        return patch.rotate(rng.choice((0, 90, 180, 270)))

    def cutout(self, rng: random.Random, size: int) -> Image.Image:
        """One object, RGBA (size, size), scaled, turned and placed."""
        piece = self._open(rng.choice(self.cutouts), "RGBA", 320)
        if rng.random() < 0.5:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale = size * rng.uniform(0.15, 0.6) / max(piece.size)
        w, h = (max(4, int(d * scale * rng.uniform(0.8, 1.2))) for d in piece.size)
        piece = piece.resize((w, h), Image.Resampling.BILINEAR)
        piece = piece.rotate(rng.uniform(-35, 35), Image.Resampling.BILINEAR, expand=True)
        rgb = ImageEnhance.Brightness(piece.convert("RGB")).enhance(rng.uniform(0.6, 1.2))
        canvas = Image.new("RGBA", (size, size))
        at = (
            rng.randint(-piece.width // 4, size - 3 * piece.width // 4),
            rng.randint(-piece.height // 4, size - 3 * piece.height // 4),
        )
        canvas.paste(rgb, at)
        alpha = Image.new("L", (size, size))
        alpha.paste(piece.getchannel("A"), at)
        canvas.putalpha(alpha)
        return canvas

    def shape(self, rng: random.Random, size: int, thin: bool) -> Image.Image:
        """A procedural object, RGBA (size, size): filled blob or thin structure, flat or textured."""
        alpha = draw_thin(rng, size) if thin else draw_blob(rng, size)
        if rng.random() < 0.5:
            colour = tuple(rng.randint(0, 255) for _ in range(3))
            fill = Image.new("RGB", (size, size), colour)
        else:
            fill = self.texture(rng, size)
        fill.putalpha(alpha)
        return fill

    def scene(self, seed: int, size: int) -> Scene:
        """The scene of `seed` at (size, size); small and mostly hidden objects get no mask."""
        rng = random.Random(seed)
        image = self.texture(rng, size)
        masks: list[np.ndarray] = []
        kinds: list[str] = []
        whole: list[int] = []
        for _ in range(rng.randint(3, 8)):
            draw = rng.random()
            kind = "cutout" if draw < 0.6 else "thin" if draw < 0.75 else "blob"
            piece = self.cutout(rng, size) if kind == "cutout" else self.shape(rng, size, kind == "thin")
            alpha = piece.getchannel("A")
            if rng.random() < 0.3:
                shade = ImageChops.offset(alpha.filter(ImageFilter.GaussianBlur(size / 60)), size // 50)
                image.paste((0, 0, 0), mask=shade.point(lambda v: v * 0.5))
            image.paste(piece.convert("RGB"), mask=alpha)
            solid = np.asarray(alpha) > 127
            masks = [m & ~solid for m in masks] + [solid]
            kinds.append(kind)
            whole.append(int(solid.sum()))
        if rng.random() < 0.3:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
        pixels = np.asarray(image, dtype=np.float32)
        grain = np.random.default_rng(seed).normal(0, rng.uniform(0, 8), pixels.shape[:2])
        pixels = np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8)
        keep = [i for i, m in enumerate(masks) if m.mean() >= MIN_VISIBLE and m.sum() >= MIN_SHOWN * whole[i]]
        if not keep:
            return self.scene(seed + 1_000_003, size)
        return Scene(pixels, np.stack([masks[i] for i in keep]), [kinds[i] for i in keep])


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
