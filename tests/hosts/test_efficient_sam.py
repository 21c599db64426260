"""EfficientSAM: names and shapes of its checkpoints, numbers that its own code gave, and exports."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import published_efficient as published
import pytest
import torch
from small_exports import half_on_openvino

from structsam_export.errors import CheckpointError, PromptError
from structsam_export.hosts import host_of
from structsam_export.macs import paper_macs
from structsam_export.manifest import check_architecture
from structsam_export.models import ARCHITECTURES, MODELS, load_model
from structsam_export.models.architecture import Architecture
from structsam_export.models.sources import source_of
from structsam_export.runtime.images import prepare

# What the published code (d525f62) gave for `published.weights(**TINY)` and `published.photo()`: the embedding at
# [0, ::8, 3, 5] and [0, ::8, 12, 9]; by prompt its three guesses, and its three logits at [20, 31] and [50, 7].
EMBEDDING = (-0.952767, 0.697473, -0.228434, 2.538820), (-0.046323, 0.193504, -0.656637, 2.493437)
PROMPTS = {
    "point": (
        {"point_coords": np.array([[70.0, 40.0]]), "point_labels": np.array([1])},
        (-1.576590, -1.473718, -0.186972),
        (0.888525, 0.357658, 0.082477),
        (-0.843378, 1.185749, 0.938422),
    ),
    "box": (
        {"box": np.array([44.0, 14.0, 96.0, 66.0])},
        (-0.650945, 0.350615, 0.235397),
        (1.049084, 0.185063, -0.405286),
        (-0.070140, 1.651774, 0.285654),
    ),
    "points": (
        {"point_coords": np.array([[70.0, 40.0], [60.0, 50.0], [10.0, 10.0]]), "point_labels": np.array([1, 1, 0])},
        (-1.940054, -2.057337, -1.035097),
        (1.201672, 0.175762, -0.054552),
        (-1.436679, 0.948728, 2.333098),
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As its authors save it."""
    path = tmp_path_factory.mktemp("efficient") / "w.pt"
    torch.save({"model": published.weights(**published.TINY)}, path)
    return path


