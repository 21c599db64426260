"""`AutomaticMaskGenerator` against `SamAutomaticMaskGenerator` on the same patched model, and its parts."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sam_predictors import PHOTOS
from scipy import ndimage
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils import amg
from torchvision.ops import nms

from structsam_export.config import ExportConfig
from structsam_export.errors import MissingRuntimeError, UsageError
from structsam_export.folder import ExportFolder
from structsam_export.job import Job
from structsam_export.runtime import AutomaticMaskGenerator, Predictor, read_image
from structsam_export.runtime.grids import crops, point_grids
from structsam_export.runtime.regions import box_of, compressed, distinct, mask_of, run_lengths, without_small_regions


def both(tmp_path, image, config, **parameters):
    """Records of SAM's generator and of ours, on one patched model."""
    job = Job.prepare(config)
    with job.schedule.patched(job.loaded.sam.image_encoder):
        wanted = SamAutomaticMaskGenerator(job.loaded.sam, **parameters).generate(image)
    with Predictor(ExportFolder(tmp_path, job.manifest()), "eager") as predictor:
        return wanted, AutomaticMaskGenerator(predictor, **parameters).generate(image)


def check(wanted, found):
    """The same records in the same order."""
    assert len(wanted) == len(found) > 0
    for a, b in zip(wanted, found):
        assert list(a) == list(b)
        for name in ("bbox", "crop_box", "point_coords"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-9)
        assert abs(a["predicted_iou"] - b["predicted_iou"]) < 1e-4
        assert abs(a["stability_score"] - b["stability_score"]) < 1e-3
        first, second = (r["segmentation"] for r in (a, b))
        union = (first | second).sum()
        assert first.shape == second.shape and (first & second).sum() >= 0.999 * union
        assert b["area"] == second.sum() and isinstance(b["area"], int)


@pytest.mark.parametrize(
    "parameters",
    [
        {"points_per_side": 6, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.5},
        {
            "points_per_side": 5,
            "points_per_batch": 7,
            "pred_iou_thresh": 0.2,
            "stability_score_thresh": 0.6,
            "stability_score_offset": 0.5,
            "box_nms_thresh": 0.5,
            "crop_n_layers": 1,
            "crop_nms_thresh": 0.6,
            "crop_overlap_ratio": 0.3,
            "crop_n_points_downscale_factor": 2,
        },
    ],
    ids=["plain", "crops"],
)
def test_records_are_sams(tmp_path, parameters):
    """The demo model: its masks are real ones, its guesses of IoU lower than SAM's."""
    image = read_image(PHOTOS / "coffee.jpg")[::2, ::2].copy()
    check(*both(tmp_path, image, ExportConfig(rate=0.5, precision="fp32"), **parameters))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coffee", "coins", "chelsea"])
def test_records_are_sams_on_whole_photos(tmp_path, name):
    parameters = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.8, "crop_n_layers": 1, "points_per_side": 16}
    wanted, found = both(
        tmp_path, read_image(PHOTOS / f"{name}.jpg"), ExportConfig(rate=0.5, precision="fp32"), **parameters
    )
    print(name, len(wanted), len(found))
    check(wanted, found)


@pytest.fixture
def predictor(tiny_model, tmp_path):
    job = Job.prepare(ExportConfig(model="tiny", checkpoint=str(tiny_model), precision="fp32", batch=2))
    with Predictor(ExportFolder(tmp_path, job.manifest()), "eager") as made:
        yield made


ALL = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9}


