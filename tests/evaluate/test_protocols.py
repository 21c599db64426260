"""Both protocols against the same steps written out with plain operations on stock `segment_anything`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_sets import scene
from segment_anything import SamPredictor

from structsam_export.config import ExportConfig
from structsam_export.errors import BadInputError, UsageError
from structsam_export.evaluate import evaluate
from structsam_export.evaluate.predictors import eager_predictors
from structsam_export.evaluate.protocols import PROTOCOLS, samhq_case
from structsam_export.job import Job


@dataclass(frozen=True)
class Arrays:
    """A sample in memory."""

    name: str
    pixels: np.ndarray
    grey: np.ndarray
    group: str = ""

    def image(self):
        return self.pixels

    def alpha(self):
        return self.grey

    def masks(self):
        return self.grey > 128

    def digest(self):
        return self.name


@pytest.fixture(scope="module")
def models():
    """The unpatched and a patched demo model."""
    return eager_predictors(Job.prepare(ExportConfig(rate=0.5)))


@pytest.fixture(scope="module")
def sam(models):
    return models[0].loaded.sam


@pytest.fixture(scope="module", params=[(70, 101), (600, 410)], ids=["enlarged", "reduced"])
def sample(request):
    return Arrays("x", *scene(5, request.param, objects=2))


def erode(mask, times):
    x = F.pad(mask.float(), (1, 1, 1, 1))[None, None]
    for _ in range(times):
        x = 1 - F.max_pool2d(1 - x, 3, stride=1, padding=1)
    return x[0, 0, 1:-1, 1:-1] > 0


def published(sam, pixels, grey):
    """The protocol of HQ-SAM and the thesis for one image and one mask, step by step: (IoU, boundary IoU)."""
    side = sam.image_encoder.img_size
    image = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)
    label = torch.tensor(grey, dtype=torch.float32)[None]
    image = F.interpolate(image[None], (side, side), mode="bilinear")[0].numpy().astype(np.uint8)
    rows, columns = torch.where(F.interpolate(label[None], (side, side), mode="bilinear")[0, 0] > 128)
    box = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()]).float()[None]
    request = {"image": torch.as_tensor(image), "boxes": box, "original_size": (side, side)}
    with torch.no_grad():
        masks = sam([request], multimask_output=False)[0]["masks"].float()
    if masks.shape[2:] != label.shape[1:]:
        masks = F.interpolate(masks, label.shape[1:], mode="bilinear", align_corners=False)
    drawn, truth = masks[0, 0] > 0, label[0] > 128
    width = max(1, round(0.02 * float(np.sqrt(grey.shape[0] ** 2 + grey.shape[1] ** 2))))
    edges = [m & ~erode(m, width) for m in (drawn, truth)]
    return [float((a & b).sum()) / float((a | b).sum()) for a, b in ((drawn, truth), edges)]


def test_samhq_is_the_published_protocol(models, sam, sample):
    with models[1].schedule.patched(sam.image_encoder):
        patched = [published(sam, sample.pixels, grey) for grey in sample.grey]
    expected = {"dense": [published(sam, sample.pixels, grey) for grey in sample.grey], models[1].name: patched}
    found = evaluate([sample], models, protocol="samhq").images[0]
    for name, pairs in expected.items():
        for metric, values in zip(("iou", "boundary_iou"), zip(*pairs)):
            assert found["scores"][name]["each"][metric] == pytest.approx(values, abs=1e-6)
            assert found["scores"][name][metric] == pytest.approx(np.mean(values), abs=1e-6)


def test_samhq_grows_masks_a_little(models, sample):
    """Zeros and ones resized and cut above 0 can only gain pixels over a cut at one half."""
    size = models[0].size
    case = samhq_case(sample, size, "sam", "box")
    logits = np.where(np.add.outer(np.arange(size // 4), np.arange(size // 4)) < size // 5, 5.0, -5.0)[None]
    drawn = case.draw(logits.astype(np.float32))[0]
    h, w = drawn.shape
    y, x = (np.arange(n) + 0.5 for n in (h, w))
    exact = np.add.outer(y / h, x / w) < 0.8
    assert drawn[exact].mean() > 0.99
    assert drawn.sum() >= exact.sum()


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_sam_is_what_the_predictor_does(models, sam, sample, prompt):
    predictor = SamPredictor(sam)
    predictor.set_image(sample.pixels)
    case = PROTOCOLS["sam"](sample, models[0].size, "sam", prompt)
    expected = []
    for mask in sample.masks():
        rows, columns = np.where(mask)
        given = {"box": np.array([columns.min(), rows.min(), columns.max(), rows.max()])}
        if prompt == "point":
            scale = models[0].size / max(mask.shape)
            middle = case.coords[len(expected), :1] / scale
            given = {"point_coords": middle, "point_labels": np.ones(1)}
        expected.append(predictor.predict(**given, multimask_output=False)[0][0])
    drawn = case.draw(models[0].logits(case))
    assert drawn.shape == sample.grey.shape
    assert (drawn != np.stack(expected)).mean() < 1e-4  # sides are rounded, scales are not
    found = evaluate([sample], models[:1], prompt=prompt).images[0]["scores"]["dense"]["each"]["iou"]
    exact = [(d & t).sum() / (d | t).sum() for d, t in zip(drawn, sample.masks())]
    assert found == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts_lie_in_encoder_pixels(sample, protocol):
    box = PROTOCOLS[protocol](sample, 512, "sam", "box")
    point = PROTOCOLS[protocol](sample, 512, "sam", "point")
    assert box.coords.shape == point.coords.shape == (2, 2, 2)
    assert box.labels.tolist() == [[2, 3]] * 2 and point.labels.tolist() == [[1, -1]] * 2
    assert np.array_equal(box.boxes, box.coords.reshape(2, 4))
    assert np.array_equal(point.boxes, np.tile(point.coords[:, 0], 2))
    h, w = sample.pixels.shape[:2]
    scale = np.array([512 / w, 512 / h]) if protocol == "samhq" else np.full(2, 512 / max(h, w))
    for mask, corners, (middle, _) in zip(sample.masks(), box.coords, point.coords):
        rows, columns = np.where(mask)
        expected = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]]) * scale
        assert np.abs(corners - expected).max() <= 1.5 * scale.max() + 1  # samhq takes it from the resized mask
        assert (corners[0] < middle).all() and (middle < corners[1]).all()


def test_a_mask_that_vanishes_when_it_is_resized():
    grey = np.zeros((1, 2000, 2000), np.uint8)
    grey[0, 1000, 1000] = 255
    tiny = Arrays("dot", np.zeros((2000, 2000, 3), np.uint8), grey)
    assert PROTOCOLS["sam"](tiny, 64, "sam", "box").truth.sum() == 1
    with pytest.raises(BadInputError, match="dot: a mask is empty"):
        PROTOCOLS["samhq"](tiny, 64, "sam", "box")


@pytest.mark.parametrize(
    ("grey", "message"),
    [
        (np.zeros((0, 70, 101), np.uint8), "has no masks"),
        (np.full((1, 71, 101), 255, np.uint8), "masks are 101x71 pixels, the image 101x70"),
        (np.zeros((1, 70, 101), np.uint8), "a mask is empty"),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_masks_that_do_not_fit(protocol, grey, message):
    with pytest.raises(BadInputError, match=message):
        PROTOCOLS[protocol](Arrays("x", scene(0, (70, 101))[0], grey), 64, "sam", "box")


def test_unknown_names():
    with pytest.raises(UsageError, match="Did you mean 'samhq'"):
        evaluate([], [], protocol="samhg")
    with pytest.raises(UsageError, match="Known prompts: box, point"):
        evaluate([], [], prompt="text")
