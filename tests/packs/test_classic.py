"""Packs with SAM's classic decoder, against the model that Meta exports (`segment_anything.utils.onnx`), in PyTorch."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from pack_files import inputs_of, run, session
from tiny_model import IMAGE, OUT, PATCH

from structsam_export.runtime.images import PIXEL_MEAN, PIXEL_STD, prepare

GRID, SIDE = IMAGE // PATCH, 4 * IMAGE // PATCH
CLASSIC = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"]
PHOTOS = [(97, 128), (160, 90), (64, 64), (33, 301), (301, 33), (1, 200), (77, 128)]


def feeds_of(seed, shape, embedding=None):
    """What programs send: points or a box with the padding point, all float32."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 5))
    labels = [2, 3] if seed % 4 == 3 else list(rng.integers(0, 2, count))
    points = np.concatenate([rng.uniform(0, IMAGE, (len(labels), 2)), [[0, 0]]])
    if embedding is None:
        embedding = rng.normal(size=(1, OUT, GRID, GRID))
    return {
        "image_embeddings": np.float32(embedding),
        "point_coords": np.float32(points)[None],
        "point_labels": np.float32([[*labels, -1]]),
        "mask_input": np.float32(rng.normal(size=(1, 1, SIDE, SIDE))),
        "has_mask_input": np.float32([seed % 2]),
        "orig_im_size": np.float32(shape),
    }


def metas(sam, feeds, single):
    """Meta's own: masks, IoUs, low-resolution masks."""
    from segment_anything.utils.onnx import SamOnnxModel

    model = SamOnnxModel(sam, return_single_mask=single)
    return [t.numpy() for t in model(*(torch.as_tensor(feeds[name]) for name in CLASSIC))]


