"""Alpha masks of thin things: wires, nets, hoops, ladders, springs, webs, branches; for `scenes`.

Every shape is drawn four times too large and averaged, so its edge is exact to 1/16 of a pixel's area. No part is as
wide as a 16 px token. Lengths are pixels of the finished (size, size) mask.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageDraw

FINER = 4
Points = list[tuple[float, float]]


class Pen:
    """Draws round-ended lines into an alpha mask."""

    def __init__(self, size: int) -> None:
        self.canvas = Image.new("L", (size * FINER, size * FINER))
        self.draw = ImageDraw.Draw(self.canvas)

    def line(self, points: Iterable[tuple[float, float]], width: float) -> None:
        """A line through `points`, `width` pixels wide."""
        big = [(x * FINER, y * FINER) for x, y in points]
        thick, r = max(1, round(width * FINER)), width * FINER / 2
        self.draw.line(big, fill=255, width=thick)
        for x, y in big:
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=255)

    def alpha(self) -> np.ndarray:
        """What was drawn, float32 (size, size) from 0 to 1."""
        return np.asarray(self.canvas.reduce(FINER), np.float32) / 255


class Frame:
    """A place: local coordinates, about -1 to 1, turned, stretched and bent a little, in pixels."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.x, self.y = (rng.uniform(0.35, 0.65) * size for _ in range(2))
        self.r = rng.uniform(0.18, 0.34) * size
        self.turn, self.flat = rng.uniform(0, math.tau), rng.uniform(0.6, 1.0)
        self.bend, self.wave = rng.uniform(0, 0.12), rng.uniform(0, math.tau)

    def __call__(self, points: Iterable[tuple[float, float]]) -> Points:
        out = []
        for u, v in points:
            u, v = u + self.bend * math.sin(2.5 * v + self.wave), self.flat * (v + self.bend * math.sin(2 * u))
            c, s = math.cos(self.turn), math.sin(self.turn)
            out.append((self.x + self.r * (c * u - s * v), self.y + self.r * (s * u + c * v)))
        return out


def straight(a: tuple[float, float], b: tuple[float, float], steps: int = 24) -> Points:
    """Points from a to b."""
    return [(a[0] + (b[0] - a[0]) * i / steps, a[1] + (b[1] - a[1]) * i / steps) for i in range(steps + 1)]


def circle(radius: float = 1.0, start: float = 0.0, turns: float = 1.0, grow: float = 0.0) -> Points:
    """Points of an arc or a spiral around the origin."""
    steps = int(90 * turns)
    angles = [start + math.tau * turns * i / steps for i in range(steps + 1)]
    return [
        ((radius + grow * i / steps) * math.cos(a), (radius + grow * i / steps) * math.sin(a))
        for i, a in enumerate(angles)
    ]


def wire(rng: random.Random, pen: Pen, place: Frame) -> None:
    """One smooth wandering line."""
    width, angle, bend, at = rng.uniform(3, 9), rng.uniform(0, math.tau), 0.0, (-0.9, 0.0)
    points = [at]
    for _ in range(90):
        bend = 0.9 * bend + rng.gauss(0, 0.045)
        home = math.atan2(-at[1], -at[0])
        pull = 0.05 * math.hypot(*at) ** 3 * math.sin(home - angle)
        angle += bend + pull
        at = (at[0] + 0.055 * math.cos(angle), at[1] + 0.055 * math.sin(angle))
        points.append(at)
    pen.line(place(points), width)


def cables(rng: random.Random, pen: Pen, place: Frame) -> None:
    """Three to five sagging lines across the picture."""
    size = pen.canvas.width / FINER
    width, sag, drop = rng.uniform(2, 4), rng.uniform(10, 70), rng.uniform(-90, 90)
    top, gap = rng.uniform(0.15, 0.5) * size, rng.uniform(18, 40)
    for i in range(rng.randint(3, 5)):
        steps = [k / 60 for k in range(61)]
        pen.line([(t * size, top + gap * i + drop * t + 4 * sag * t * (1 - t)) for t in steps], width)


def net(rng: random.Random, pen: Pen, place: Frame) -> None:
    """A bent lattice."""
    bars, width = rng.randint(4, 8), rng.uniform(2.5, 6)
    for i in range(bars):
        u = 2 * i / (bars - 1) - 1
        pen.line(place(straight((u, -1), (u, 1))), width)
        pen.line(place(straight((-1, u), (1, u))), width)