def test_output_modes_say_the_same(predictor):
    image = read_image(PHOTOS / "coffee.jpg")[::4, ::4].copy()
    predictor.set_image(image[:50])
    modes, told = ("binary_mask", "uncompressed_rle", "coco_rle"), []
    found = {
        mode: AutomaticMaskGenerator(predictor, 3, output_mode=mode, crop_n_layers=1, **ALL).generate(
            image, lambda done, of: told.append((done, of))
        )
        for mode in modes
    }
    assert told[-1] == (45, 45) and sorted(told[: len(told) // 3]) == told[: len(told) // 3]
    assert predictor.original_size == (50, image.shape[1])  # its own image stays
    from pycocotools import mask as coco

    assert len({len(records) for records in found.values()}) == 1 and found["coco_rle"]
    for plain, runs, text in zip(*found.values()):
        assert (mask_of(runs["segmentation"]) == plain["segmentation"]).all()
        assert runs["segmentation"]["size"] == list(image.shape[:2])
        assert (coco.decode(text["segmentation"]) == plain["segmentation"]).all()
        assert isinstance(text["segmentation"]["counts"], str) and plain["segmentation"].sum() == plain["area"]


def test_small_regions_are_removed_as_sam_does_it(tiny_model, tmp_path, monkeypatch):
    """SAM's own code with SciPy's regions in OpenCV's place, which is not installed here."""

    def regions(mask, connectivity):
        assert connectivity == 8
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        return count + 1, labels, np.bincount(labels.ravel(), minlength=count + 1)[:, None], None

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(connectedComponentsWithStats=regions))
    rng, changed = np.random.default_rng(0), 0
    for _ in range(40):
        mask = ndimage.gaussian_filter(rng.normal(size=(40, 50)), rng.uniform(0.5, 3)) > 0
        area = int(rng.integers(1, 60))
        for mode in ("holes", "islands"):
            wanted, same = amg.remove_small_regions(mask, area, mode)
            found, ours = without_small_regions(mask, area, holes=mode == "holes")
            assert same == ours and (wanted == found).all()
            changed += same
    assert changed > 20
    tiny = np.zeros((9, 9), bool)
    tiny[1, 1] = tiny[5, 5:7] = True
    assert without_small_regions(tiny, 5, holes=False)[0].sum() == 2  # the largest stays
    # The whole step, with duplicates that it makes.
    image = read_image(PHOTOS / "coffee.jpg")[::4, ::4].copy()
    config = ExportConfig(model="tiny", checkpoint=str(tiny_model), rate=0.5, precision="fp32")
    check(*both(tmp_path, image, config, points_per_side=4, min_mask_region_area=60, **ALL))


def test_duplicates_are_torchvisions():
    """Ties by order, boxes without area, thresholds that a box hits exactly."""
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 50, 400):
        corners = rng.integers(0, 40, (count, 2, 2))
        boxes = np.sort(corners, 1).reshape(-1, 4).astype(np.float32)
        scores = rng.integers(0, 6, count) / 5
        for threshold in (0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0):
            wanted = nms(torch.tensor(boxes), torch.tensor(scores, dtype=torch.float32), threshold)
            assert distinct(boxes, scores, threshold).tolist() == wanted.tolist()


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_grids_and_crops_are_sams(layers):
    for ours, sams in zip(point_grids(9, layers, 2), amg.build_all_layer_point_grids(9, layers, 2)):
        assert (ours == sams).all()
    for size in ((480, 640), (37, 23), (1001, 3000)):
        boxes, layer = amg.generate_crop_boxes(size, layers, 512 / 1500)
        found = crops(size, layers, 512 / 1500)
        assert [list(crop.box) for crop in found] == boxes and [crop.layer for crop in found] == layer


def test_runs_and_boxes_are_sams():
    rng = np.random.default_rng(0)
    masks = [ndimage.gaussian_filter(rng.normal(size=(17, 29)), 2) > 0.05 for _ in range(9)]
    masks += [np.zeros((5, 4), bool), np.ones((5, 4), bool)]
    for mask in masks:
        tensor = torch.tensor(mask)[None]
        (wanted,) = amg.mask_to_rle_pytorch(tensor)
        assert run_lengths(mask) == wanted and (mask_of(wanted) == mask).all()
        assert compressed(wanted) == amg.coco_encode_rle(wanted)
        assert box_of(mask).tolist() == amg.batched_mask_to_box(tensor)[0].tolist()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"points_per_side": None}, "either"),
        ({"point_grids": [np.zeros((1, 2))]}, "either"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "too few"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 3))]}, r"\(N, 2\)"),
        ({"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "no point"),
        ({"output_mode": "coco"}, "Did you mean 'coco_rle'"),
        ({"points_per_batch": 0}, "at least 1"),
    ],
)
def test_parameters_that_contradict_are_refused(predictor, parameters, message):
    with pytest.raises(UsageError, match=message):
        AutomaticMaskGenerator(predictor, **parameters)


def test_own_grids(predictor):
    image = read_image(PHOTOS / "coffee.jpg")[::4, ::4].copy()
    grid = np.array([[0.5, 0.5], [0.25, 0.75]])
    records = AutomaticMaskGenerator(predictor, None, point_grids=[grid], **ALL).generate(image)
    expected = (grid * (image.shape[1], image.shape[0])).tolist()
    assert records and all(record["point_coords"][0] in expected for record in records)


def test_pycocotools_and_prompt_aware_exports_are_named(predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingRuntimeError, match=r"structsam-export\[coco\]"):
        AutomaticMaskGenerator(predictor, output_mode="coco_rle")
    predictor.model.prompt_aware = True
    with pytest.raises(UsageError, match="once for each prompt"):
        AutomaticMaskGenerator(predictor)
