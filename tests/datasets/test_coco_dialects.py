"""COCO files as other tools write them: where images lie, numbers as text, and objects that cannot be drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataset_folders import H, W, photo, save
from PIL import Image

from structsam_export.datasets import open_dataset
from structsam_export.datasets.coco_shapes import pixels_of, whole
from structsam_export.errors import DatasetError

BOX = [[2, 2, 12, 2, 12, 9, 2, 9]]
ENTRY = {"id": 1, "file_name": "a.jpg", "height": H, "width": W}
DRAWN = {"id": 1, "image_id": 1, "segmentation": BOX, "iscrowd": 0}


@pytest.fixture
def write(tmp_path):
    """Write a JSON file and the image; returns the folder."""

    def make(
        images=(ENTRY,), annotations=(DRAWN,), place="annotations/instances_val2017.json", photos=("val2017/a.jpg",)
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        for i, name in enumerate(photos):
            save(tmp_path / name, photo(i))
        return tmp_path

    return make


def box():
    return pixels_of(DRAWN, H, W, "").astype(bool)


@pytest.mark.parametrize(
    ("file_name", "place", "photos"),
    [
        ("val2017/a.jpg", "annotations/instances_val2017.json", ["val2017/a.jpg"]),
        ("images/a.jpg", "result.json", ["images/a.jpg"]),
        ("images\\a.jpg", "result.json", ["images/a.jpg"]),
        ("a.jpg", "_annotations.coco.json", ["a.jpg"]),
        ("..\\pictures\\a.jpg", "annotations/instances_default.json", ["images/default/a.jpg"]),
        ("C:\\data\\a.jpg", "annotations/instances_default.json", ["images/a.jpg"]),
        ("/mnt/set/sub/a.jpg", "annotations/instances_val2017.json", ["val2017/sub/a.jpg"]),
        ("http://host/a%20b.jpg", "result.json", ["images/a b.jpg"]),
        ("a.jpg", "annotations/instances_val2017.json", ["annotations/a.jpg"]),
    ],
)
def test_images_are_found_where_tools_put_them(file_name, place, photos, write):
    root = write([ENTRY | {"file_name": file_name}], place=place, photos=photos)
    for where in (root, root / place):
        (sample,) = open_dataset(str(where)).samples()
        assert np.array_equal(sample.masks(), [box()]) and sample.photo == root / photos[0]


def test_nothing_outside_the_folders_is_read(write, tmp_path):
    save(tmp_path / "secret.jpg", photo())
    root = write([ENTRY | {"file_name": "../secret.jpg"}], place="set/result.json", photos=["set/images/b.jpg"])
    with pytest.raises(DatasetError, match=r"that are not in .*: \.\./secret\.jpg"):
        open_dataset(str(root / "set"))
    with pytest.raises(DatasetError, match="are not in"):
        open_dataset(str(write([ENTRY | {"file_name": "x" * 5000}]) / "annotations" / "instances_val2017.json"))


def test_two_names_of_one_file_are_not_guessed(write):
    images = [ENTRY | {"file_name": "x/a.jpg"}, ENTRY | {"id": 2, "file_name": "y/a.jpg"}]
    root = write(images, [DRAWN, DRAWN | {"id": 2, "image_id": 2}])
    with pytest.raises(DatasetError, match=r"x/a\.jpg and y/a\.jpg, and only .*a\.jpg is there"):
        open_dataset(str(root))


@pytest.mark.parametrize(
    ("entry", "item"),
    [
        ({"height": str(H), "width": f"{W}.0"}, {}),
        ({}, {"image_id": "1"}),
        ({"id": "1"}, {"image_id": 1.0}),
        ({}, {"id": "7", "iscrowd": "0"}),
        ({}, {"segmentation": [[str(v) for v in BOX[0]]]}),
        ({}, {"segmentation": BOX[0]}),
        ({}, {"segmentation": [[2, 2], [12, 2], [12, 9], [2, 9]]}),
        ({}, {"segmentation": [[[2, 2], [12, 2], [12, 9], [2, 9]]]}),
        ({"height": None, "width": None}, {"id": None}),
        ({}, {"iscrowd": False}),
    ],
)
def test_numbers_are_compared_by_value(entry, item, write):
    (sample,) = open_dataset(str(write([ENTRY | entry], [DRAWN | item]))).samples()
    assert np.array_equal(sample.masks(), [box()])


def test_run_lengths_as_text(write):
    item = DRAWN | {"segmentation": {"size": [str(H), str(W)], "counts": ["5", str(H * W - 5)]}}
    (sample,) = open_dataset(str(write([ENTRY], [item]))).samples()
    assert sample.masks().sum() == H * W - 5


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"segmentation": [[10, 10, 12, 5]]}, "three or more points"),
        ({"segmentation": []}, "three or more points"),
        ({"segmentation": None}, "subscriptable"),
        ({"segmentation": [["x"] * 6]}, "could not convert"),
        ({"segmentation": [[1, 1, 5, 1, float("nan"), 5]]}, "far outside"),
        ({"segmentation": [[1, 1, 5, 1, 5, 1e9]]}, "far outside"),
        ({"segmentation": {"size": [W, H], "counts": [H * W]}}, "the image has"),
        ({"segmentation": {"size": [H, W], "counts": [3]}}, "add up"),
        ({"segmentation": {"size": [H, W]}}, "'counts'"),
        ({"segmentation": 9 * [10**400]}, "too large"),
        (None, "no segmentation"),
    ],
)
def test_one_bad_object_does_not_cost_the_image(bad, why, write):
    broken = {"id": 2, "image_id": 1} | (bad or {})
    found = open_dataset(str(write([ENTRY], [DRAWN, broken])))
    (sample,) = found.samples()
    assert np.array_equal(sample.masks(), [box()])
    (note,) = found.notes
    assert "annotation 2 of image 1" in note and why in note and "instances_val2017.json" in note
    sample.digest()


def test_one_bad_part_does_not_cost_the_object(write):
    found = open_dataset(str(write([ENTRY], [DRAWN | {"segmentation": [*BOX, [10, 10, 50, 50]]}])))
    assert np.array_equal(found.samples()[0].masks(), [box()])
    assert found.notes[0].endswith(
        "left out parts of annotation 1 of image 1: a polygon needs three or more points (x, y)."
    )


def test_a_file_of_sound_and_unsound_entries(write):
    images = [ENTRY, {"id": 5}, {"file_name": "b.jpg"}, "x", None]
    items = [DRAWN, {"id": 3}, 7, DRAWN | {"id": 4, "image_id": 99}]
    found = open_dataset(str(write(images, items)))
    assert len(found) == 1
    assert [note.split("left out ")[1] for note in found.notes] == [
        "4 images without id or file_name.",
        "2 objects without image_id.",
        "objects of images that are not listed: image_id 99.",
    ]


def test_an_image_with_nothing_left_is_an_error_of_its_own(write):
    images = [ENTRY, ENTRY | {"id": 2, "file_name": "b.jpg"}]
    items = [DRAWN, DRAWN | {"id": 2, "image_id": 2, "segmentation": [[1, 1, 2, 2]]}]
    good, bad = open_dataset(str(write(images, items, photos=["val2017/a.jpg", "val2017/b.jpg"]))).samples()
    assert good.masks().any()
    with pytest.raises(DatasetError, match="annotation 2 .* three or more points"):
        bad.masks()


def test_what_only_the_image_tells_is_said_once(write, capsys):
    far = DRAWN | {"id": 2, "segmentation": [[1, 1, 5, 1, 5, 1e5]]}
    (sample,) = open_dataset(str(write([ENTRY | {"height": None}], [DRAWN, far]))).samples()
    assert np.array_equal(sample.masks(), [box()]) and len(sample.masks()) == 1
    assert capsys.readouterr().err.count("annotation 2") == 1


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", "\ufeff[]", '{"images": {}}', "null"]
)
def test_json_that_is_no_table(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DatasetError, match=r"x\.json is not"):
        open_dataset(str(tmp_path / "x.json"))


def test_annotations_of_a_photo_before_it_was_turned(write):
    exif = Image.Exif()
    exif[0x0112] = 6
    root = write()
    save(root / "val2017" / "a.jpg", photo(), exif=exif)
    with pytest.raises(DatasetError, match="made for 16 x 12, the image as stored. Remove its EXIF orientation"):
        open_dataset(str(root)).samples()[0].masks()


def test_a_folder_of_masks_with_a_result_beside_it_is_no_coco(tmp_path):
    from dataset_folders import make_folder

    make_folder(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    assert len(open_dataset(str(tmp_path))) == 5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        ("3", 3),
        (3.0, 3),
        ("3.0", 3),
        (True, 1),
        ("x", None),
        (3.5, None),
        (None, None),
        ([], None),
        ("9" * 5000, None),
    ],
)
def test_whole(value, expected):
    assert whole(value) == expected
