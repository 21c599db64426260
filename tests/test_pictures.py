"""One reader for every picture: what photos of any kind become, for commands and data sets alike."""

from __future__ import annotations

import os

import numpy as np
import pytest
from picture_files import png16, tiff
from PIL import Image

from structsam_export.datasets.pictures import photo_size, read_labels, read_mask, read_photo
from structsam_export.errors import DatasetError, ImageError
from structsam_export.runtime.pictures import eight_bits, image_size, read_image

RAMP = np.arange(20 * 30).reshape(20, 30)
RGB = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1) % 251
DEEP = RGB * 16 + 3  # 12 bits


@pytest.fixture
def read(tmp_path):
    """Write bytes (or let Pillow save an image) and read them by both readers, which have to agree."""

    def both(content, name="photo.png", **options):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path, **options)
        pixels = read_image(path)
        assert np.array_equal(pixels, read_photo(path)) and pixels.dtype == np.uint8
        assert pixels.shape == (*image_size(path), 3) and photo_size(path) == image_size(path)
        assert pixels.flags.writeable
        return pixels

    return both


def expected(values):
    """Scaled between percentiles of what is above zero."""
    low, high = np.percentile(values[values > 0], (0.5, 99.5))
    return np.clip((values - low) / (high - low) * 255, 0, 255)


def close(pixels, values):
    return np.abs(pixels.astype(float) - values).max() <= 0.51


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png(channels, read):
    """12 bits stored in 16 are no black picture, and grey not a white one."""
    values = np.dstack([DEEP, np.full_like(RAMP, 65535)])
    values = values[..., [0, 3]] if channels == 2 else values[..., :channels]
    pixels = read(png16(values))
    assert close(pixels, expected(values[..., : 3 if channels > 2 else 1]))
    assert pixels.max() == 255 and 100 < pixels.mean() < 150


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4", "i4", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_of_every_kind(channels, kind, planar, compression, order, read):
    values = np.dstack([DEEP, RAMP])[..., :channels].astype(kind) if kind != "u1" else np.dstack([RGB, RAMP % 7])
    values = values[..., :channels].astype(kind)
    pixels = read(tiff(values, planar=planar, compression=compression, order=order), "photo.tif")
    colours = values[..., : 3 if channels > 2 else 1].astype(float)
    assert close(pixels, colours if kind == "u1" else expected(colours))


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4"])
@pytest.mark.parametrize("planar", [False, True])
def test_differences_are_added_up(kind, planar, read):
    values = (RGB if kind == "u1" else DEEP).astype(kind)
    pixels = read(tiff(values, planar=planar, compression=8, delta=True, order=">"), "photo.tif")
    assert close(pixels, values if kind == "u1" else expected(values.astype(float)))


def test_signed_values_keep_what_is_below_zero(read):
    """Hounsfield units, for example."""
    units = (RAMP[..., None] * 4 - 1000).astype(np.int16)
    pixels = read(tiff(units), "scan.tif")
    assert (
        pixels[0, 0, 0] == 0 and pixels[-1, -1, 0] == 255 and (np.diff(pixels[..., 0].ravel().astype(int)) >= 0).all()
    )
    assert 120 < pixels.mean() < 135


def test_values_that_are_no_numbers():
    for values in (np.full((4, 4), np.nan), np.full((4, 4), np.inf), np.zeros((4, 4)), np.full((4, 4), -7.0)):
        assert len(np.unique(eight_bits(values))) == 1
    mixed = np.array([[np.nan, 1.0, 2.0], [3.0, -np.inf, 1e300]])
    assert eight_bits(mixed).shape == (2, 3, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF 16", "TIFF planes", "PNG 16"])
def test_photos_are_turned_as_people_see_them(form, orientation, read, tmp_path):
    corner = np.zeros((20, 30, 3), np.uint16)
    corner[:6, :9] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    if form.startswith("TIFF "):
        content = tiff(corner * 16, planar="planes" in form, orientation=orientation)
        pixels = read(content, "photo.tif")
    elif form == "PNG 16":
        Image.new("L", (1, 1)).save(tmp_path / "e.png", exif=exif)
        chunk = (tmp_path / "e.png").read_bytes()
        at = chunk.index(b"eXIf") - 4
        size = int.from_bytes(chunk[at : at + 4], "big") + 12
        whole = png16(corner * 16)
        pixels = read(whole[:33] + chunk[at : at + size] + whole[33:])
    else:
        image = Image.fromarray(corner.astype(np.uint8))
        options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
        pixels = read(image, f"photo.{form.lower()}", exif=exif, **options)
    assert pixels.shape[:2] == ((30, 20) if orientation > 4 else (20, 30))
    bright = [pixels[y, x].mean() > 200 for y, x in ((0, 0), (0, -1), (-1, -1), (-1, 0))]
    assert bright.index(True) == {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 1, 7: 2, 8: 3}[orientation] and sum(bright) == 1


def test_masks_are_turned_as_their_own_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((RAMP % 200).astype(np.uint8)).save(tmp_path / "mask.png", exif=exif)
    turned = np.rot90(RAMP % 200, -1)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), turned)
    assert np.array_equal(read_labels(tmp_path / "mask.png"), turned)


