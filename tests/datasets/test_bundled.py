"""The bundled set: complete, unchanged, small, never trained on, and as thin as it says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from structsam_export.datasets import DATASETS, open_dataset
from structsam_export.datasets.bundled import bundled_folder

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
FOLDER = bundled_folder()
SETS = {  # images, objects
    "bundled-nuclei": (1, 125),
    "bundled-coins": (1, 24),
    "bundled-photos": (3, 3),
    "bundled-composites": (48, 136),
    "bundled-thin": (32, 48),
}
SCENES = json.loads((FOLDER / "sources.json").read_text())["scenes"]


def test_checksums():
    """Every file of the set is listed, and none has changed."""
    lines = dict(reversed(line.split("  ")) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    files = {p.relative_to(FOLDER).as_posix(): p for p in FOLDER.rglob("*") if p.is_file()}
    written = {"SHA256SUMS", "CREDITS.md", "LICENCES.txt"}
    assert set(files) - written == set(lines)
    for name, digest in lines.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest, name


def test_it_is_small():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= 20_000_000


@pytest.mark.parametrize("name", SETS)
def test_images_and_objects(name):
    images, objects = SETS[name]
    samples = open_dataset(name).samples()
    assert len(samples) == images
    assert {sample.group for sample in samples} == {name}
    assert sum(len(sample.masks()) for sample in samples) == objects


def test_bundled_lists_all_of_them_by_group():
    assert set(SETS) == {name for name in DATASETS if name.startswith("bundled-")}
    together = open_dataset("bundled").samples()
    for name in SETS:
        assert [s for s in together if s.group == name] == open_dataset(name).samples()
    assert len(together) == sum(images for images, _ in SETS.values())


def test_no_cutout_and_no_background_was_trained_on(monkeypatch):
    """The split is by the hash of the file's name, as scripts/demo_model/scenes.py draws it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from demo_model.scenes import is_held_out
    from evaluation_set.sources import BACKGROUNDS

    pasted = {layer for scene in SCENES.values() for layer in scene["layers"] if layer.endswith(".webp")}
    assert len(pasted) > 100
    assert all(layer.startswith("emoji-") and is_held_out(Path(layer)) for layer in pasted)
    fetched = (SCRIPTS / "demo_model" / "fetch_pictures.sh").read_text()
    trained = next(line for line in fetched.splitlines() if line.startswith("for f in grass")).split(";")[0].split()[3:]
    used = {scene["background"] for scene in SCENES.values()}
    assert used == set(BACKGROUNDS)
    for name in used:
        file = Path(BACKGROUNDS[name])
        assert file.stem not in trained or is_held_out(file)


def test_what_the_scenes_are_made_of_is_recorded():
    for name in ("bundled-composites", "bundled-thin"):
        for sample in open_dataset(name).samples():
            scene = SCENES[sample.name]
            assert len(scene["masks"]) == len(sample.masks())
            assert set(scene["masks"]) <= set(scene["layers"])


def test_thin_is_thinner_than_a_token():
    """No disk of 16 px fits into any object: pixels erode away within 7 steps."""
    for sample in open_dataset("bundled-thin").samples():
        for mask in sample.masks():
            left = np.pad(mask, 1)
            for _ in range(7):
                left[1:-1, 1:-1] &= left[:-2, 1:-1] & left[2:, 1:-1] & left[1:-1, :-2] & left[1:-1, 2:]
                left[[0, -1]] = left[:, [0, -1]] = False
            assert not left.any(), sample.name


def test_objects_of_a_scene_do_not_overlap():
    """Each mask is what can be seen: soft edges share a pixel, solid parts never."""
    for sample in open_dataset("bundled-composites").samples() + open_dataset("bundled-thin").samples():
        assert sample.alpha().sum(0, dtype=int).max() <= 255 + len(sample.masks())


def test_credits_name_every_source():
    credits = (FOLDER / "CREDITS.md").read_text()
    for background in {scene["background"] for scene in SCENES.values()}:
        assert f"`{background}`" in credits
    for name in SETS:
        assert f"`{name.removeprefix('bundled-')}`" in credits


@pytest.mark.skipif("STRUCTSAM_DEMO_DATA" not in os.environ, reason="needs the folder of fetch_pictures.sh")
def test_the_script_remakes_it_byte_for_byte(tmp_path):
    command = [sys.executable, SCRIPTS / "evaluation_set", os.environ["STRUCTSAM_DEMO_DATA"], tmp_path]
    subprocess.run(command, check=True)
    assert (tmp_path / "SHA256SUMS").read_text() == (FOLDER / "SHA256SUMS").read_text()
