"""`structsam-export predict`: what it writes, what it refuses, and that it leaves nothing half done."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sam_predictors import PHOTOS

from structsam_export.config import ExportConfig
from structsam_export.errors import PromptError
from structsam_export.folder import new_folder
from structsam_export.job import Job
from structsam_export.predict.asked import Asked
from structsam_export.predict.outputs import names_of
from structsam_export.runtime import Predictor, read_image
from structsam_export.runtime.overlay import with_outlines


@pytest.fixture
def export(tiny_model, tmp_path):
    """Makes an export folder of the tiny model without graphs: `--backend eager` needs none."""

    def make(name="export", **options):
        job = Job.prepare(ExportConfig(model="tiny", checkpoint=str(tiny_model), precision="fp32", **options))
        with new_folder(tmp_path / name, job.manifest(), force=True) as folder:
            folder.write()
        return tmp_path / name

    return make


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of one name in two folders, and a third one."""
    image = read_image(PHOTOS / "coffee.jpg")
    paths = [tmp_path / "a" / "cup.png", tmp_path / "b" / "cup.jpg", tmp_path / "b" / "grey.png"]
    for path, step in zip(paths, (4, 5, 6)):
        path.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(image[::step, ::step])
        (picture.convert("L") if "grey" in path.name else picture).save(path)
    return paths


def masks_in(folder, row):
    return [np.asarray(Image.open(folder / mask["file"])) > 0 for mask in row["masks"]]


def test_points_on_several_pictures(in_process, export, pictures, tmp_path):
    from pycocotools import mask as coco

    folder, out = export(batch=2), tmp_path / "out"
    prompt = ("--point", "40,30", "--point", "10,10,0", "--box", "5,5,80,60")
    code, shown, err = in_process("predict", folder, *pictures, *prompt, "--backend", "eager", "--output", out)
    assert code == 0, err
    assert len(shown.splitlines()) == 4 and "1 mask," in shown
    report = json.loads((out / "predictions.json").read_text())
    assert report["export"]["backend"] == "eager" and not report["asked"]["multimask"]
    assert report["asked"]["prompts"] == [{"points": [[40, 30, 1], [10, 10, 0]], "box": [5, 5, 80, 60]}]
    files = {"predictions.json"}
    with Predictor(folder, "eager") as predictor:
        for row, path, name in zip(report["images"], pictures, ("cup", "cup-2", "grey")):
            image = read_image(path)
            assert row["image"] == str(path) and (row["height"], row["width"]) == image.shape[:2]
            assert (
                row["overlay"] == f"{name}.overlay.jpg" and Image.open(out / row["overlay"]).size == image.shape[1::-1]
            )
            predictor.set_image(image)
            points, labels = np.array([[40, 30], [10, 10]]), np.array([1, 0])
            wanted, scores, _ = predictor.predict(points, labels, np.array([5, 5, 80, 60]), multimask_output=False)
            (mask,), (record,) = masks_in(out, row), row["masks"]
            assert (mask == wanted[0]).all() and (coco.decode(record["segmentation"]) == wanted[0]).all()
            assert record["predicted_iou"] == pytest.approx(scores[0]) and record["area"] == wanted[0].sum()
            files |= {row["overlay"], record["file"]}
    assert {path.name for path in out.iterdir()} == files


def test_boxes_are_objects_and_multimask_gives_three(in_process, export, pictures, tmp_path):
    boxes = ("--box", "5,5,80,60", "--box", "0,0,30,30")
    code, shown, _ = in_process(
        "predict", export(), pictures[0], *boxes, "--multimask", "--backend", "eager", "--output", "out", "--json"
    )
    (row,) = json.loads(shown)["images"]
    assert code == 0 and len(row["masks"]) == 6
    assert [mask["prompt"] for mask in row["masks"]] == [{"box": [5, 5, 80, 60]}] * 3 + [{"box": [0, 0, 30, 30]}] * 3
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == json.loads(shown)


def test_everything(in_process, export, pictures):
    options = ("--points-per-side", 3, "--min-iou", 0, "--min-stability", 0, "--min-area", 9, "--crop-layers", 1)
    code, shown, err = in_process(
        "predict", export(), pictures[0], "--everything", *options, "--backend", "eager", "--json"
    )
    assert code == 0, err
    report = json.loads(shown)
    assert report["asked"]["everything"]["crop_n_layers"] == 1
    masks = report["images"][0]["masks"]
    assert masks and {"stability_score", "point_coords", "crop_box", "bbox"} < set(masks[0])
    areas = [mask["area"] for mask in masks]
    assert areas == sorted(areas, reverse=True)


