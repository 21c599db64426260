"""Metrics against counts done by hand and against slow references that share no code with them."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch

from structsam_export.evaluate.metrics import boundary, boundary_iou, dice, scores
from structsam_export.evaluate.protocols import box_of, filled_boxes, point_of
from structsam_export.evaluate.statistics import interval, summary
from structsam_export.metrics import iou


def square(h, w, y0, x0, y1, x1):
    """A mask of one rectangle, last row and column excluded."""
    mask = np.zeros((h, w), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def slow_boundary(mask, ratio):
    """The definition, pixel by pixel: something outside the mask, or the image, within d rows and columns."""
    h, w = mask.shape
    d = max(1, int(round(ratio * sqrt(h * h + w * w))))
    found = np.zeros_like(mask)
    for y in range(h):
        for x in range(w):
            near = [(i, j) for i in range(y - d, y + d + 1) for j in range(x - d, x + d + 1)]
            outside = any(not (0 <= i < h and 0 <= j < w) or not mask[i, j] for i, j in near)
            found[y, x] = mask[y, x] and outside
    return found


def eroded_boundary(mask, ratio):
    """The published way: a border of zeros, then as many 3 x 3 erosions as pixels, as minima of neighbours."""
    d = max(1, int(round(ratio * np.hypot(*mask.shape))))
    x = torch.nn.functional.pad(torch.as_tensor(mask, dtype=torch.float32), (1, 1, 1, 1))[None, None]
    for _ in range(d):
        x = -torch.nn.functional.max_pool2d(-x, 3, stride=1, padding=1)
    return mask & ~np.asarray(x[0, 0, 1:-1, 1:-1] > 0)


def random_masks(count=12, size=(17, 23)):
    rng = np.random.default_rng(1)
    for i in range(count):
        noise = torch.as_tensor(rng.normal(size=(1, 1, 5, 6)))
        smooth = torch.nn.functional.interpolate(noise, size, mode="bicubic")
        yield np.asarray(smooth[0, 0] > rng.normal() / 2), 0.02 * (1 + i % 5)


def test_counted_by_hand():
    # 30 x 40: the diagonal is 50 and d = 1. Two 6 x 6 squares that share 6 x 4 pixels.
    a, b = square(30, 40, 10, 10, 16, 16), square(30, 40, 10, 12, 16, 18)
    assert iou(a, b) == 24 / 48
    assert dice(a, b) == 2 * 24 / 72
    assert boundary(a).sum() == boundary(b).sum() == 36 - 16
    # Rings of 20: they share top and bottom, 4 pixels each, and no column (10, 15 against 12, 17).
    assert boundary_iou(a, b) == 8 / 32


def test_the_width_follows_the_diagonal():
    mask = square(300, 400, 100, 100, 160, 160)  # diagonal 500, d = 10
    assert boundary(mask).sum() == 60 * 60 - 40 * 40
    assert boundary(mask, 0.01).sum() == 60 * 60 - 50 * 50
    assert boundary(square(3, 4, 0, 0, 3, 4)).sum() == 12 - 2  # d is at least 1


def test_a_mask_cut_off_by_the_border_has_its_boundary_there():
    everything = np.ones((30, 40), bool)
    assert boundary(everything).sum() == 30 * 40 - 28 * 38


def test_empty_masks():
    none, some = np.zeros((9, 9), bool), square(9, 9, 2, 2, 5, 5)
    assert iou(none, none) == dice(none, none) == boundary_iou(none, none) == 1
    assert iou(none, some) == dice(some, none) == boundary_iou(none, some) == 0


@pytest.mark.parametrize(("mask", "ratio"), random_masks())
def test_boundaries_are_those_of_slow_references(mask, ratio):
    assert np.array_equal(boundary(mask, ratio), slow_boundary(mask, ratio))
    assert np.array_equal(boundary(mask, ratio), eroded_boundary(mask, ratio))


def test_scores_are_lists_over_objects():
    a, b = square(30, 40, 10, 10, 16, 16), square(30, 40, 10, 12, 16, 18)
    found = scores(np.stack([a, a]), np.stack([a, b]))
    assert found == {"iou": [1, 0.5], "boundary_iou": [1, 0.25], "dice": [1, 48 / 72]}


def test_prompts_from_masks():
    mask = square(20, 30, 4, 5, 13, 10)  # rows 4 to 12, columns 5 to 9
    assert box_of(mask) == (5, 4, 9, 12)
    assert point_of(mask) == (7, 6)  # 3 from the sides; the first of five rows
    assert filled_boxes(mask[None])[0].sum() == 9 * 5
    ell = square(20, 20, 2, 2, 18, 5) | square(20, 20, 12, 2, 18, 18)
    assert iou(filled_boxes(ell[None])[0], ell) == ell.sum() / 256
    x, y = point_of(ell)
    assert ell[int(y), int(x)]


def test_a_point_is_the_centre_of_the_largest_disc():
    y, x = np.mgrid[:60, :60]
    mask = (np.hypot(y - 20, x - 25) <= 12) | (np.hypot(y - 48, x - 50) <= 6)
    assert point_of(mask) == (25, 20)
    assert point_of(np.ones((5, 9), bool)) == (2, 2)  # the image's border is a boundary


def image(name="a", group="", objects=1, filled=0.5, **models):
    scored = {m: {"iou": v, "boundary_iou": v / 2, "dice": v} for m, v in models.items()}
    return {"name": name, "group": group, "objects": objects, "box_filled": filled, "scores": scored}


def test_intervals():
    values = np.random.default_rng(3).normal(0.7, 0.1, 200)
    found = interval(values)
    assert found == interval(list(values))  # seeded
    assert found["mean"] == pytest.approx(values.mean(), abs=1e-15)
    error = values.std() / sqrt(200)  # for a mean, the bootstrap has to come close to the normal interval
    assert found["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert interval([0.25]) == {"mean": 0.25, "low": None, "high": None}


def test_a_row_for_each_group_and_model():
    images = [image(dense=0.5, fast=0.4), image(dense=0.9, fast=0.9, objects=7), image(group="b", dense=1.0, fast=0.0)]
    rows = summary(images, "dense")
    assert [(r["group"], r["name"], r["images"], r["objects"]) for r in rows] == [
        ("", "dense", 2, 8),
        ("", "fast", 2, 8),
        ("b", "dense", 1, 1),
        ("b", "fast", 1, 1),
    ]
    assert rows[0]["difference"] is None
    assert rows[0]["iou"]["mean"] == pytest.approx(0.7)  # over images, however many objects they hold
    assert rows[1]["difference"]["iou"]["mean"] == pytest.approx(-0.05)
    assert rows[3]["difference"]["iou"] == {"mean": -1, "low": None, "high": None}


def test_differences_are_paired():
    """Two models that differ by the same amount everywhere: a narrow interval, however much images differ."""
    base = np.random.default_rng(0).uniform(0.2, 0.9, 20)
    rows = summary([image(dense=v, fast=v - 0.01) for v in base], "dense")
    assert rows[1]["difference"]["iou"]["high"] - rows[1]["difference"]["iou"]["low"] < 1e-9
    assert rows[0]["iou"]["high"] - rows[0]["iou"]["low"] > 0.05
