"""The sets `composites` and `thin`: cut-outs and thin shapes on photos, drawn from fixed seeds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from evaluation_set.sources import BACKGROUNDS, Sources
from evaluation_set.thin_shapes import thin
from PIL import Image

SIZE = 512
COMPOSITES, THIN = 48, 32
QUALITY = 92
PALETTE = ((40, 42, 46), (120, 122, 126), (196, 198, 202), (104, 72, 44), (176, 142, 96), (150, 40, 36), (44, 78, 128))
PALETTE += ((222, 214, 190), (62, 92, 52))
GREY = np.array((0.299, 0.587, 0.114))


class Layer(NamedTuple):
    """`colour` float32 (S, S, 3) from 0 to 255, `alpha` float32 (S, S) from 0 to 1; masked: it gets a mask."""

    what: str
    colour: np.ndarray
    alpha: np.ndarray
    masked: bool = True


def background(photo: Image.Image, rng: random.Random) -> np.ndarray:
    """A square part of a photo in another light, float32 (S, S, 3) from 0 to 255."""
    side = int(min(photo.size) * rng.uniform(0.55, 1.0))
    x, y = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    part = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    light = np.array([rng.uniform(0.9, 1.1) for _ in range(3)]) * rng.uniform(0.8, 1.1)
    return (255 * (np.asarray(part, np.float32) / 255) ** rng.uniform(0.8, 1.25) * light).astype(np.float32)


def cutout(path: Path, rng: random.Random, masked: bool = True) -> Layer:
    """A cut-out scaled, turned and placed; at least about three quarters of it are inside."""
    piece = Image.open(path).convert("RGBA")
    piece = piece.crop(piece.getchannel("A").getbbox())
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = rng.uniform(90, 290) / max(piece.size)
    piece = piece.resize([max(1, round(d * scale)) for d in piece.size], Image.Resampling.LANCZOS)
    piece = piece.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
    at = [rng.randint(-d // 5, SIZE - 4 * d // 5) for d in piece.size]
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(piece, (at[0], at[1]))
    pixels = np.asarray(canvas, np.float32)
    return Layer(path.name, pixels[..., :3] * rng.uniform(0.7, 1.05), pixels[..., 3] / 255, masked)


def thin_layer(kind: int, paints: list[tuple[int, ...]], ground: np.ndarray, rng: random.Random) -> Layer:
    """A thin thing in one colour, taken out of `paints`, lit from one side so that it looks round.

    The first colour is taken from which three quarters of what lies behind differ by 25 grey levels: what nobody could
    see is no truth to measure by.
    """
    name, alpha = thin(rng, kind, SIZE)
    behind = ground[alpha > 0.5] @ GREY
    clear = [float((abs(behind - np.dot(paint, GREY)) > 25).mean()) for paint in paints]
    paint = paints.pop(next((i for i, share in enumerate(clear) if share > 0.75), int(np.argmax(clear))))
    slope = np.gradient(blurred(alpha, 1.5))
    light = slope[0] * rng.choice((-1, 1)) + slope[1] * rng.choice((-1, 1))
    base = np.array(paint, np.float32) * rng.uniform(0.9, 1.1)
    return Layer(name, np.clip(base + 260 * light[..., None] + 12, 0, 255).astype(np.float32), alpha)


def blurred(alpha: np.ndarray, radius: float) -> np.ndarray:
    """A Gaussian blur, by separable sums (no library whose version could change a bit)."""
    reach = int(3 * radius)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
    out = alpha.astype(np.float64)
    for axis in (0, 1):
        padded = np.pad(out, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        out = sum(w * np.take(padded, np.arange(i, i + SIZE), axis) for i, w in enumerate(kernel / kernel.sum()))
    return np.asarray(out)


def shifted(values: np.ndarray, down: int, right: int) -> np.ndarray:
    """(S, S) moved by some pixels; zeros come in."""
    out = np.zeros_like(values)
    rows, columns = (slice(max(d, 0), SIZE + min(d, 0)) for d in (down, right))
    rows_from, columns_from = (slice(max(-d, 0), SIZE + min(-d, 0)) for d in (down, right))
    out[rows, columns] = values[rows_from, columns_from]
    return out


def compose(ground: np.ndarray, layers: list[Layer], rng: random.Random, seed: int) -> tuple[Image.Image, np.ndarray]:
    """Layers over a background: the picture, and what can be seen of each, uint8 (L, S, S)."""
    image, seen = ground, np.zeros((0, SIZE, SIZE))
    for layer in layers:
        alpha = layer.alpha.astype(np.float64)
        depth, reach = rng.uniform(0.1, 0.45), rng.randint(3, 12)
        shadow = depth * shifted(blurred(alpha, rng.uniform(3, 9)), reach, rng.choice((-1, 1)) * reach)
        image = image * (1 - shadow * (1 - alpha))[..., None]
        image = image * (1 - alpha)[..., None] + layer.colour * alpha[..., None]
        seen = np.concatenate([seen * (1 - alpha), alpha[None]])
    grain = np.random.default_rng(seed).normal(0, rng.uniform(1, 4), (SIZE, SIZE, 1))
    pixels = np.clip(image + grain, 0, 255).round().astype(np.uint8)
    return Image.fromarray(pixels), (seen * 255).round().astype(np.uint8)


def save_scene(folder: Path, name: str, image: Image.Image, layers: list[Layer], seen: np.ndarray) -> list[str]:
    """Write one scene; mostly hidden and tiny objects get no mask. Returns what the masks show."""
    image.save(folder / "images" / f"{name}.jpg", quality=QUALITY)
    shown = []
    for layer, alpha in zip(layers, seen):
        area, whole = int((alpha > 128).sum()), float(layer.alpha.sum())
        if layer.masked and area >= 600 and area >= 0.5 * whole:
            Image.fromarray(alpha).save(folder / "masks" / f"{name}_{len(shown)}.png", optimize=True)
            shown.append(layer.what)
    return shown


def make_scenes(sources: Sources, folder: Path) -> dict[str, Any]:
    """The sets `composites` and `thin`; returns what every scene was made of."""
    table: dict[str, Any] = {}
    deck = list(sources.cutouts)
    random.Random(0).shuffle(deck)
    names = sorted(BACKGROUNDS)
    for part in ("composites", "thin"):
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
    for i in range(COMPOSITES + THIN):
        part, index = ("composites", i) if i < COMPOSITES else ("thin", i - COMPOSITES)
        rng = random.Random(f"{part} {index}")
        where = names[index % len(names)]
        ground = background(sources.photo(where), rng)
        if part == "composites":
            layers = [cutout(deck[(3 * index + k) % len(deck)], rng) for k in range(2 + index % 3)]
        else:  # sometimes over, sometimes behind an object that gets no mask
            kinds = (index, index + 3) if index % 2 else (index,)
            paints = rng.sample(PALETTE, len(PALETTE))
            layers = [thin_layer(kind, paints, ground, rng) for kind in kinds]
            if index % 5 in (1, 3):
                at = 0 if index % 5 == 1 else len(layers)
                layers.insert(at, cutout(deck[-1 - index], rng, masked=False))
        image, seen = compose(ground, layers, rng, seed=i)
        name = f"{part}-{index:03}"
        shown = save_scene(folder / part, name, image, layers, seen)
        if not shown:
            raise SystemExit(f"{name}: nothing to see; change its seed")
        table[name] = {"background": where, "layers": [layer.what for layer in layers], "masks": shown}
    return table