def test_prompt_aware_exports_take_several_prompts_but_not_everything(in_process, export, pictures):
    folder = export(prompt_aware=True)
    boxes = ("--box", "5,5,80,60", "--box", "0,0,30,30")
    code, shown, _ = in_process("predict", folder, *pictures[:2], *boxes, "--backend", "eager", "--json")
    assert code == 0 and [len(row["masks"]) for row in json.loads(shown)["images"]] == [2, 2]
    code, _, err = in_process("predict", folder, pictures[0], "--everything", "--backend", "eager", "--output", "all")
    assert code == 2 and "prompt-aware" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Nothing is asked for"),
        (("--point", "40"), 2, "Cannot read --point '40'"),
        (("--point", "40,nan"), 2, "Cannot read --point"),
        (("--point", "40,1e999"), 2, "Cannot read --point"),
        (("--point", "40,30,2"), 2, "neither 1"),
        (("--point", "40,30,0"), 2, "Every point is background"),
        (("--point", "150,30"), 2, "outside"),
        (("--point", "-1,30"), 2, "outside"),
        (("--box", "5,5,4,9"), 2, "is empty"),
        (("--box", "5,5,900,9"), 2, "not inside"),
        (("--box", "5,5,9"), 2, "Cannot read --box"),
        (("--point", "4,4", "--box", "1,1,9,9", "--box", "2,2,9,9"), 2, "several boxes"),
        (("--everything", "--point", "4,4"), 2, "takes no prompts"),
        (("--everything", "--min-iou", "nan"), 2, "from 0 to 1"),
        (("--point", "4,4", "--min-iou", "0.5"), 2, "Leave --min-iou away"),
        (("--point", "4,4", "--backend", "onnx"), 2, "Unknown backend 'onnx'"),
        (("--point", "4,4", "--backend", "onnxruntime"), 5, "lists no"),
        (("--point", "4,4", "--backend", "onnxruntime", "--checkpoint", "x.pth"), 2, "eager"),
        (("--point", "4,4", "--backend", "eager", "--checkpoint", "x.pth"), 5, "x.pth"),
    ],
)
def test_bad_requests_leave_nothing(in_process, export, pictures, tmp_path, arguments, code, message):
    found, shown, err = in_process("predict", export(), pictures[0], *arguments, "--output", tmp_path / "out" / "deep")
    assert (found, shown) == (code, "") and message in err and "Traceback" not in err
    assert not list(tmp_path.glob("out/**/*"))


def test_bad_pictures_and_folders(in_process, export, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    ask = ("--point", "4,4", "--backend", "eager", "--output", tmp_path / "out")
    code, _, err = in_process("predict", export(), pictures[0], tmp_path / "bad.png", *ask)
    assert code == 5 and "bad.png" in err and not (tmp_path / "out").exists()
    code, _, err = in_process("predict", tmp_path / "nowhere", pictures[0], *ask)
    assert code == 5 and "nowhere" in err
    # Cut after its header: found only when its turn comes, when others are done.
    cut = tmp_path / "cut.png"
    cut.write_bytes(pictures[0].read_bytes()[:2000])
    code, _, err = in_process("predict", export(), pictures[0], cut, *ask)
    assert code == 5 and "cut.png" in err and not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_earlier_predictions_are_replaced_only_when_asked(in_process, export, pictures, tmp_path):
    folder, out = export(), tmp_path / "out"
    ask = ("predict", folder, pictures[0], "--backend", "eager", "--output", out)
    assert in_process(*ask, "--box", "5,5,80,60", "--multimask")[0] == 0
    code, _, err = in_process(*ask, "--point", "4,4")
    assert code == 2 and "--force" in err and (out / "cup.mask-2.png").exists()
    assert in_process(*ask, "--point", "4,4", "--force")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["cup.mask-0.png", "cup.overlay.jpg", "predictions.json"]
    (out / "predictions.json").unlink()
    code, _, err = in_process(*ask, "--point", "4,4", "--force")
    assert code == 2 and "will not be replaced" in err and (out / "cup.mask-0.png").exists()
    shutil.rmtree(out)


def test_names_of_files_are_distinct_and_plain(tmp_path):
    names = names_of(
        [tmp_path / n for n in ("a.png", "A.jpg", "a.png", "a-2.png", "x\udcff\n.png", f"{'y' * 300}.png")]
    )
    assert names == ["a", "A-2", "a-3", "a-2-2", "x__", "y" * 100]
    assert len({name.casefold() for name in names}) == len(names)


def test_overlay_tints_masks_and_outlines_them():
    image = np.full((9, 9, 3), 100, np.uint8)
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    shown = with_outlines(image, [mask])
    assert (shown[0, 0] == 140).all() and shown[2, 4].tolist() == [230, 159, 0]
    assert shown[4, 4].tolist() == [189, 150, 63]


def test_prompts_without_a_picture():
    with pytest.raises(PromptError, match="Cannot read --box 'a,b,c,d'"):
        Asked.of_text(boxes=["a,b,c,d"])
    assert len(Asked.of_text(boxes=["0,0,1,1", "1,1,2,2"]).prompts()) == 2