@pytest.mark.parametrize("masks", ["1", "4"])
def test_the_decoder_is_metas(masks, packed, sam):
    folder = packed("meta", masks=masks)[1]
    path = folder / "decoder.onnx"
    assert list(inputs_of(path)) == CLASSIC
    assert {kind for kind, _ in inputs_of(path).values()} == {"tensor(float)"}
    assert [o.name for o in session(path).get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    for seed, shape in enumerate([shape for shape in PHOTOS if min(shape) > 1] * 3):
        feeds = feeds_of(seed, shape)
        found = run(path, feeds)
        for (name, got), want in zip(found.items(), metas(sam, feeds, masks == "1"), strict=True):
            assert got.shape == want.shape, name
            assert abs(got - want).max() <= 1e-4 * abs(want).max(), (name, shape)


def test_a_mask_that_is_switched_off_is_not_read(packed):
    """osam sends has_mask_input -1; NaN stands for memory that nobody has filled."""
    path = packed("meta")[1] / "decoder.onnx"
    feeds = feeds_of(0, (97, 128))
    plain = run(path, {**feeds, "mask_input": np.zeros_like(feeds["mask_input"])})
    for switch in (0, -1):
        full = np.full_like(feeds["mask_input"], np.nan)
        found = run(path, {**feeds, "mask_input": full, "has_mask_input": np.float32([switch])})
        assert all((found[name] == plain[name]).all() for name in plain)
    other = run(path, {**feeds, "has_mask_input": np.float32([1])})
    assert abs(other["low_res_masks"] - plain["low_res_masks"]).max() > 1e-3


def test_several_prompts_a_call_and_sides_of_one_pixel(packed):
    path = packed("meta")[1] / "decoder.onnx"
    feeds = feeds_of(4, (1, 200))
    one = run(path, feeds)
    both = run(path, {**feeds, **{k: np.repeat(feeds[k], 2, 0) for k in ("point_coords", "point_labels")}})
    for name in one:
        assert both[name].shape[0] == 2
        np.testing.assert_allclose(both[name][1], one[name][0], atol=1e-4)
    assert one["masks"].shape == (1, 1, 1, 200)


@pytest.mark.parametrize("kind", ["plain", "merged"])
@pytest.mark.parametrize("name", ["meta", "anylabeling", "hf", "nanosam"])
def test_encoders_are_the_exports(name, kind, packed):
    """With normalising and padding in the graph where the program leaves them to it."""
    options = {"input": "hwc"} if name == "meta" else {}
    export, folder = packed(name, kind, **options)
    path = next(p for p in folder.rglob("*encoder*.onnx") if "decoder" not in p.name)
    for shape in ((97, 128), (128, 51), (128, 128)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        ready = prepare(image, IMAGE)
        want = run(export / "encoder.onnx", {"image": ready.tensor})["image_embeddings"]
        (title, (_, form)), *none = inputs_of(path).items()
        assert not none
        feed = image.astype(np.float32) if len(form) == 3 else ready.tensor
        found = run(path, {title: feed})["image_embeddings"]
        np.testing.assert_allclose(found, want, atol=2e-4 * abs(want).max())


def test_osam_finds_its_input_and_anylabeling_its_files(packed):
    assert list(inputs_of(packed("meta")[1] / "encoder.onnx")) == ["x"]
    folder = packed("anylabeling", "merged")[1]
    config = dict(line.split(": ", 1) for line in (folder / "config.yaml").read_text().splitlines())
    config = {key: json.loads(value) for key, value in config.items()}
    assert config["type"] == "segment_anything"
    assert re.fullmatch(r"[A-Za-z0-9._-]+", config["name"])
    assert config["input_size"] == IMAGE
    for part in ("encoder", "decoder"):
        assert config[f"{part}_model_path"] == f"{config['name']}.{part}.onnx"
        assert (folder / config[f"{part}_model_path"]).is_file()


def test_nanosams_decoder(packed, sam):
    path = packed("nanosam")[1] / "mask_decoder.onnx"
    assert list(inputs_of(path)) == CLASSIC[:-1]
    assert {kind for kind, _ in inputs_of(path).values()} == {"tensor(float)"}
    assert inputs_of(path)["point_labels"][1][0] == 1
    assert [o.name for o in session(path).get_outputs()] == ["iou_predictions", "low_res_masks"]
    feeds = feeds_of(2, (97, 128))
    _, ious, low = metas(sam, feeds, single=False)
    del feeds["orig_im_size"]
    found = run(path, feeds)
    np.testing.assert_allclose(found["iou_predictions"], ious, atol=1e-4)
    np.testing.assert_allclose(found["low_res_masks"], low, atol=1e-4 * abs(low).max())


@pytest.mark.parametrize("kind", ["plain", "merged"])
def test_isaac_ros_gets_sams_input_back(kind, packed):
    """The node's preprocessing in NumPy: int() sizes, black pads, then normalised; the graph undoes the pads."""
    export, folder = packed("isaac-ros", kind)
    place = folder / "models" / "triton" / "segment_anything"
    path = place / "1" / "model.onnx"
    for seed, shape in enumerate([(97, 128), (77, 200), (301, 90)]):
        scale = IMAGE / max(shape)
        h, w = (int(side * scale) for side in shape)
        pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.float32)
        canvas = np.zeros((IMAGE, IMAGE, 3), np.float32)
        canvas[:h, :w] = pixels
        mean, deviation = np.float32(PIXEL_MEAN), np.float32(PIXEL_STD)
        images = ((canvas - mean) / deviation).transpose(2, 0, 1)[None]
        sams = images.copy()
        sams[..., h:, :], sams[..., w:] = 0, 0
        embedding = run(export / "encoder.onnx", {"image": sams})["image_embeddings"]
        feeds = feeds_of(seed, shape, embedding)
        side_by_side = {k: v for k, v in feeds.items() if k not in ("image_embeddings", "orig_im_size")}
        labels = feeds["point_labels"].astype(np.int64)
        want = run(export / "decoder.onnx", {**side_by_side, "point_labels": labels, "image_embeddings": embedding})
        del feeds["image_embeddings"]
        found = run(path, {**feeds, "images": images})
        best = int(np.argmax(want["iou_predictions"][0] + (labels.shape[1] - 2.5) * np.array([1000, 0, 0, 0])))
        low = want["low_res_masks"][:, [best]]
        np.testing.assert_allclose(found["low_res_masks"], low, atol=1e-4 * abs(low).max())
        square = torch.nn.functional.interpolate(torch.as_tensor(low), (IMAGE, IMAGE), mode="bilinear")
        masks = torch.nn.functional.interpolate(square[..., :h, :w], shape, mode="bilinear").numpy()
        np.testing.assert_allclose(found["masks"], masks, atol=1e-4 * abs(low).max())


def test_isaac_ros_configuration_says_what_the_graph_has(packed):
    place = packed("isaac-ros")[1] / "models" / "triton" / "segment_anything"
    text = (place / "config.pbtxt").read_text()
    made = session(place / "1" / "model.onnx")
    assert 'platform: "onnxruntime_onnx"' in text and "max_batch_size: 0" in text
    blocks = re.findall(r'name: "(\w+)"\s+data_type: TYPE_FP32\s+dims: (\[.*?\])', text)
    tensors = {t.name: t for t in (*made.get_inputs(), *made.get_outputs())}
    assert [name for name, _ in blocks] == [*(t.name for t in made.get_inputs()), *(t.name for t in made.get_outputs())]
    for name, dims in blocks:
        shape = tensors[name].shape
        assert tensors[name].type == "tensor(float)"
        assert len(json.loads(dims)) == len(shape)
        for said, has in zip(json.loads(dims), shape):
            assert said == (has if isinstance(has, int) else -1) or said == -1
