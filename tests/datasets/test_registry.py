"""What every data set of the registry promises, and how folders are recognised."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import HQ, MAKERS, make_folder, make_labels, make_nnunet, make_npz

from structsam_export.datasets import DATASETS, layout_class, open_dataset
from structsam_export.errors import DatasetError, UsageError

OFFLINE = ("bundled", "generated")  # beginnings of the names of sets that need no folder
PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()


@pytest.fixture(params=DATASETS)
def opened(request, tmp_path):
    """Every set of the registry, bundled or made in a folder."""
    name = request.param
    if name.startswith(OFFLINE):
        return open_dataset(name)
    return open_dataset(name, MAKERS[name][0](tmp_path))


def test_every_layout_that_needs_data_is_tested_here():
    assert set(MAKERS) == {name for name in DATASETS if not name.startswith(OFFLINE)}


def test_samples(opened):
    samples = opened.samples()
    assert len(opened) == len(samples) > 0
    assert opened.name in DATASETS
    names = [sample.name for sample in samples]
    assert names == sorted(names)
    assert len({name.lower() for name in names}) == len(names)
    assert all(re.fullmatch(r"\w[\w.-]*", name) for name in names)
    samples.clear()
    assert [sample.name for sample in opened.samples()] == names
    for sample in opened.samples()[:: max(1, len(names) // 6)]:
        image, alpha, masks = sample.image(), sample.alpha(), sample.masks()
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert alpha.dtype == np.uint8 and alpha.shape[1:] == image.shape[:2] and len(alpha) >= 1
        assert masks.dtype == bool and np.array_equal(masks, alpha > 128)
        assert masks.any((1, 2)).all()
        assert re.fullmatch("[0-9a-f]{64}", sample.digest())
        again = pickle.loads(pickle.dumps(sample))
        assert again == sample and again.digest() == sample.digest()
        with pytest.raises(dataclasses.FrozenInstanceError):
            sample.name = "other"


@pytest.mark.parametrize("name", MAKERS)
def test_counts_and_groups(name, tmp_path):
    make, samples, objects = MAKERS[name]
    found = open_dataset(name, make(tmp_path)).samples()
    assert len(found) == samples
    assert sum(len(sample.masks()) for sample in found) == objects
    assert {sample.group for sample in found} == {""}


@pytest.mark.parametrize("name", MAKERS)
def test_a_folder_is_recognised(name, tmp_path):
    root = MAKERS[name][0](tmp_path / "mine")
    place = root / HQ[name][0] if name in HQ else root
    found = open_dataset(str(place))
    assert found.name == place.name
    digests = [sample.digest() for sample in found.samples()]
    assert digests == [sample.digest() for sample in open_dataset(name, root).samples()]
    assert digests == [sample.digest() for sample in open_dataset(name, place).samples()]
    assert [type(s) for s in found.samples()] == [type(s) for s in open_dataset(name, root).samples()]


def test_hqsam_folders_win_over_a_folder_of_masks(tmp_path):
    """HRSOD has `masks` beside `masks_max255`."""
    root = MAKERS["hrsod"][0](tmp_path) / HQ["hrsod"][0]
    (root / "masks").mkdir()
    assert {path.parent.name for s in open_dataset(str(root)).samples() for path in s.mask_files} == {"masks_max255"}


@pytest.mark.parametrize("name", MAKERS)
def test_missing_data_say_where_to_get_them_and_how_to_lay_them_out(name, tmp_path, monkeypatch):
    monkeypatch.delenv("STRUCTSAM_DATA", raising=False)
    with pytest.raises(DatasetError) as caught:
        open_dataset(name, tmp_path)
    message, layout = str(caught.value), layout_class(name)
    assert caught.value.exit_code == 5
    assert str(tmp_path) in message and layout.tree() in message
    assert "https://" in message or name == "folder"
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DatasetError, UsageError)):
        open_dataset(name)


@pytest.mark.parametrize("name", [*HQ, "coco"])
def test_the_data_folder_can_be_set_for_good(name, tmp_path, monkeypatch):
    MAKERS[name][0](tmp_path / ("coco" if name == "coco" else ""))
    monkeypatch.setenv("STRUCTSAM_DATA", str(tmp_path))
    assert len(open_dataset(name)) == 2


@pytest.mark.parametrize("name", HQ)
def test_hqsam_sets_are_recognised_in_the_tree_that_is_printed(name, tmp_path):
    """The data folder, the folder of the set's collection, and the set itself."""
    make, place = MAKERS[name][0], Path(HQ[name][0])
    make(tmp_path / "data")
    found = [open_dataset(str(tmp_path / "data" / part)) for part in ("", place.parent, place)]
    assert [len(data) for data in found] == [2, 2, 2]
    others = [other for other in HQ if other != name and Path(HQ[other][0]).parent == place.parent]
    for other in others[:1]:
        MAKERS[other][0](tmp_path / "data")
        with pytest.raises(DatasetError, match=r"fits several layouts .* Open it by name"):
            open_dataset(str(tmp_path / "data"))
        assert len(open_dataset(name, tmp_path / "data")) == 2


