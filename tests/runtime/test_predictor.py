"""`Predictor` against `SamPredictor` on one patched model; what it refuses; threads, batches, prompt-aware exports."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sam_predictors import PHOTOS, Comparison, compare, pictures, random_prompt, sam_predictor
from small_exports import rewritten

from structsam_export.backends import backend
from structsam_export.config import ExportConfig
from structsam_export.errors import ArtifactError, ImageError, NoImageError, PromptError, UsageError
from structsam_export.folder import ExportFolder
from structsam_export.job import Job
from structsam_export.runtime import Predictor, RunOptions, read_image
from structsam_export.runtime.model import ExportedModel

PAGE = Path(__file__).parents[2] / "docs" / "predictor.md"
F32 = RunOptions(precision="f32")
POINT = {"point_coords": np.array([[60, 40]]), "point_labels": np.array([1])}


@pytest.fixture
def tiny(tiny_model, tmp_path_factory):
    """An export of the tiny model in FP32, made once: its folder."""
    folder = tmp_path_factory.getbasetemp() / "tiny-for-predictors"
    return folder if folder.exists() else rewritten(folder, model="tiny", checkpoint=str(tiny_model), rate=0.5)


@pytest.fixture
def eager(tiny_model, tmp_path):
    """Makes a predictor in PyTorch of the tiny model with options: no ONNX file is needed for that."""

    def make(**options):
        make.job = Job.prepare(ExportConfig(model="tiny", checkpoint=str(tiny_model), precision="fp32", **options))
        return Predictor(ExportFolder(tmp_path, make.job.manifest()), "eager")

    return make


@pytest.fixture(scope="module")
def photo():
    return np.ascontiguousarray(read_image(PHOTOS / "coffee.jpg")[::3, ::3])


# ---- The same masks


@pytest.mark.parametrize(
    ("name", "options"), [("onnxruntime", RunOptions()), ("openvino", F32), ("eager", RunOptions())]
)
def test_masks_are_sam_predictors(tiny, tmp_path, name, options):
    """Random weights: logits are what is compared; pixels may differ where the logit is on the threshold only."""
    if name != "eager" and not backend(name).installed():
        pytest.skip(f"{name} is not installed")
    found, rng = [Comparison()], np.random.default_rng(0)
    with sam_predictor(tiny) as sam, Predictor(tiny, name, options=options) as ours:
        assert ours.model.backend == name and ours.model.concurrent == (name != "openvino")
        for path in pictures(tmp_path / "pictures").values():
            compare(sam, [ours], read_image(path), 3, rng, found)
    (found,) = found
    assert len(found.ious) > 60 and found.worst_logits <= 1e-4 and found.worst_guess <= 1e-4, str(found)


@pytest.mark.slow
def test_masks_are_sam_predictors_on_the_demo_model(tmp_path):
    """200 prompts on each of ten pictures, on ONNX Runtime and OpenVINO."""
    folder, rng = tmp_path / "demo", np.random.default_rng(0)
    rewritten(folder, method="structsam", rate=0.5)
    with (
        sam_predictor(folder) as sam,
        Predictor(folder, "onnxruntime") as first,
        Predictor(folder, "openvino", options=F32) as second,
    ):
        for kind, path in pictures(tmp_path / "pictures").items():
            for ours, found in zip((first, second), compare(sam, (first, second), read_image(path), 200, rng)):
                print(ours.model.backend, kind, found, flush=True)
                assert found.worst_logits <= 1e-4 and np.mean(found.ious) >= 0.9999


def test_a_batch_is_predict_torch(tiny, photo):
    """Coordinates in encoder pixels; P prompts at once, more than an engine takes, and one mask for all."""
    import torch

    rng = np.random.default_rng(0)
    with sam_predictor(tiny) as sam, Predictor(tiny, "onnxruntime") as ours:
        for predictor in (sam, ours):
            predictor.set_image(photo)
        points = ours.transform.apply_coords(rng.uniform(0, 100, (70, 2, 2)), photo.shape[:2])
        boxes = ours.transform.apply_boxes(np.sort(rng.uniform(0, 100, (70, 2, 2)), 1), photo.shape[:2])
        labels, mask = rng.integers(0, 2, (70, 2)), rng.normal(size=(1, 1, 32, 32)).astype(np.float32)
        for given in ((points, labels, None, None), (None, None, boxes, mask), (points, labels, boxes, None)):
            tensors = [None if v is None else torch.as_tensor(v, dtype=torch.float32) for v in given]
            wanted = [np.asarray(v) for v in sam.predict_torch(*tensors, return_logits=True)]
            found = ours.predict_batch(*given, return_logits=True)
            for a, b in zip(wanted, found):
                assert a.shape == b.shape and b.dtype == np.float32
                np.testing.assert_allclose(b, a, atol=1e-4 * abs(a).max())
            low = ours.predict_low_res(*given)
            assert (low.low_res == found[2]).all() and (low.iou == found[1]).all()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_mask_alone_is_a_prompt(tiny, photo, name):
    if not backend(name).installed():
        pytest.skip(f"{name} is not installed")
    with sam_predictor(tiny) as sam, Predictor(tiny, name, options=F32 if name == "openvino" else RunOptions()) as ours:
        for predictor in (sam, ours):
            predictor.set_image(photo)
        given = {"mask_input": np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)}
        found = Comparison()
        found.add(sam.predict(**given), ours.predict(**given), sam.predict(**given, return_logits=True)[0])
        assert found.worst_logits <= 1e-4


# ---- SamPredictor's attributes


def test_attributes_are_sam_predictors(tiny, photo):
    with sam_predictor(tiny) as sam, Predictor(tiny) as ours:
        assert ours.model.backend == "onnxruntime"  # the folder has no engines
        assert not ours.is_image_set and ours.features is None
        assert ours.mask_threshold == ours.model.mask_threshold == sam.model.mask_threshold
        assert ours.model.image_format == sam.model.image_format and ours.device == str(sam.device)
        with pytest.raises(RuntimeError, match="set_image"):
            ours.predict(**POINT)
        with pytest.raises(NoImageError):
            ours.get_image_embedding()
        for predictor in (sam, ours):
            predictor.set_image(photo[..., ::-1], image_format="BGR")
        assert ours.is_image_set and (ours.original_size, ours.input_size) == (sam.original_size, sam.input_size)
        assert ours.transform.target_length == sam.transform.target_length
        np.testing.assert_allclose(ours.features, sam.features, atol=1e-4)
        assert ours.get_image_embedding() is ours.features
        plain = ours.predict(**POINT, return_logits=True)[0]
        ours.mask_threshold = 0.25
        assert ours.model.mask_threshold == 0.25 and (ours.predict(**POINT)[0] == (plain > 0.25)).all()
        ours.reset_image()
        assert not ours.is_image_set and ours.features is None
        with pytest.raises(NoImageError):
            _ = ours.original_size


# ---- What is no prompt and no picture

MASK = np.zeros((1, 32, 32))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no prompt"),
        ({"point_coords": [[1, 2]]}, "belong together"),
        ({"point_labels": [1]}, "belong together"),
        ({"point_coords": [1, 2], "point_labels": [1]}, "shape"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, "one label a point"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "corners of boxes"),
        ({"point_coords": 5, "point_labels": [1]}, "shape"),
        ({"point_coords": [[1, 2]], "point_labels": [[1], [1, 2]]}, "as numbers"),
        ({"point_coords": [["a", 2]], "point_labels": [1]}, "as numbers"),
        ({"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0)}, r"shape|empty"),
        ({"point_coords": [[float("nan"), 2]], "point_labels": [1]}, "not finite"),
        ({"point_coords": [[1e300, 2]], "point_labels": [1]}, "not finite"),
        ({"box": [1, 2, 3]}, "four numbers"),
        ({"box": [1, 2, 3, float("inf")]}, "not finite"),
        ({"box": [1, 2, 30, 40], "mask_input": MASK[0]}, "shape"),
        ({"box": [1, 2, 30, 40], "mask_input": MASK * float("nan")}, "not finite"),
    ],
)
def test_what_is_no_prompt_is_refused(eager, photo, given, message):
    ours = eager()
    ours.set_image(photo)
    with pytest.raises(PromptError, match=message) as refused:
        ours.predict(**given)
    assert isinstance(refused.value, ValueError) and refused.value.exit_code == 2


def test_prompts_of_unlike_number_are_refused(eager, photo):
    ours = eager()
    ours.set_image(photo)
    with pytest.raises(PromptError, match="differ in number"):
        ours.predict_batch(np.zeros((3, 1, 2)), np.ones((3, 1)), np.ones((2, 4)))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
        [[1]],
    ],
)
def test_what_is_no_picture_is_refused(eager, image):
    with pytest.raises(ImageError, match="uint8"):
        eager().set_image(image)


def test_other_misuse_is_refused(eager, tiny, photo):
    ours = eager()
    with pytest.raises(UsageError, match="neither RGB nor BGR"):
        ours.set_image(photo, "HSV")
    with pytest.raises(UsageError, match="at least one"):
        ours.set_images([])
    with pytest.raises(UsageError, match="another predictor"):
        ours.set_embedding(eager().embed([photo])[0])
    with pytest.raises(UsageError, match="Did you mean 'onnxruntime'"):
        Predictor(tiny, "onnxruntim")
    with pytest.raises(UsageError, match="eager"):
        Predictor(tiny, "onnxruntime", checkpoint="weights.pth")


def test_a_damaged_folder_is_refused(tiny, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "decoder.onnx").write_bytes((broken / "decoder.onnx").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="SHA-256"):
        Predictor(broken)
    with pytest.raises(ArtifactError):
        Predictor(tmp_path / "missing")


def test_an_engine_has_a_largest_number_of_points(tiny, photo):
    with Predictor(tiny) as ours:
        ours.set_image(photo)
        ours.model.by_profile = True  # as TensorRT's
        many = {"point_coords": np.ones((16, 2)), "point_labels": np.ones(16)}
        with pytest.raises(PromptError, match="1 to 16 points"):
            ours.predict(**many)
        with pytest.raises(PromptError, match="1 to 16 points"):
            ours.predict(mask_input=MASK)
        ours.predict(**many | {k: v[:15] for k, v in many.items()})


def test_an_unused_mask_is_zeros():
    """Graphs may multiply it by 0, and 0 * NaN is NaN: what lies in memory must not get there."""
    fed = {}

    class Decoder:
        def infer(self, feed):
            fed.update(feed)
            return {
                "low_res_masks": np.zeros((1, 4, 8, 8), np.float32),
                "iou_predictions": np.zeros((1, 4), np.float32),
            }

    model = ExportedModel(Decoder(), Decoder(), 32, (8, 8))
    model.decode(np.zeros((1, 2, 2, 2), np.float32), np.zeros((1, 2, 2), np.float32), np.zeros((1, 2), np.int64))
    assert fed["has_mask_input"] == [0] and fed["mask_input"].shape == (1, 1, 8, 8) and not fed["mask_input"].any()


# ---- Several images, several threads


def test_batches_of_images(eager, photo):
    """Three pictures through an encoder that takes two: as one by one, in order; the last batch is filled up."""
    ours, calls = eager(batch=2), []
    infer = ours.model.encoder.infer
    ours.model.encoder.infer = lambda feed: calls.append(len(feed["image"])) or infer(feed)
    images = [photo, photo[:40], photo[:, :30]]
    embedded = ours.set_images(images)
    assert calls == [2, 2] and ours.original_size == photo.shape[:2]
    single = eager()
    for image, embedding in zip(images, embedded):
        single.set_image(image)
        np.testing.assert_allclose(embedding.features, single.features, atol=1e-5)
        ours.set_embedding(embedding)
        assert ours.original_size == image.shape[:2]
        given = {"point_coords": np.array([[12, 20]]), "point_labels": np.array([1])}
        for a, b in zip(ours.predict(**given, return_logits=True), single.predict(**given, return_logits=True)):
            np.testing.assert_allclose(a, b, atol=1e-4)
    ours.reset_image()
    assert (ours.predict(**given, embedding=embedded[0])[0].shape[1:]) == photo.shape[:2]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "eager"])
def test_threads_decode_at_once(tiny, photo, name):
    """Some on the current image, some on another one; what each gets is what it gets alone."""
    if name != "eager" and not backend(name).installed():
        pytest.skip(f"{name} is not installed")
    with Predictor(tiny, name) as ours:
        ours.set_image(photo)
        (other,) = ours.embed([photo[::-1, :90].copy()])
        rng = np.random.default_rng(0)
        asked = [(random_prompt(rng, (60, 60)), other if i % 2 else None) for i in range(24)]
        alone = [ours.predict(**prompt, embedding=on) for prompt, on in asked]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda one: ours.predict(**one[0], embedding=one[1]), asked))
    for first, second in zip(alone, together):
        for a, b in zip(first, second):
            assert (a == b).all()


# ---- Prompt-aware exports


def test_an_embedding_of_a_prompt_is_made_with_it(eager, photo):
    """Against the patched encoder itself, for a point, a box, both, and background points."""
    import torch

    from structsam_export.patch import prompted

    ours = eager(prompt_aware=True, rate=0.5, batch=2)
    ours.set_image(photo)
    encoder = eager.job.loaded.sam.image_encoder  # another copy than the predictor's
    prompts = [
        ({"point_coords": [[50, 40]], "point_labels": [1]}, [50, 40, 50, 40]),
        ({"box": [20, 10, 90, 70]}, [20, 10, 90, 70]),
        ({"point_coords": [[50, 40], [60, 80], [9, 9]], "point_labels": [1, 1, 0]}, [50, 40, 60, 80]),
        ({"point_coords": [[50, 40]], "point_labels": [0], "box": [20, 10, 90, 70]}, [20, 10, 90, 70]),
        ({"point_coords": [[50, 40], [10, 60]], "point_labels": [0, 0]}, [10, 40, 50, 60]),
    ]
    different = set()
    with eager.job.schedule.patched(encoder):
        for prompt, region in prompts:
            box = ours.transform.apply_boxes(np.array(region), photo.shape[:2]).astype(np.float32)
            with torch.no_grad(), prompted(encoder, torch.as_tensor(box)):
                wanted = encoder(torch.as_tensor(ours._current.prepared)).numpy()
            seen = []
            decode = ours.model.decode
            ours.model.decode = lambda embedding, *more, seen=seen, decode=decode, **named: (
                seen.append(embedding) or decode(embedding, *more, **named)
            )
            ours.predict(**prompt)
            ours.model.decode = decode
            np.testing.assert_allclose(seen[0], wanted, atol=1e-5)
            different.add(wanted.tobytes())
    assert len(different) >= 3  # the prompt matters


def test_misuse_of_a_prompt_s_embedding_is_impossible(eager, photo):
    ours = eager(prompt_aware=True, rate=0.5)
    calls, infer = [], ours.model.encoder.infer
    ours.model.encoder.infer = lambda feed: calls.append(feed["boxes"].tolist()) or infer(feed)
    ours.set_image(photo)
    assert ours.is_image_set and ours.features is None and calls == []
    with pytest.raises(UsageError, match="belongs to its prompt"):
        ours.get_image_embedding()
    masks, scores, low = ours.predict(**POINT)
    ours.predict(**POINT, mask_input=low[:1])  # refined: the same embedding
    assert len(calls) == 1
    ours.predict(box=np.array([5, 5, 50, 60]))
    again = ours.predict(**POINT)
    assert len(calls) == 3 and (again[0] == masks).all() and (again[1] == scores).all()
    with pytest.raises(PromptError, match="needs a point or a box"):
        ours.predict(mask_input=low[:1])
    boxes = ours.transform.apply_boxes(np.array([[5, 5, 50, 60], [30, 20, 90, 80]]), photo.shape[:2])
    both = ours.predict_batch(None, None, boxes)
    assert len(calls) == 5 and both[0].shape[:2] == (2, 3)
    assert (both[2][0] == ours.predict(box=np.array([5, 5, 50, 60]))[2]).all()


# ---- No PyTorch

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "segment_anything", "onnxscript"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
from structsam_export.runtime import Predictor, read_image
slow = {"onnx", "onnxruntime", "openvino", "scipy", "matplotlib", "rich", "PIL", "onnx_graphsurgeon"}
heavy = slow & set(sys.modules)
assert not heavy, f"importing Predictor imports {heavy}"
image = read_image(sys.argv[2])
for name in sys.argv[3:]:
    with Predictor(sys.argv[1], name) as predictor:
        predictor.set_image(image)
        masks, scores, low = predictor.predict(box=[10, 10, 200, 150])
        assert masks.shape == (3, *image.shape[:2]) and scores.shape == (3,) and low.shape == (3, 32, 32)
try:
    import torch
except ImportError as error:
    print(error)
"""


