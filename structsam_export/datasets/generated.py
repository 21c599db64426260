"""Three hundred scenes drawn on the spot from fixed seeds, for methods that the bundled set cannot tell apart.

Objects are cut out of the bundled composites (exact soft masks) or drawn as lines narrower than a token; backgrounds
are parts of the bundled photos. A scene depends on its part, its number and the bundled files alone. It is synthetic,
and its objects are those of `bundled-composites`: a set to compare methods on, no measure of a model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from structsam_export.datasets.base import THRESHOLD, Dataset, Layout, Sample
from structsam_export.datasets.bundled import Composites, bundled_folder
from structsam_export.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE, COUNT = 512, 100  # side in pixels; scenes of each part
FINER = 2  # lines are drawn at so many times the size
VISIBLE, AREA = 0.3, 500  # of an object, share and pixels that must show for it to count
GREY = np.array((0.299, 0.587, 0.114), np.float32)


class Piece(NamedTuple):
    """Something in a scene: `colour` float32 (S, S, 3), `alpha` float32 (S, S) from 0 to 1; `counts`: has a mask."""

    colour: np.ndarray
    alpha: np.ndarray
    counts: bool = True


@dataclass(frozen=True, kw_only=True)
class Scene(Sample):
    """Scene `number` of a `part`: "thin", "occluded" or "clutter"."""

    part: str
    number: int

    def image(self) -> np.ndarray:
        return drawn(self.part, self.number)[0].copy()

    def size(self) -> tuple[int, int]:
        return SIZE, SIZE

    def stored(self) -> np.ndarray:
        return drawn(self.part, self.number)[1].copy()

    def mask_names(self, count: int) -> list[str]:
        return [f"{self.name}, object {i}" for i in range(max(count, 1))]

    def stored_bytes(self) -> Iterator[bytes]:
        yield from (part.tobytes() for part in drawn(self.part, self.number))


class Generated(Layout):
    """All three parts, each sample with its part's name as `group`."""

    TITLE = "The generated evaluation set"
    PARTS: ClassVar[tuple[str, ...]] = ("thin", "occluded", "clutter")

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        if root is not None:
            raise UsageError(f"Dataset '{name}' is drawn on the spot and takes no folder.")
        scenes = [(part, number) for part in cls.PARTS for number in range(COUNT)]
        return Dataset(name, [Scene(name=f"{p}-{i:03}", group=f"generated-{p}", part=p, number=i) for p, i in scenes])


@lru_cache(maxsize=4)
def drawn(part: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 (S, S, 3) and masks uint8 (K, S, S) of a scene; shared, not to be written to."""
    rng = random.Random(f"generated {part} {number}")
    while True:  # until an object shows; each attempt goes on with the same generator
        ground = background(rng)
        image, masks = composed(ground, PIECES[part](rng, ground), rng)
        if len(masks):
            return image, masks


def composed(ground: np.ndarray, pieces: list[Piece], rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Pieces over a background, the last one on top: the picture, and what can be seen of those that count."""
    image, seen = ground, np.zeros((0, SIZE, SIZE), np.float32)
    for piece in pieces:
        image = image + piece.alpha[..., None] * (piece.colour - image)
        seen = np.concatenate([seen * (1 - piece.alpha), piece.alpha[None]])
    grain = np.frombuffer(rng.randbytes(SIZE * SIZE), np.uint8).reshape(SIZE, SIZE, 1) / 255 - 0.5
    masks = (seen * 255).round().astype(np.uint8)
    shown = (masks > THRESHOLD).sum((1, 2))
    whole = [float((piece.alpha > THRESHOLD / 255).sum()) for piece in pieces]
    counted = [p.counts and n >= max(AREA, VISIBLE * w) for p, n, w in zip(pieces, shown, whole)]
    return np.clip(image + 8 * grain, 0, 255).round().astype(np.uint8), masks[np.array(counted, bool)]


def background(rng: random.Random) -> np.ndarray:
    """A square part of a bundled photo in another light, float32 (S, S, 3) from 0 to 255."""
    from PIL.Image import Resampling, Transpose

    photo = rng.choice(photos())
    side = int(min(photo.size) * rng.uniform(0.5, 1.0))
    x, y = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    part = photo.resize((SIZE, SIZE), Resampling.BICUBIC, (x, y, x + side, y + side))
    if rng.random() < 0.5:
        part = part.transpose(Transpose.FLIP_LEFT_RIGHT)
    light = np.array([rng.uniform(0.85, 1.15) for _ in range(3)], np.float32) * rng.uniform(0.75, 1.1)
    return np.asarray(part, np.float32) * light


def cutout(rng: random.Random, low: float, high: float, reach: float, counts: bool = True) -> Piece:
    """A cut-out whose longer side is `low` to `high` pixels, its centre within `reach` of the picture's centre."""
    from PIL import Image

    piece = rng.choice(cutouts())
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = rng.uniform(low, high) / max(piece.size)
    piece = piece.resize([max(2, round(d * scale)) for d in piece.size], Image.Resampling.LANCZOS)
    piece = piece.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC, expand=True)
    x, y = (round(SIZE / 2 + rng.uniform(-reach, reach) - d / 2) for d in piece.size)
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(piece, (x, y))
    pixels = np.asarray(canvas, np.float32)
    return Piece(pixels[..., :3] * rng.uniform(0.75, 1.05), pixels[..., 3] / 255, counts)


