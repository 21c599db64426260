"""The generated set: what its scenes promise, without asking the code that draws them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from structsam_export.datasets import open_dataset
from structsam_export.errors import UsageError

PARTS = ("thin", "occluded", "clutter")
CODE = """
import sys
from structsam_export.datasets import open_dataset
for sample in open_dataset("generated").samples():
    if sample.name in sys.argv[1:]:
        print(sample.name, sample.digest())
"""


@pytest.fixture(scope="module")
def scenes():
    """Every sample by name; nothing is drawn yet."""
    return {sample.name: sample for sample in open_dataset("generated").samples()}


def some(scenes, part, step=20):
    """A few scenes of a part."""
    return [s for s in scenes.values() if s.group == f"generated-{part}"][::step]


def test_a_hundred_scenes_of_each_part(scenes):
    groups = [sample.group for sample in scenes.values()]
    assert {group: groups.count(group) for group in groups} == {f"generated-{part}": 100 for part in PARTS}


def test_scenes_differ_and_another_process_draws_the_same(scenes):
    names = ["thin-003", "occluded-050", "clutter-099"]
    digests = [scenes[name].digest() for name in names]
    assert len(set(digests)) == 3
    done = subprocess.run([sys.executable, "-c", CODE, *names], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split("\n")[:-1]) == sorted(f"{n} {d}" for n, d in zip(names, digests))


def test_what_is_drawn_is_the_callers_own(scenes):
    scene = scenes["thin-000"]
    before = scene.digest()
    scene.image()[:] = 0
    scene.alpha()[:] = 0
    assert scene.digest() == before


def test_thin_things_are_narrower_than_a_token(scenes):
    for scene in some(scenes, "thin"):
        for mask in scene.masks():
            inside = distance_transform_edt(np.pad(mask, 1))
            # Half of a line's width, over most of it: where lines cross, or join, it is wider.
            assert np.quantile(inside[inside > 0], 0.9) < 8


def test_objects_do_not_overlap_and_some_are_occluded(scenes):
    for part in PARTS:
        for scene in some(scenes, part):
            assert scene.alpha().astype(int).sum(0).max() <= 255 + len(scene.alpha())  # shares of one pixel, rounded
    touching = 0
    for scene in some(scenes, "occluded"):
        masks = scene.masks()
        near = [distance_transform_edt(~mask) <= 2 for mask in masks]
        touching += any((near[i] & masks[j]).sum() > 20 for i in range(len(masks)) for j in range(i))
    assert touching >= 4  # of five


def test_clutter_does_not_count(scenes):
    for scene in some(scenes, "clutter"):
        assert 1 <= len(scene.masks()) <= 3


def test_takes_no_folder(tmp_path):
    with pytest.raises(UsageError, match="takes no folder"):
        open_dataset("generated", tmp_path)
