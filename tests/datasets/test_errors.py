"""Every file that cannot be used is named, with exit code 5, and nothing is guessed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from dataset_folders import (
    HQ,
    MAKERS,
    H,
    W,
    coco_table,
    disk,
    make_coco,
    make_folder,
    make_labels,
    make_npy,
    make_npz,
    photo,
    save,
    save_mask,
)  # fmt: skip
from PIL import Image

from structsam_export.datasets import open_dataset
from structsam_export.datasets.coco_shapes import pixels_of
from structsam_export.errors import DatasetError, MissingRuntimeError, UsageError


def one(root, name=None):
    """The sample called `name` (default: the first) of the set in a folder."""
    samples = {sample.name: sample for sample in open_dataset(str(root)).samples()}
    return samples[name] if name else next(iter(samples.values()))


def fails(match, call):
    with pytest.raises(DatasetError, match=match) as caught:
        call()
    assert caught.value.exit_code == 5


# Pairing.


@pytest.mark.parametrize("name", [*HQ, "folder", "labels", "medsam-npy"])
@pytest.mark.parametrize("lost", ["image", "mask"])
def test_images_and_masks_have_to_pair_up(name, lost, tmp_path):
    MAKERS[name][0](tmp_path)
    folders = {"folder": ("images", "masks"), "labels": ("images", "labels"), "medsam-npy": ("imgs", "gts")}
    place, *pair = HQ.get(name, ("", *folders.get(name, ())))
    folder = tmp_path / place / pair[lost == "mask"]
    gone = next(p for p in sorted(folder.iterdir()) if p.is_file())
    gone.unlink()
    other = "without a mask" if lost == "mask" else "without an image"
    fails(rf"{other} in .*: {re.escape(gone.stem.split('_')[0])}", lambda: open_dataset(name, tmp_path))


def test_only_the_first_few_are_listed(tmp_path):
    make_folder(tmp_path)
    for i in range(20):
        save(tmp_path / "images" / f"extra{i:02}.png", photo())
    fails(r"extra00.png, .*extra04.png, \.\.\. \(20 in all\)", lambda: open_dataset("folder", tmp_path))


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_folder(name, tmp_path):
    for pair in (("images", "masks"), ("images", "labels"), ("imgs", "gts"), ("annotations", "val2017")):
        for part in pair:
            (tmp_path / part).mkdir(exist_ok=True)
    if name in HQ:
        for part in HQ[name][1:]:
            (tmp_path / HQ[name][0] / part).mkdir(parents=True)
    fails("^No ", lambda: open_dataset(name, tmp_path))


def test_masks_of_a_photo_stored_twice(tmp_path):
    make_folder(tmp_path)
    save_mask(tmp_path / "masks" / "cat_0.png", disk())
    fails("The masks of 'cat' .* are stored twice", lambda: one(tmp_path))


def test_two_photos_of_one_stem(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "images" / "cat.jpg", photo())
    fails("differ by their extension only", lambda: one(tmp_path))


def test_masks_have_to_be_png(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "masks" / "cat_1.jpg", photo())
    fails("not PNG files: cat_1.jpg", lambda: one(tmp_path))


def test_masks_in_a_folder_have_to_be_png(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "masks" / "owl" / "foot.jpg", photo())
    fails("not PNG files: owl/foot.jpg", lambda: one(tmp_path))


def test_a_stack_is_not_its_first_page(tmp_path):
    make_labels(tmp_path)
    page = Image.fromarray(disk().astype(np.uint8))
    page.save(tmp_path / "labels" / "b.tif", save_all=True, append_images=[page, page])
    fails("b.tif has 3 pages", one(tmp_path, "b").masks)


def test_hidden_and_other_files_are_left_alone(tmp_path):
    make_folder(tmp_path)
    for place in ("images", "masks"):
        (tmp_path / place / ".DS_Store").write_text("")
        (tmp_path / place / "notes.txt").write_text("")
    assert len(open_dataset(str(tmp_path))) == 5


def test_numbers_decide_the_order_and_a_full_stem_wins(tmp_path):
    make_folder(tmp_path)
    dog = one(tmp_path, "dog")
    assert [path.name for path in dog.mask_files] == ["dog_0.png", "dog_9.png", "dog_10.png"]
    assert [path.name for path in one(tmp_path, "elk").mask_files] == ["elk_mask.png"]
    assert [path.name for path in one(tmp_path, "elk_2").mask_files] == ["elk_2.png"]


# Pictures.


@pytest.mark.parametrize("part", ["images/cat.png", "masks/cat.png"])
@pytest.mark.parametrize("damage", ["text", "empty", "cut", "gone"])
def test_damaged_pictures_are_named(part, damage, tmp_path):
    make_folder(tmp_path)
    sample, path = one(tmp_path, "cat"), tmp_path / part
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"text": b"no picture", "empty": b"", "cut": whole[: len(whole) // 2]}[damage])
    name = re.escape(str(path))
    fails(name, sample.image if part.startswith("images") else sample.masks)
    if damage == "gone":
        fails(name, sample.digest)


def test_a_mask_of_another_size(tmp_path):
    make_folder(tmp_path)
    save_mask(tmp_path / "masks" / "cat.png", disk()[:, :-1])
    fails(r"cat.png is 15 x 12 pixels, but its image is 16 x 12", one(tmp_path, "cat").masks)
    save_mask(tmp_path / "masks" / "owl" / "beak.png", disk()[:-1])
    fails("differ in size", one(tmp_path, "owl").alpha)


@pytest.mark.parametrize(("value", "match"), [(0, "every pixel is 0"), (1, "largest value is 1"), (128, "is 128")])
def test_an_empty_mask(value, match, tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "masks" / "cat.png", disk().astype(np.uint8) * np.uint8(value))
    fails(f"cat.png is an empty mask: .*{match}", one(tmp_path, "cat").masks)


def test_labels_without_an_object(tmp_path):
    make_labels(tmp_path)
    save(tmp_path / "labels" / "a.png", np.zeros((H, W), np.uint8))
    fails("a.png has no object", one(tmp_path, "a").masks)


def test_what_is_no_mask(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "masks" / "cat.png"
    sample = one(tmp_path, "cat")
    save(path, photo())
    fails("is a colour picture.*labels/", sample.masks)
    save(path, np.dstack([np.repeat(disk()[..., None] * np.uint8(255), 3, 2), photo()[..., 0]]))
    fails("has an alpha channel", sample.masks)
    labels = Image.fromarray(disk().astype(np.uint8))
    labels.putpalette([0, 0, 0, 200, 0, 0])
    labels.save(path)
    fails("is a colour picture", sample.masks)
    save(tmp_path / "l" / "images" / "a.png", photo())
    save(tmp_path / "l" / "labels" / "a.png", photo())
    fails("are a RGB picture", one(tmp_path / "l").masks)


@pytest.mark.parametrize("form", ["1", "L", "RGB", "RGBA", "P", "16"])
def test_masks_in_every_form_a_grey_png_can_have(form, tmp_path):
    make_folder(tmp_path)
    path, grey = tmp_path / "masks" / "cat.png", disk().astype(np.uint8) * np.uint8(255)
    if form == "16":
        save(path, disk().astype(np.uint16) * np.uint16(65535))
    else:
        save(path, grey, form)
    assert np.array_equal(one(tmp_path, "cat").masks()[0], disk())


def test_soft_masks_stay_soft(tmp_path):
    make_folder(tmp_path)
    soft = (photo(3)[..., 0] // 2 + 120).astype(np.uint8)
    save(tmp_path / "masks" / "cat.png", soft)
    sample = one(tmp_path, "cat")
    assert np.array_equal(sample.alpha()[0], soft)
    assert np.array_equal(sample.masks()[0], soft > 128)


def test_photos_of_every_kind(tmp_path):
    make_folder(tmp_path)
    path, sample = tmp_path / "images" / "cat.png", one(tmp_path, "cat")
    save(path, np.dstack([photo(), photo(1)[..., 0]]))
    assert np.array_equal(sample.image(), photo())  # alpha is dropped, colours stay
    assert sample.image().flags.writeable
    save(path, photo(2, (H, W)))
    assert np.array_equal(sample.image(), np.repeat(photo(2, (H, W))[..., None], 3, 2))
    few = photo(2, (H, W)) // 64
    image = Image.fromarray(few)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.save(path)
    assert np.array_equal(sample.image()[..., 0], 10 + 30 * few)
    deep = np.linspace(0, 4095, H * W).reshape(H, W).astype(np.uint16)  # 12 bits of a scan in 16
    save(path, deep)
    grey = sample.image()[..., 1]
    assert grey.min() == 0 and grey.max() == 255 and (np.diff(grey.ravel().astype(int)) >= 0).all()
    save(path, np.zeros((H, W), np.uint16))
    assert not sample.image().any()
    save(path, np.full((H, W), 700, np.uint16))
    assert len(np.unique(sample.image())) == 1


def test_exif_turns_the_photo(tmp_path):
    """The mask is drawn on the photo as people see it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "images" / "a.jpg", photo(), exif=exif, quality=100)
    save_mask(tmp_path / "masks" / "a.png", disk().T)
    sample = one(tmp_path)
    assert sample.image().shape == (W, H, 3) and sample.masks().shape == (1, W, H)
    save_mask(tmp_path / "masks" / "a.png", disk())
    fails("after turning it as its EXIF says", sample.masks)