def line_thing(rng: random.Random, ground: np.ndarray, counts: bool = True, scale: float = 1.0) -> Piece:
    """Lines of 3 to 9 pixels: a wandering wire, a lattice, rings or a star, in a colour that stands out."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (SIZE * FINER, SIZE * FINER))
    pen, width = ImageDraw.Draw(canvas), rng.uniform(3, 9) * (0.5 + scale / 2) * FINER
    reach = 0.34 * scale
    middle = [rng.uniform(0.5 - reach, 0.5 + reach) if scale < 1 else rng.uniform(0.4, 0.6) for _ in range(2)]
    radius, turn = rng.uniform(0.2, 0.36) * scale, rng.uniform(0, math.tau)
    c, s = math.cos(turn) * radius, math.sin(turn) * radius
    for points in rng.choice((wire, lattice, rings, star))(rng):
        at = [(middle[0] + c * u - s * v, middle[1] + s * u + c * v) for u, v in points]
        pen.line([(x * SIZE * FINER, y * SIZE * FINER) for x, y in at], 255, round(width), "curve")
    alpha = np.asarray(canvas.reduce(FINER), np.float32) / 255
    behind = float(np.median(ground[alpha > 0.5] @ GREY)) if (alpha > 0.5).any() else 128.0
    base = rng.uniform(165, 240) if behind < 110 else rng.uniform(10, 60)
    colour = np.array([base * rng.uniform(0.8, 1.05) for _ in range(3)], np.float32)
    return Piece(np.broadcast_to(colour, ground.shape), alpha, counts)


Lines = list[list[tuple[float, float]]]


def wire(rng: random.Random) -> Lines:
    """A smooth curve through the unit square's neighbourhood: a sum of slow waves."""
    waves = [(rng.uniform(0.5, 3), rng.uniform(0, math.tau), rng.uniform(0.15, 0.5)) for _ in range(4)]
    steps = [i / 80 for i in range(81)]
    return [[(2.4 * t - 1.2, sum(a * math.sin(f * math.tau * t + p) for f, p, a in waves)) for t in steps]]


def lattice(rng: random.Random) -> Lines:
    """Bars along and across."""
    bars, bend = rng.randint(3, 6), rng.uniform(-0.3, 0.3)
    at = [2 * i / (bars - 1) - 1 for i in range(bars)]
    steps = [i / 10 - 1 for i in range(21)]
    along = [[(u + bend * (1 - t * t), t) for t in steps] for u in at]
    return along + [[(t + bend * (1 - u * u), u) for t in steps] for u in at]


def rings(rng: random.Random) -> Lines:
    """One to three rings around one centre, somewhat flat."""
    flat = rng.uniform(0.6, 1.0)
    angles = [math.tau * i / 72 for i in range(74)]
    return [[(r * math.cos(a), flat * r * math.sin(a)) for a in angles] for r in (1.0, 0.68, 0.36)[: rng.randint(1, 3)]]


def star(rng: random.Random) -> Lines:
    """Arms from a centre, each with a fork."""
    arms, found = rng.randint(5, 9), []
    for i in range(arms):
        a, fork = math.tau * i / arms + rng.uniform(-0.15, 0.15), rng.uniform(0.25, 0.5)
        knee = (0.6 * math.cos(a), 0.6 * math.sin(a))
        found.append([(0.0, 0.0), knee, (math.cos(a + fork / 2), math.sin(a + fork / 2))])
        found.append([knee, (math.cos(a - fork / 2), math.sin(a - fork / 2))])
    return found


def thin(rng: random.Random, ground: np.ndarray) -> list[Piece]:
    """One or two things made of lines; every third time with a cut-out behind or before them that does not count."""
    pieces = [line_thing(rng, ground) for _ in range(rng.randint(1, 2))]
    if rng.random() < 1 / 3:
        pieces.insert(rng.randint(0, len(pieces)), cutout(rng, 120, 240, 120, counts=False))
    return pieces


def occluded(rng: random.Random, ground: np.ndarray) -> list[Piece]:
    """Three to five cut-outs near the centre, each in part before the others."""
    return [cutout(rng, 130, 280, 110) for _ in range(rng.randint(3, 5))]


def clutter(rng: random.Random, ground: np.ndarray) -> list[Piece]:
    """One to three cut-outs among two dozen small things, most behind and some before them, that do not count."""

    def small() -> Piece:
        if rng.random() < 0.3:
            return line_thing(rng, ground, counts=False, scale=0.4)
        return cutout(rng, 24, 70, 250, counts=False)

    behind, before = [small() for _ in range(rng.randint(14, 22))], [small() for _ in range(rng.randint(2, 5))]
    return behind + [cutout(rng, 90, 230, 150) for _ in range(rng.randint(1, 3))] + before


PIECES = {"thin": thin, "occluded": occluded, "clutter": clutter}


@lru_cache(maxsize=1)
def photos() -> list[Image]:
    """The bundled photos, decoded, by name."""
    from PIL import Image

    from structsam_export.datasets.pictures import read_photo

    folder = bundled_folder().parent / "photos"
    return [Image.fromarray(read_photo(path)) for path in sorted(folder.glob("*.jpg"))]


@lru_cache(maxsize=1)
def cutouts() -> list[Image]:
    """Every object of the bundled composites with its soft mask, cut to its box: RGBA pictures."""
    from PIL import Image

    found = []
    for sample in Composites.listed():
        pixels = sample.image()
        for alpha in sample.alpha():
            piece = Image.fromarray(np.dstack([pixels, alpha]))
            found.append(piece.crop(Image.fromarray(alpha).getbbox()))
    return found
