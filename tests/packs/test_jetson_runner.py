"""The Jetson kit's C++ runner: its steps are our runtime's, to the bit where they can be; its engine part compiles.

TensorRT is not here. `stand_in/` declares what the runner calls of it; where $TENSORRT_INCLUDE names its own headers,
those are used.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structsam_export.runtime.images import PIXEL_STD, masks_of, prepare, upscaled

PHOTOS = Path(str(resources.files("structsam_export"))) / "assets" / "photos"
SOURCES = Path(str(resources.files("structsam_export.packs"))) / "jetson_files" / "runner"
STAND_IN = Path(__file__).parent / "stand_in"
SIDE = 96

pytestmark = pytest.mark.skipif(shutil.which("g++") is None or shutil.which("cmake") is None, reason="no g++ or cmake")


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The kit's `steps`, built as its README says on a machine without TensorRT: (words) -> finished process."""
    build = tmp_path_factory.mktemp("runner")
    for command in (
        ["cmake", "-S", SOURCES, "-B", build, "-DTENSORRT_INCLUDE=", "-DCMAKE_CXX_FLAGS=-Werror"],
        ["cmake", "--build", build],
    ):
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def run(*words):
        return subprocess.run([build / "steps", *map(str, words)], capture_output=True, text=True)

    return run


def picture(shape, seed=0):
    """Soft shapes and noise, uint8 (h, w, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    soft = 127 + 120 * np.sin(x / 9 + seed)[..., None] * np.cos(y[..., None] / np.array([5, 7, 11]))
    return np.clip(soft + rng.normal(0, 20, (*shape, 3)), 0, 255).astype(np.uint8)


SHAPES = [(60, 97), (131, 40), (96, 96), (200, 333), (5, 3), (1, 400), (437, 301)]


@pytest.mark.parametrize("shape", SHAPES)
def test_photos_prompts_and_masks_are_the_runtime_s(shape, steps, tmp_path):
    photo, logits = picture(shape), np.random.default_rng(1).normal(0, 5, (24, 24)).astype(np.float32)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    np.save(tmp_path / "logits.npy", logits)
    ready = prepare(photo, SIDE)
    given = (tmp_path / "photo.png", SIDE)
    assert steps("prepare", *given, tmp_path / "out.npy").returncode == 0
    found = np.load(tmp_path / "out.npy")
    if shape[0] <= 2 * shape[1]:
        assert np.array_equal(found, ready.tensor), "to the bit"
    else:  # of tall photos, recent Pillows resize columns first, which rounds some pixels to the value beside
        np.testing.assert_allclose(found, ready.tensor, atol=1.001 / min(PIXEL_STD))
    assert steps("scale", *given, 12.25, 7.5, tmp_path / "out.npy").returncode == 0
    expected = (np.array([[12.25, 7.5]]) * ready.scale).astype(np.float32)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    ran = steps("upscale", *given, tmp_path / "logits.npy", tmp_path / "out.npy", tmp_path / "mask.png")
    assert ran.returncode == 0, ran.stderr
    wanted = upscaled(logits, SIDE, ready.resized, ready.original)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-4)
    with Image.open(tmp_path / "mask.png") as mask:
        differs = (np.asarray(mask) > 0) != masks_of(logits, SIDE, ready.resized, ready.original)
    assert not differs[np.abs(wanted) > 1e-4].any()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_png_files_are_read_as_pillow_reads_them(mode, level, steps, tmp_path):
    """Stored, fixed and dynamic blocks; every filter; every kind of colour."""
    photo = Image.fromarray(picture((70, 96), seed=level)).convert(mode)
    photo.save(tmp_path / "photo.png", compress_level=level)
    assert steps("prepare", tmp_path / "photo.png", SIDE, tmp_path / "out.npy").returncode == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), prepare(np.asarray(photo.convert("RGB")), SIDE).tensor)


def test_small_and_other_files(steps, tmp_path):
    for name, photo in {"one.png": picture((1, 1)), "flat.png": np.full((50, 60, 3), 7, np.uint8)}.items():
        Image.fromarray(photo).save(tmp_path / name)
        assert steps("prepare", tmp_path / name, SIDE, tmp_path / "out.npy").returncode == 0
        assert np.array_equal(np.load(tmp_path / "out.npy"), prepare(photo, SIDE).tensor)
    photo = picture((50, 60))
    Image.fromarray(photo).save(tmp_path / "photo.ppm")
    np.save(tmp_path / "photo.npy", photo)
    for name in ("photo.ppm", "photo.npy"):
        assert steps("prepare", tmp_path / name, SIDE, tmp_path / "out.npy").returncode == 0
        assert np.array_equal(np.load(tmp_path / "out.npy"), prepare(photo, SIDE).tensor)


def test_a_real_photo(steps, tmp_path):
    with Image.open(PHOTOS / "coins.jpg") as picture:
        photo = np.asarray(picture.convert("RGB"))
    Image.fromarray(photo).save(tmp_path / "photo.png", optimize=True)
    assert steps("prepare", tmp_path / "photo.png", 512, tmp_path / "out.npy").returncode == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), prepare(photo, 512).tensor)


def test_damaged_files_are_refused(steps, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture((40, 50))).save(buffer, "PNG")
    whole, rng = buffer.getvalue(), np.random.default_rng(0)
    path = tmp_path / "bad.png"
    cases = [b"", b"no picture", whole[:60], whole[:-400], whole[:16] + b"\x7f\xff\xff\xff" + whole[20:]]
    for data in cases:
        path.write_bytes(data)
        ran = steps("prepare", path, SIDE, tmp_path / "out.npy")
        assert (ran.returncode, str(path) in ran.stderr) == (5, True), ran
    for _ in range(60):  # whatever is wrong, it ends with a reason or a picture, and with no signal
        data = bytearray(whole)
        for place in rng.integers(8, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(bytes(data))
        assert steps("prepare", path, SIDE, tmp_path / "out.npy").returncode in (0, 5)
    for words in ([], ["prepare", path, SIDE], ["other", path, SIDE, "x"]):
        assert steps(*words).returncode in (2, 5)


@pytest.mark.parametrize("file", ["main.cpp", "engine.cpp"])
def test_the_part_with_tensorrt_compiles(file):
    folders = (
        [os.environ["TENSORRT_INCLUDE"], "/usr/local/cuda/include"] if "TENSORRT_INCLUDE" in os.environ else [STAND_IN]
    )
    includes = [word for folder in folders for word in ("-isystem", str(folder))]
    ran = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *includes, str(SOURCES / file)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