def test_the_digest_follows_the_bytes(tmp_path):
    make_folder(tmp_path)
    sample = one(tmp_path, "dog")
    seen = {sample.digest()}
    save(tmp_path / "images" / "dog.jpg", photo(9))
    seen.add(sample.digest())
    save_mask(tmp_path / "masks" / "dog_9.png", disk(7))
    seen.add(sample.digest())
    assert len(seen) == 3


def test_label_values_are_objects(tmp_path):
    make_labels(tmp_path)
    a, b = one(tmp_path, "a"), one(tmp_path, "b")
    assert np.array_equal(a.masks(), [disk(4, r=3), disk(11, r=3)])  # 7 and 255
    assert np.array_equal(b.masks(), [disk()])  # 300, 16 bits
    indexed = Image.fromarray(disk().astype(np.uint8) * np.uint8(2))
    indexed.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    indexed.save(tmp_path / "labels" / "a.png")
    assert np.array_equal(a.masks(), [disk()])


# NumPy files.


def test_numpy_images_are_scaled(tmp_path):
    make_npy(tmp_path)
    assert np.array_equal(one(tmp_path, "a").image(), photo(0))
    assert np.array_equal(one(tmp_path, "b").image(), photo(1))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"imgs": photo()}, "no array 'gts', only imgs"),
        ({"gts": disk()}, "no array 'imgs'"),
        ({"imgs": photo(0, (3, H, W)), "gts": np.zeros((3, H, W), np.uint8)}, "shape .*each slice of a volume"),
        ({"imgs": photo() * 2.0, "gts": disk()}, "image values from 0 to"),
        ({"imgs": photo() / 255.0, "gts": disk()}, "image values from 0 to 1. Expected"),
        ({"imgs": photo() * np.nan, "gts": disk()}, "image values from nan"),
        ({"imgs": photo(), "gts": disk() * 1.0}, "labels of shape .* float64"),
        ({"imgs": photo(), "gts": disk()[1:]}, "is 16 x 11 pixels"),
        ({"imgs": np.array([{}]), "gts": disk()}, "cannot be read"),
    ],
)
def test_numpy_files_that_are_something_else(arrays, match, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    sample = open_dataset("medsam-npz", tmp_path).samples()[0]
    fails(match, lambda: (sample.masks(), sample.image()))


def test_damaged_numpy_files(tmp_path):
    make_npz(tmp_path)
    path = tmp_path / "2D_a.npz"
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", whole[:200], whole[:60] + b"\0" * 40 + whole[100:]):
        path.write_bytes(damaged)
        fails("2D_a.npz", one(tmp_path).masks)


# COCO.


def test_coco_gives_what_pycocotools_gives(tmp_path):
    """Polygons and run lengths, against the library's own reader."""
    import contextlib
    import io

    from pycocotools.coco import COCO

    make_coco(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO(str(tmp_path / "annotations" / "instances_val2017.json"))
    samples = {sample.name: sample for sample in open_dataset("coco", tmp_path).samples()}
    assert list(samples) == ["000000000001", "000000000003"]  # the second has a crowd only
    for image_id, kept in ((1, [3, 5, 7]), (3, [2])):  # by id; 9 covers no pixel
        expected = np.stack([official.annToMask(official.anns[i]) for i in kept]).astype(bool)
        assert np.array_equal(samples[f"{image_id:012}"].masks(), expected)
    one_mask, other = samples["000000000001"].masks()[:2]
    assert np.array_equal(one_mask, disk()) and np.array_equal(other, disk(8))
    assert np.array_equal(
        open_dataset(str(tmp_path / "annotations" / "instances_val2017.json")).samples()[0].masks(),
        samples["000000000001"].masks(),
    )


@pytest.mark.parametrize(
    ("segmentation", "match"),
    [
        ([[1, 1, 5, 5]], "three or more points"),
        ([[1, 1, 5, 5, 2]], "three or more points"),
        ([["x"] * 6], "could not convert"),
        ([], "three or more points"),
        ([[1, 1, float("nan"), 1, 5, 5]], "far outside"),
        ([[1, 1, 5, 1e9, 5, 5]], "far outside"),
        ({"size": [H, W], "counts": [3, 4]}, "do not add up"),
        ({"size": [H, W], "counts": [H * W + 5, -5]}, "do not add up"),
        ({"size": [W, H], "counts": [H * W]}, "the image has"),
        ({"size": [H, W], "counts": "`<"}, "cannot be read"),
        ({"counts": [3]}, "size"),
        (None, "cannot be read"),
    ],
)
def test_coco_segmentations_that_are_none(segmentation, match):
    item = {"id": 1, "segmentation": segmentation}
    fails(match, lambda: pixels_of(item, H, W, "annotation 1 in x.json"))


def test_coco_files_that_are_none(tmp_path):
    make_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    table = coco_table()
    for text, match in (
        ("{", "is not JSON"),
        ("[]", "not a COCO instances file"),
        (json.dumps({"images": [], "annotations": [{"id": 1, "caption": "x"}]}), "not a COCO instances file"),
        (json.dumps(table | {"images": [{"id": [], "file_name": "x"}]}), "not a COCO instances file"),
        (json.dumps(table | {"images": []}), "does not list: image_id 1, 3"),
        (json.dumps(table | {"annotations": []}), "no object that is not a crowd"),
    ):
        path.write_text(text)
        fails(match, lambda: open_dataset("coco", tmp_path))
    path.write_text(json.dumps(table | {"annotations": table["annotations"][3:4]}))
    fails("has no object", open_dataset("coco", tmp_path).samples()[0].masks)
    path.write_text(json.dumps(table))
    save(tmp_path / "val2017" / "000000000001.jpg", photo().transpose(1, 0, 2))
    fails("was made for 16 x 12", open_dataset("coco", tmp_path).samples()[0].masks)
    (tmp_path / "val2017" / "000000000003.jpg").unlink()
    fails("not in .*val2017: 000000000003.jpg", lambda: open_dataset("coco", tmp_path))
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    fails("No val2017/", lambda: open_dataset("coco", tmp_path))
    path.rename(path.with_name("instances_other.json"))
    fails("several annotation files", lambda: open_dataset("coco", tmp_path))
    fails("No gone.json", lambda: open_dataset("coco", tmp_path / "gone.json"))


def test_coco_without_pycocotools(tmp_path, monkeypatch):
    import sys

    make_coco(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingRuntimeError, match=r"structsam-export\[coco\]") as caught:
        open_dataset("coco", tmp_path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["folder", "labels", "medsam-npz", "medsam-npy"])
def test_folders_of_the_user_have_no_usual_place(name):
    with pytest.raises(UsageError, match="needs its folder"):
        open_dataset(name)
