"""Stages on the photos: what they are fed, what they are compared with, and how their time is told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from bench_files import folder_of, outer_product

from structsam_export.backends import EnginePair
from structsam_export.backends.base import Engine
from structsam_export.folder import ExportFolder
from structsam_export.runtime.photos import Photo
from structsam_export.runtime.prompts import Prompt
from structsam_export.validate.latency import latency
from structsam_export.validate.parity import Comparison, Validation, before_each, quality
from structsam_export.validate.stages import Inputs, Reference, Stage, repeated

PHOTO = Photo("grey", np.full((20, 40, 3), 128, np.uint8), (Prompt("box", box=(10, 5, 30, 15)),))


def pair(backend):
    made = [Engine(f"{p}.e", p, backend, "1", "x", "0" * 64, 1) for p in ("encoder", "decoder")]
    return EnginePair(*made)


def stage(name, mask, seconds=(0.1,)):
    embedding = np.ones((1, 2, 4, 4), np.float32)
    return Stage(name, [{"image_embeddings": embedding}], [np.array([mask], bool)], list(seconds))


def reference(photos=(PHOTO,), dense=None, eager=None):
    inputs = Inputs.of(photos, 64, "sam", prompt_aware=False)
    mask = np.zeros((20, 40))
    return Reference(inputs, dense or stage("dense", mask), eager or stage("eager", mask))


def test_a_batch_repeats_the_photo_and_its_prompt():
    inputs = Inputs.of([PHOTO], 64, "sam", prompt_aware=True)
    (feed,) = inputs.feeds(3)
    assert feed["image"].shape == (3, 3, 64, 64) and feed["boxes"].shape == (3, 4)
    assert np.array_equal(feed["boxes"], np.repeat([[16, 8, 48, 24]], 3, 0))  # 40 px became 64
    assert (feed["image"][0] == feed["image"][2]).all() and (feed["image"][:, :, 32:] == 0).all()
    assert set(Inputs.of([PHOTO], 64, "sam", prompt_aware=False).feeds(1)[0]) == {"image"}


def test_masks_have_the_size_of_the_photo():
    inputs = Inputs.of([PHOTO], 64, "sam", prompt_aware=False)
    asked = []

    def decode(embedding, coords, labels):
        asked.append((embedding.shape, coords.tolist(), labels.tolist()))
        return np.where(np.arange(16) < 8, 1.0, -1.0).astype(np.float32)[None, None].repeat(16, 1)

    (masks,) = inputs.masks(decode, [{"image_embeddings": np.zeros((3, 2, 4, 4), np.float32)}])
    assert asked == [((1, 2, 4, 4), [[[16, 8], [48, 24]]], [[2, 3]])]
    assert masks.shape == (1, 20, 40) and masks[0, :, :19].all() and not masks[0, :, 21:].any()


def test_what_a_graph_does_not_tell_is_pytorchs():
    eager = {"image_embeddings": np.zeros((1, 2)), "plan.0.pos": np.array([[1, 2]])}
    made = repeated(eager, {"image_embeddings": np.ones((2, 2))})
    assert set(made) == {"plan.0.pos"} and made["plan.0.pos"].tolist() == [[1, 2], [1, 2]]


def test_every_stage_is_compared_with_the_one_before():
    fp32, fp16 = ["eager", "onnx_raw", "onnx"], ["eager", "onnx_raw", "onnx_fp32", "onnx"]
    assert before_each(fp32, None) == {"onnx_raw": "eager", "onnx": "onnx_raw"}
    assert before_each([*fp16, "engine"], pair("tensorrt"))["engine"] == "onnx"
    assert before_each([*fp16, "engine"], pair("openvino"))["engine"] == "onnx_fp32"
    assert before_each([*fp32, "engine"], pair("openvino"))["engine"] == "onnx"


def test_quality_counts_true_masks_where_there_are_some():
    truth = np.zeros((20, 40), bool)
    truth[5:15, 10:30] = True
    half = truth.copy()
    half[5:10] = False
    photo = Photo("true", PHOTO.image, (Prompt("box", box=(10, 5, 30, 15), truth=truth),))
    found = quality(reference([photo], stage("dense", truth), stage("eager", half)))
    assert (found["miou_vs_dense"], found["miou_true_dense"], found["miou_true_patched"]) == (0.5, 1.0, 0.5)
    assert found["true_masks"] == 1 and found["embedding_cosine_vs_dense"] == pytest.approx(1)
    assert quality(reference())["miou_true_dense"] is None


def test_a_validation_passes_if_every_stage_does():
    row = Comparison("eager", 0, 0, 0, 1, 1, 1, 1, None, True, {})
    bad = Comparison("onnx_raw", 0, 0, 9, 1, 1, 1, 1, 0.5, False, {"max_rel": 1})
    found = Validation(reference(), {}, {"onnx_raw": row}, {})
    assert found.passed and not Validation(reference(), {}, {"onnx_raw": row, "onnx": bad}, {}).passed
    assert row.to_dict()["decision_agreement"] is None and "ties" not in row.to_dict()


def test_a_model_that_was_freed_is_told_by_the_time_of_its_runs(tmp_path):
    folder = ExportFolder.read(folder_of(tmp_path / "mine", outer_product(4, 4)))
    nothing = np.zeros((2, 2))
    stages = {"dense": stage("dense", nothing, (0.2, 0.4)), "onnx": stage("onnx", nothing, (0.1, 0.1))}
    found = latency(Validation(reference(), stages, {}, {}), SimpleNamespace(), folder, weights_freed=True)
    assert found["dense"] == {"p50": 300.0, "p90": 380.0, "p99": 398.0, "n": 2, "interleaved": False}
    assert found["onnx"]["p50"] == 100.0
