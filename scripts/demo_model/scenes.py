"""Scenes with exact masks, to train and to measure the demo model.

A scene is a background (photograph, texture or noise) with three to eight objects pasted over it: cut-outs
with alpha, textured shapes, and thin structures (strokes, rings, combs, lattices). Later objects occlude
earlier ones, so every mask is the visible part only.

Sources are read from a folder made by `scripts/demo_model/fetch_pictures.sh` and are split by the hash of their file
name: one file in eight is held out and never trained on. Everything is drawn from one `random.Random(seed)`.

The second round trains on harder scenes than it is measured on (`hard`): twice the share of thin structures, more
photographs, crowds of small look-alikes, soft edges, grey pictures.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from demo_model.shapes import draw_blob, draw_thin, noise
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

HELD_OUT_SHARE = 8
# Objects that get a prompt: at least this share of the scene, and at least half of themselves, can be seen.
MIN_VISIBLE, MIN_SHOWN = 0.004, 0.5
MIN_VISIBLE_HARD = 0.001


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

    def __init__(self, root: str | Path, held_out: bool, hard: bool = False) -> None:
        keep = lambda folder: sorted(  # noqa: E731
            p for p in (Path(root) / folder).rglob("*") if p.is_file() and is_held_out(p) == held_out
        )
        self.cutouts, self.backgrounds = keep("cutouts"), keep("backgrounds")
        if not self.cutouts or not self.backgrounds:
            raise SystemExit(f"{root}: no cutouts/ or backgrounds/; run scripts/demo_model/fetch_pictures.sh {root}")
        self.hard = hard
        if hard:  # only ever trained on, so there is nothing to hold out
            self.backgrounds += sorted((Path(root) / "photos").iterdir())
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

    def piece(self, rng: random.Random, size: int) -> tuple[Image.Image, str]:
        """One object of a drawn kind, RGBA (size, size)."""
        draw = rng.random()
        cutouts, thin = (0.5, 0.8) if self.hard else (0.6, 0.75)
        kind = "cutout" if draw < cutouts else "thin" if draw < thin else "blob"
        made = self.cutout(rng, size) if kind == "cutout" else self.shape(rng, size, kind == "thin")
        if self.hard and rng.random() < 0.4:  # no razor-sharp seam to go by
            alpha = made.getchannel("A").filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
            made.putalpha(alpha)
        return made, kind

    def crowd(self, rng: random.Random, size: int) -> list[tuple[Image.Image, str]]:
        """Six to twenty small copies of one cut-out or one blob, each RGBA (size, size)."""
        model = self.cutout(rng, size) if rng.random() < 0.5 else self.shape(rng, size, thin=False)
        model = model.crop(model.getchannel("A").getbbox() or (0, 0, size, size))
        side = size * rng.uniform(0.04, 0.16)
        pieces = []
        for _ in range(rng.randint(6, 20)):
            scale = side * rng.uniform(0.8, 1.25) / max(model.size)
            w, h = (max(4, int(d * scale)) for d in model.size)
            one = model.resize((w, h), Image.Resampling.BILINEAR)
            one = one.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR, expand=True)
            canvas = Image.new("RGBA", (size, size))
            canvas.paste(one, (rng.randint(0, size - 4), rng.randint(0, size - 4)))
            pieces.append((canvas, "crowd"))
        return pieces

    def scene(self, seed: int, size: int) -> Scene:
        """The scene of `seed` at (size, size); small and mostly hidden objects get no mask."""
        rng = random.Random(seed)
        image = self.texture(rng, size)
        masks: list[np.ndarray] = []
        kinds: list[str] = []
        whole: list[int] = []
        crowded = self.hard and rng.random() < 0.2
        objects = iter(self.crowd(rng, size)) if crowded else (self.piece(rng, size) for _ in range(rng.randint(3, 8)))
        for piece, kind in objects:
            alpha = piece.getchannel("A")
            if rng.random() < 0.3:
                shade = ImageChops.offset(alpha.filter(ImageFilter.GaussianBlur(size / 60)), size // 50)
                image.paste((0, 0, 0), mask=shade.point(lambda v: v * 0.5))
            image.paste(piece.convert("RGB"), mask=alpha)
            solid = np.asarray(alpha) > 127
            masks = [m & ~solid for m in masks] + [solid]
            kinds.append(kind)
            whole.append(int(solid.sum()))
        if self.hard and rng.random() < 0.15:
            image = image.convert("L").convert("RGB")
        if rng.random() < 0.3:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
        pixels = np.asarray(image, dtype=np.float32)
        grain = np.random.default_rng(seed).normal(0, rng.uniform(0, 8), pixels.shape[:2])
        pixels = np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8)
        least = MIN_VISIBLE_HARD if self.hard else MIN_VISIBLE
        keep = [i for i, m in enumerate(masks) if m.mean() >= least and m.sum() >= MIN_SHOWN * whole[i]]
        if not keep:
            return self.scene(seed + 1_000_003, size)
        return Scene(pixels, np.stack([masks[i] for i in keep]), [kinds[i] for i in keep])
