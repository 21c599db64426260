"""Preparing photos and drawing masks, against segment_anything's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from structsam_export.errors import ImageError
from structsam_export.models.demo import build_demo
from structsam_export.runtime.images import masks_from_logits, prepare
from structsam_export.runtime.photos import bundled_photos, user_photos
from structsam_export.runtime.pictures import read_image
from structsam_export.runtime.prompts import Prompt, prompt_arrays


@pytest.fixture(scope="module")
def sam():
    return build_demo().eval()


@pytest.mark.parametrize("shape", [(375, 500), (640, 427), (512, 512), (33, 801)])
def test_prepare_equals_sam_predictor(sam, shape):
    from segment_anything import SamPredictor

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ready = prepare(image, 512)
    transform = SamPredictor(sam).transform
    resized = transform.apply_image(image)
    want = sam.preprocess(torch.as_tensor(resized.copy()).permute(2, 0, 1)[None].float())
    np.testing.assert_allclose(ready.tensor, want.numpy(), atol=2e-6)
    assert ready.resized == resized.shape[:2]
    point = np.array([[shape[1] * 0.3, shape[0] * 0.7]])
    coords, _ = prompt_arrays([Prompt("p", point=tuple(point[0]))], ready.scale)
    np.testing.assert_allclose(coords[0, :1], transform.apply_coords(point, shape), rtol=1e-6)


def test_masks_equal_sams_postprocessing(sam):
    ready = prepare(np.zeros((300, 451, 3), np.uint8), 512)
    logits = np.random.default_rng(0).normal(size=(3, 128, 128)).astype(np.float32)
    want = sam.postprocess_masks(torch.tensor(logits)[:, None], ready.resized, ready.original) > 0
    assert (masks_from_logits(logits, ready, 512) == want[:, 0].numpy()).all()


def test_medsam_stretches_and_scales_to_unit_range():
    image = np.random.default_rng(0).integers(20, 200, (60, 100, 3), dtype=np.uint8)
    ready = prepare(image, 512, "medsam")
    assert ready.resized == (512, 512)
    assert (ready.tensor.min(), ready.tensor.max()) == (0, 1)
    assert ready.scale == (5.12, 512 / 60)
    assert np.isfinite(prepare(np.full((9, 9, 3), 7, np.uint8), 512, "medsam").tensor).all()


def test_read_image_turns_and_converts(tmp_path):
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "grey.png", exif=exif)
    assert read_image(tmp_path / "grey.png").shape == (6, 4, 3)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\nbroken", b"\xff\xd8\xff\xe0 cut"])
def test_unreadable_images_are_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match="bad.png"):
        read_image(tmp_path / "bad.png")
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "missing.png")


def test_prompt_arrays_say_box_and_padded_point():
    coords, labels = prompt_arrays([Prompt("b", box=(1, 2, 3, 4)), Prompt("p", point=(5, 6))], (2.0, 3.0))
    assert coords.tolist() == [[[2, 6], [6, 12]], [[10, 18], [0, 0]]]
    assert labels.tolist() == [[2, 3], [1, -1]]


def test_bundled_photos_are_complete():
    photos = bundled_photos()
    assert len(photos) >= 4
    assert sum(p.truth is not None for photo in photos for p in photo.prompts) >= 8
    for photo in photos:
        h, w = photo.image.shape[:2]
        assert any(p.box for p in photo.prompts)
        for prompt in photo.prompts:
            assert (prompt.box is None) != (prompt.point is None)
            if prompt.box is not None:
                x0, y0, x1, y1 = prompt.box
                assert 0 <= x0 < x1 <= w
                assert 0 <= y0 < y1 <= h
            if prompt.truth is not None:
                assert prompt.truth.shape == (h, w)
                assert prompt.truth.any()
            if prompt.truth is not None and prompt.point is not None:
                x, y = prompt.point
                assert prompt.truth[int(y), int(x)], f"{photo.name}: {prompt.name} lies outside its own mask"


def test_user_photos_get_prompts(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "mine.png")
    (photo,) = user_photos([str(tmp_path / "mine.png")])
    assert photo.name == "mine"
    assert [p.point for p in photo.prompts if p.point][4] == (20, 10)