def test_no_pytorch_unless_eager(tiny):
    names = [name for name in ("onnxruntime", "openvino") if backend(name).installed()]
    command = [sys.executable, "-c", BLOCKED, str(tiny), str(PHOTOS / "coffee.jpg"), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is blocked" in done.stdout


def test_the_code_of_the_documentation_runs(tiny):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"folder": tiny, "path": PHOTOS / "coffee.jpg"}
    for block in blocks:
        exec(
            block.replace("points_per_side=16", "points_per_side=2, pred_iou_thresh=-1, stability_score_thresh=0"),
            names,
        )
    assert len(blocks) == 2 and names["masks"].shape == (1, 400, 600) and names["records"]


# ---- Engines


def test_engines_of_the_folder_come_first(tiny, tmp_path, photo, monkeypatch):
    """OpenVINO's files are run where they were built; another precision than theirs is computed from the FP32 graph."""
    import shutil

    from structsam_export.pipeline import build_folder

    if not backend("openvino").installed():
        pytest.skip("openvino is not installed")
    folder = tmp_path / "built"
    shutil.copytree(tiny, folder)
    build_folder(folder, "openvino", "f32")
    with Predictor(folder) as built, Predictor(tiny) as onnx, Predictor(folder, "openvino", options=F32) as same:
        assert built.model.backend == "openvino" and ".xml" in built.model.encoder.name == same.model.encoder.name
        for predictor in (built, onnx):
            predictor.set_image(photo)
        np.testing.assert_allclose(built.predict(**POINT)[2], onnx.predict(**POINT)[2], atol=1e-3)
    for name in ("tensorrt", "tensorrt-rtx"):
        monkeypatch.setattr(type(backend(name)), "check_run", lambda self: None)
        with pytest.raises(ArtifactError, match=f"no {name} engines for this machine. Run: .*--backend {name}"):
            Predictor(folder, name)