def test_a_broken_exif_is_none(tmp_path, read):
    image = Image.fromarray(RGB.astype(np.uint8))
    assert read(image, "photo.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff").shape == (20, 30, 3)


def test_palette_cmyk_and_alpha(read):
    red = Image.new("RGB", (8, 6), (200, 10, 20))
    assert abs(read(red.convert("CMYK"), "cmyk.tif").mean((0, 1)) - [200, 10, 20]).max() < 3
    assert abs(read(red.convert("CMYK"), "cmyk.jpg").mean((0, 1)) - [200, 10, 20]).max() < 6
    assert (read(red.quantize(4)) == [200, 10, 20]).all()
    faint = red.convert("RGBA")
    faint.putalpha(0)
    assert (read(faint) == [200, 10, 20]).all()
    grey = Image.new("LA", (8, 6), (77, 0))
    assert (read(grey) == 77).all()
    see_through = red.quantize(4)
    see_through.info["transparency"] = 0
    assert (read(see_through, "clear.png", transparency=0) == [200, 10, 20]).all()
    assert (read(Image.new("1", (8, 6), 1)) == 255).all()


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "PNG", "planes"])
def test_pages_are_not_taken_silently(form, tmp_path):
    path, frames = tmp_path / f"pages.{form.lower()}", [Image.new("RGB", (8, 6), (i * 90, 0, 0)) for i in range(3)]
    if form == "planes":
        path.write_bytes(tiff(DEEP.astype(np.uint16), planar=True, pages=3))
    else:
        frames[0].save(path, save_all=True, append_images=frames[1:])
    for reader, kind in ((read_image, ImageError), (read_photo, DatasetError), (image_size, ImageError)):
        with pytest.raises(kind, match=rf"{path.name} has 3 pages\. Save each"):
            reader(path)


def test_thumbnails_are_no_pages(tmp_path, read):
    small = Image.new("RGB", (4, 3))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(RGB.astype(np.uint8)).save(tmp_path / "a.tif", save_all=True, append_images=[small])
    assert np.array_equal(read((tmp_path / "a.tif").read_bytes(), "b.tif"), RGB)


def test_too_many_pixels_are_said_so(tmp_path, recwarn, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(ImageError, match="large.png has 200 million pixels; more than 179 million are not read"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    (tmp_path / "odd.tif").write_bytes(tiff(np.zeros((40, 30, 3), np.float32)))
    with pytest.raises(ImageError, match="million pixels"):
        read_image(tmp_path / "odd.tif")
    Image.fromarray(RGB.astype(np.uint8)).save(tmp_path / "warned.png")
    read_image(tmp_path / "warned.png")
    assert not recwarn.list


@pytest.mark.parametrize("make", ["folder", "loop", "pipe", "unreadable", "long", "zero", "surrogate"])
def test_what_is_no_file(make, tmp_path):
    path = tmp_path / {"long": "a" * 300, "zero": "a\0b", "surrogate": "a\ud800"}.get(make, "photo.png")
    if make == "folder":
        path.mkdir()
    elif make == "loop":
        path.symlink_to(path)
    elif make == "pipe":
        os.mkfifo(path)
    elif make == "unreadable":
        path.write_bytes(b"x")
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("root reads everything")
    for reader, kind in ((read_image, ImageError), (read_photo, DatasetError), (read_mask, DatasetError)):
        with pytest.raises(kind, match="is a folder|cannot be read|no regular file|no path"):
            reader(path)


def test_tiffs_that_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    for content in (
        tiff(np.zeros((4, 5, 2), np.float32), photometric=2),
        tiff(np.zeros((4, 5, 5), np.int16)),
        tiff(np.zeros((4, 5, 3), np.float32))[:-8],
        tiff(np.zeros((4, 5, 3), np.float32), compression=5),
        b"II*\0\0\0\0\0",
        b"II*\0\x08\0\0\0\xff\xff",
    ):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"x\.tif"):
            read_image(path)
    path.write_bytes(tiff(np.zeros((4, 5, 3), np.uint16), planar=True))
    with pytest.raises(DatasetError, match=r"3 channels of 16-bit whole numbers, in planes.* 8-bit PNG"):
        read_mask(path)


@pytest.mark.parametrize("shape", [(10, 20_000), (20_000, 10), (1, 2000), (1, 1)])
@pytest.mark.parametrize("preprocessing", ["sam", "medsam"])
def test_extreme_shapes_keep_a_pixel(shape, preprocessing):
    from structsam_export.runtime.images import masks_from_logits, prepare

    ready = prepare(np.full((*shape, 3), 90, np.uint8), 64, preprocessing)
    assert min(ready.resized) >= 1 and max(ready.resized) == 64 and np.isfinite(ready.tensor).all()
    assert masks_from_logits(np.ones((1, 16, 16)), ready, 64).shape == (1, *shape)
