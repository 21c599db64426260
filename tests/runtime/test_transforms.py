"""Sizes, coordinates, pixels and logits against `segment_anything`'s own transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide as Sams
from torch.nn.functional import interpolate

from structsam_export.runtime.images import masks_of, upscaled
from structsam_export.runtime.transforms import ResizeLongestSide, transform_of


def test_coordinates_of_500_sizes_are_sams():
    rng = np.random.default_rng(0)
    for _ in range(500):
        target = int(rng.choice([128, 512, 1024, int(rng.integers(16, 3000))]))
        # Sides that SAM's class would round to 0 px are the next test's.
        shape = h, w = tuple(int(n) for n in np.exp(rng.uniform(np.log(8), np.log(6000), 2)))
        if min(h, w) * target / max(h, w) < 0.5:
            continue
        ours, sams = ResizeLongestSide(target), Sams(target)
        assert ours.get_preprocess_shape(h, w, target) == sams.get_preprocess_shape(h, w, target)
        points, boxes = rng.uniform(-9, 1.1, (5, 2)) * (w, h), rng.uniform(0, 1, (3, 4)) * (w, h, w, h)
        assert (ours.apply_coords(points, shape) == sams.apply_coords(points, shape)).all()
        assert (ours.apply_boxes(boxes, shape) == sams.apply_boxes(boxes, shape)).all()
        assert ours.scale(shape) == tuple(sams.apply_coords(np.ones(2), shape))


def test_a_side_that_would_vanish_keeps_a_pixel():
    assert Sams.get_preprocess_shape(1, 5000, 512) == (0, 512)
    assert ResizeLongestSide.get_preprocess_shape(1, 5000, 512) == (1, 512)
    assert ResizeLongestSide(512).apply_image(np.zeros((1, 5000, 3), np.uint8)).shape == (1, 512, 3)


@pytest.mark.parametrize("shape", [(375, 501), (640, 427), (512, 512), (23, 37), (300, 1), (1001, 1500)])
def test_pixels_are_sams(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    assert (ResizeLongestSide(512).apply_image(image) == Sams(512).apply_image(image)).all()
    turned = image[..., ::-1]
    assert (ResizeLongestSide(512).apply_image(turned) == Sams(512).apply_image(turned)).all()
    assert (image == before).all()


def test_medsam_stretches():
    stretch = transform_of("medsam", 64)
    assert stretch.apply_image(np.zeros((20, 50, 3), np.uint8)).shape == (64, 64, 3)
    assert stretch.apply_coords(np.array([[25, 10]]), (20, 50)).tolist() == [[32, 32]]


@pytest.mark.parametrize("shape", [(375, 501), (640, 427), (512, 512), (23, 37), (300, 1), (1, 700), (1365, 2048)])
@pytest.mark.parametrize(("low", "size"), [(128, 512), (256, 1024)])
def test_logits_are_enlarged_as_pytorch_does_it(shape, low, size):
    """Noise of 15 a pixel is steeper than any logits: rounding shows more than it ever will."""
    logits = np.random.default_rng(1).normal(size=(2, low, low)).astype(np.float32) * 15
    height, width = resized = ResizeLongestSide.get_preprocess_shape(*shape, size)
    square = interpolate(torch.tensor(logits)[None], (size, size), mode="bilinear", align_corners=False)
    wanted = interpolate(square[..., :height, :width], shape, mode="bilinear", align_corners=False)[0].numpy()
    found = upscaled(logits, size, resized, shape)
    assert found.dtype == np.float32 and abs(found - wanted).max() <= 1e-5 * abs(wanted).max()
    masks = masks_of(logits, size, resized, shape, threshold=3.0)
    assert (masks == (found > 3)).all()