@pytest.mark.parametrize("name", HQ)
def test_hqsam_folders_and_first_channel(name, tmp_path):
    """A colour mask counts by its first channel, as in HQ-SAM; stems may have spaces."""
    from dataset_folders import disk, save

    MAKERS[name][0](tmp_path)
    place, _, masks = HQ[name]
    colour = np.stack([disk() * 255, disk(9) * 255, disk() * 0], -1).astype(np.uint8)
    save(tmp_path / place / masks / "b.png", colour)
    samples = open_dataset(name, tmp_path).samples()
    assert [sample.name for sample in samples] == ["a_1", "b"]
    assert np.array_equal(samples[1].masks()[0], disk())


def test_unknown_names_and_folders(tmp_path):
    with pytest.raises(UsageError, match=r"Did you mean 'coco'\?"):
        open_dataset("cocoo")
    with pytest.raises(DatasetError, match="There is no folder"):
        open_dataset(str(tmp_path / "nothing"))
    with pytest.raises(DatasetError, match="not recognised") as caught:
        open_dataset(str(tmp_path))
    for name in MAKERS:
        assert f"{name}:\n{layout_class(name).tree()}" in str(caught.value)
    with pytest.raises(UsageError, match="takes no folder"):
        open_dataset("bundled", tmp_path)


def test_a_folder_that_fits_twice_is_not_guessed(tmp_path):
    make_npz(make_folder(tmp_path))
    with pytest.raises(DatasetError, match=r"fits several layouts \(folder, medsam-npz\)"):
        open_dataset(str(tmp_path))
    assert len(open_dataset("folder", tmp_path)) == 5
    assert len(open_dataset("medsam-npz", tmp_path)) == 2
    make_labels(tmp_path / "two")
    make_nnunet(tmp_path / "two")
    with pytest.raises(DatasetError, match="several pairs of folders"):
        open_dataset(str(tmp_path / "two"))


def test_names_are_safe_and_unique(tmp_path):
    from dataset_folders import disk, photo, save, save_mask

    for stem in ("a b", "a#b", "..c", "A_B"):
        save(tmp_path / "images" / f"x{stem}.png", photo())
        save_mask(tmp_path / "masks" / f"x{stem}.png", disk())
    names = [sample.name for sample in open_dataset("folder", tmp_path).samples()]
    assert names == ["x..c", "xA_B", "xa_b-2", "xa_b-3"]


def test_listing_decodes_nothing_and_imports_nothing_heavy():
    code = (
        "import sys; from structsam_export.datasets import open_dataset; open_dataset('bundled').samples();"
        "print([m for m in ('torch', 'PIL', 'onnx', 'scipy', 'pycocotools') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", DATASETS)
def test_the_page_has_every_set_and_its_tree(name):
    assert f"`{name}`" in PAGE
    layout = layout_class(name)
    for line in layout.TREE.strip("\n").splitlines():
        assert line in PAGE