@pytest.mark.parametrize(("size", "width"), [("ti", 192), ("s", 384)])
def test_published_names_and_shapes_are_those_of_the_models(size, width, tmp_path):
    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape in published.shapes(width).items()}
        module, function = ARCHITECTURES[MODELS[f"efficient_sam_{size}"].architecture].split(":")
        ours = getattr(import_module(module), function)()
    found = source_of(theirs).renamed(theirs, tmp_path)
    assert found["image_encoder.pos_embed"].shape == (1, 14, 14, width)
    want = {**{k: v.shape for k, v in ours.state_dict().items()}, "image_encoder.pos_embed": (1, 14, 14, width)}
    assert {k: v.shape for k, v in found.items()} == want
    geometry = host_of(ours.image_encoder).geometry(ours.image_encoder)
    assert (geometry.heads, geometry.depth, geometry.mlp_dim) == (width // 64, 12, 4 * width)
    assert geometry.grid == (64, 64) and not any(geometry.windows)


def test_the_architecture_is_read_from_the_weights(checkpoint):
    loaded = load_model("auto", checkpoint)
    assert (loaded.source, loaded.spec.preprocessing) == ("efficient_sam", "efficientsam")
    assert loaded.spec.title.startswith("EfficientSAM, 1024 px, 128 wide, 3 blocks (global: 0, 1, 2;")
    assert type(loaded.sam.image_encoder).__name__ == "EfficientSamViT"
    stored = json.loads(json.dumps(loaded.architecture.to_dict()))
    check_architecture(stored)
    assert Architecture.from_dict(stored) == loaded.architecture
    assert stored["decoder"]["mask_channels"] == 0


def test_other_models_say_what_the_weights_are(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="EfficientSAM. Leave --model away .*--model efficient_sam_ti"):
        load_model("demo", checkpoint)
    encoder = {k: v for k, v in published.weights(**published.TINY).items() if k.startswith("image_encoder.")}
    torch.save(encoder, tmp_path / "encoder.pt")
    with pytest.raises(CheckpointError, match="EfficientSAM without its decoder"):
        load_model("auto", tmp_path / "encoder.pt")
    cut = {k: v for k, v in published.weights(**published.TINY).items() if "top_left" not in k}
    torch.save(cut, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match="1 missing: prompt_encoder.bbox_top_left_embeddings.weight"):
        load_model("auto", tmp_path / "cut.pt")


def test_photos_are_interpolated_as_pytorch_does():
    photo = published.photo()
    mean, deviation = ([[[v]] for v in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = torch.tensor(photo).permute(2, 0, 1)[None] / 255
    for size in (64, 1024):  # smaller and larger than the photo
        want = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
        found = prepare(photo, size, "efficientsam")
        assert np.abs(found.tensor - ((want - torch.tensor(mean)) / torch.tensor(deviation)).numpy()).max() < 1e-5
        assert found.resized == (size, size) and found.scale == (size / 120, size / 90)


def test_macs_are_what_pytorch_counts_and_layer_norms(checkpoint):
    """No relative positions: they cost SAM's blocks multiply-adds, and these blocks have none."""
    from torch.utils.flop_counter import FlopCounterMode

    loaded = load_model("auto", checkpoint)
    g = loaded.geometry
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        loaded.sam.image_encoder(torch.zeros(1, 3, g.image_size, g.image_size))
    assert not g.positions
    assert paper_macs(g) == counted.get_total_flops() // 2 + g.depth * 10 * g.tokens_global * g.dim


@pytest.fixture(scope="module")
def export(checkpoint, tmp_path_factory):
    """FP16, merged in every block, on OpenVINO as well: folder and report."""
    pytest.importorskip("openvino")
    return half_on_openvino(checkpoint, published.photo(), tmp_path_factory.mktemp("efficient"))


def test_every_stage_of_an_export_computes_the_same(export):
    """Masks of random weights are noise about the threshold: of FP16's, which lose 1 %, the embedding is judged."""
    from structsam_export.graphs import load

    report, folder = export
    parity = report["parity"]
    assert all(parity[stage]["passed"] for stage in ("onnx_raw", "onnx_fp32", "engine"))
    assert parity["onnx"]["max_rel"] < 5e-3 and parity["onnx"]["decision_agreement"] == 1
    assert [i.name for i in load(folder / "decoder.onnx").graph.input] == [
        *("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"),
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"]["prompts"] == {"points": 6, "masks": False}
    assert report["macs"]["paper"] < report["macs"]["dense"]


def test_encoder_and_decoder_give_the_published_codes_numbers(checkpoint, export):
    """The encoder without merging, and on its embedding the exported decoder."""
    from structsam_export.runtime import Predictor

    encoder = load_model("auto", checkpoint).sam.image_encoder
    dense = encoder(torch.as_tensor(prepare(published.photo(), 1024, "efficientsam").tensor)).numpy()
    np.testing.assert_allclose(dense[0, ::8, 3, 5], EMBEDDING[0], atol=1e-4)
    np.testing.assert_allclose(dense[0, ::8, 12, 9], EMBEDDING[1], atol=1e-4)
    with Predictor(export[1], "onnxruntime") as predictor:
        image = replace(predictor.embed([published.photo()])[0], features=dense)
        for prompt, guesses, *places in PROMPTS.values():
            _, scores, logits = predictor.predict(**prompt, multimask_output=True, embedding=image)
            np.testing.assert_allclose(scores, guesses, atol=1e-4)
            np.testing.assert_allclose(logits[:, 20, 31], places[0], atol=1e-4)
            np.testing.assert_allclose(logits[:, 50, 7], places[1], atol=1e-4)
            _, score, best = predictor.predict(**prompt, multimask_output=False, embedding=image)
            assert score[0] == scores.max() and np.array_equal(best[0], logits[scores.argmax()])


def test_prompts_that_would_be_cut_are_refused(export):
    from structsam_export.runtime import Predictor

    with Predictor(export[1], "onnxruntime") as predictor:
        predictor.set_image(published.photo())
        six = np.arange(12.0).reshape(6, 2)
        labels = np.ones(6)
        assert np.isfinite(predictor.predict(six, labels)[2]).all()
        with pytest.raises(PromptError, match="up to 6 points a prompt, a box being two of them, not 8"):
            predictor.predict(six, labels, box=np.array([1.0, 2.0, 30.0, 40.0]))
        with pytest.raises(PromptError, match="no mask as a prompt"):
            predictor.predict(six, labels, mask_input=np.zeros((1, 64, 64), np.float32))


@pytest.mark.parametrize("pack", ["meta", "nanosam", "triton"])
def test_packs_refuse_it_for_its_preprocessing(export, pack):
    from structsam_export.packs import pack_class
    from structsam_export.packs.base import Source

    cls, source = pack_class(pack), Source.read(export[1])
    # As if its gates had been passed, so that nothing else is refused.
    source.folder.manifest.results = replace(source.folder.manifest.results, passed=True)
    made = cls({name: option.choices[0] for name, option in cls.OPTIONS.items()})
    assert "this model's are efficientsam" in made.refusal(source)