def hoops(rng: random.Random, pen: Pen, place: Frame) -> None:
    """Two or three rings inside each other, or one."""
    width = rng.uniform(4, 9)
    for i in range(rng.randint(1, 3)):
        pen.line(place(circle(1 - 0.3 * i)), width * (1 - 0.2 * i))


def wheel(rng: random.Random, pen: Pen, place: Frame) -> None:
    """A rim with spokes from a small hub."""
    arms, width = rng.randint(6, 14), rng.uniform(2, 3.5)
    pen.line(place(circle()), width * 2)
    pen.line(place(circle(0.16)), width)
    for i in range(arms):
        a = math.tau * i / arms
        pen.line(place(straight((0.16 * math.cos(a), 0.16 * math.sin(a)), (math.cos(a), math.sin(a)))), width)


def ladder(rng: random.Random, pen: Pen, place: Frame) -> None:
    """Two rails and rungs."""
    rungs, width = rng.randint(6, 11), rng.uniform(4, 8)
    for v in (-0.32, 0.32):
        pen.line(place(straight((-1.2, v), (1.2, v))), width)
    for i in range(rungs):
        u = 2.2 * i / (rungs - 1) - 1.1
        pen.line(place(straight((u, -0.32), (u, 0.32))), width * 0.75)


def rake(rng: random.Random, pen: Pen, place: Frame) -> None:
    """A handle, a bar and tines."""
    tines, width = rng.randint(6, 11), rng.uniform(3, 6)
    pen.line(place(straight((-1.3, 0), (0.45, 0))), width * 1.4)
    pen.line(place(straight((0.45, -0.6), (0.45, 0.6))), width * 1.2)
    for i in range(tines):
        v = 1.2 * i / (tines - 1) - 0.6
        pen.line(place(straight((0.45, v), (1.0, v))), width * 0.8)


def spring(rng: random.Random, pen: Pen, place: Frame) -> None:
    """A coil seen from the side."""
    turns, width = rng.randint(6, 10), rng.uniform(3, 5.5)
    steps = [i / 400 for i in range(401)]
    coil = [
        (2.2 * t - 1.1 + 0.09 * math.sin(math.tau * turns * t), 0.4 * math.cos(math.tau * turns * t)) for t in steps
    ]
    pen.line(place([(-1.4, 0.0), (-1.2, 0.1), *coil, (1.2, 0.1), (1.4, 0.0)]), width)


def web(rng: random.Random, pen: Pen, place: Frame) -> None:
    """Spokes with a spiral."""
    arms, width = rng.randint(7, 10), rng.uniform(1.6, 2.6)
    for i in range(arms):
        a = math.tau * i / arms + rng.uniform(-0.1, 0.1)
        pen.line(
            place(straight((0.08 * math.cos(a), 0.08 * math.sin(a)), (1.1 * math.cos(a), 1.1 * math.sin(a)))), width
        )
    pen.line(place(circle(0.15, rng.uniform(0, math.tau), rng.randint(4, 6), 0.85)), width)


def branch(rng: random.Random, pen: Pen, place: Frame) -> None:
    """A bare twig that forks and tapers."""

    def grow(at: tuple[float, float], angle: float, length: float, width: float, left: int) -> None:
        points = [at]
        for _ in range(8):
            angle += rng.gauss(0, 0.07)
            at = (at[0] + length / 8 * math.cos(angle), at[1] + length / 8 * math.sin(angle))
            points.append(at)
        for i in range(8):
            pen.line(place(points[i : i + 2]), max(1.5, width * (1 - 0.04 * i)))
        for side in (-1, 1) if left else ():
            grow(at, angle + side * rng.uniform(0.25, 0.75), length * rng.uniform(0.65, 0.85), width * 0.7, left - 1)

    grow((-1.2, 0.0), rng.uniform(-0.2, 0.2), 0.75, rng.uniform(6, 8.5), rng.randint(3, 4))


SHAPES: tuple[Callable[[random.Random, Pen, Frame], None], ...] = (
    wire, cables, net, hoops, wheel, ladder, rake, spring, web, branch,
)  # fmt: skip


def thin(rng: random.Random, kind: int, size: int) -> tuple[str, np.ndarray]:
    """The shape number `kind` somewhere in the picture: its name and its alpha, float32 (size, size) from 0 to 1."""
    pen, shape = Pen(size), SHAPES[kind % len(SHAPES)]
    shape(rng, pen, Frame(rng, size))
    return shape.__name__, pen.alpha()
