"""SAM-HQ against its own package: weights, encoder, decoder and predictor; then through the command."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from small_exports import half_on_openvino

from structsam_export.errors import CheckpointError, MissingRuntimeError, UsageError
from structsam_export.geometry import EncoderGeometry
from structsam_export.hosts import host_of
from structsam_export.methods import make_method
from structsam_export.models import load_model
from structsam_export.models.architecture import Architecture, DecoderGeometry
from structsam_export.models.families import FAMILIES, family, family_of
from structsam_export.patch import patched, recording
from structsam_export.pipeline import build_folder
from structsam_export.runtime.images import prepare

package = pytest.importorskip("segment_anything_hq", reason="SAM-HQ's package is an extra")

# 128 px, windows of 3, block 1 of three global, heads of 14 channels.
TINY = Architecture(
    EncoderGeometry(128, 16, (8, 8), 28, 3, 2, 58, 32, (3, 0, 3)),
    DecoderGeometry(inner_dim=16, mlp_dim=64, iou_dim=32),
    family="sam-hq",
)


def random_weights(seed=0):
    torch.manual_seed(seed)
    made = family("sam-hq").build(TINY)
    for name, p in made.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(p, std=0.2)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "sam_hq_tiny.pth"
    torch.save(random_weights().state_dict(), path)
    return path


def published(checkpoint):
    """The package's own predictor on the same weights, built of its classes alone."""
    from functools import partial

    from segment_anything_hq.modeling import ImageEncoderViT, MaskDecoderHQ, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(
        img_size=128,
        patch_size=16,
        embed_dim=28,
        depth=3,
        num_heads=2,
        mlp_ratio=58.5 / 28,
        out_chans=32,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=3,
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=8)
    decoder = MaskDecoderHQ(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32, vit_dim=28)
    sam = Sam(encoder, PromptEncoder(32, (8, 8), (128, 128), 16), decoder)
    sam.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)
    return package.SamPredictor(sam.eval())


def photo():
    rng = np.random.default_rng(0)
    return np.asarray(Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((120, 90), 2))


PROMPTS = {
    "point": {"point_coords": np.array([[40.0, 30.0]]), "point_labels": np.array([1])},
    "points": {"point_coords": np.array([[40.0, 30.0], [90.0, 60.0]]), "point_labels": np.array([1, 0])},
    "box": {"box": np.array([10.0, 20.0, 100.0, 80.0])},
    "box and mask": {
        "box": np.array([10.0, 20.0, 100.0, 80.0]),
        "mask_input": np.random.default_rng(1).normal(size=(1, 32, 32)).astype(np.float32),
    },
}


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_weights_are_the_packages_by_name_and_shape(size):
    from structsam_export.models import ARCHITECTURES, MODELS

    with torch.device("meta"):
        theirs = package.sam_model_registry[f"vit_{size}"]().state_dict()
        module, function = ARCHITECTURES[MODELS[f"sam_hq_vit_{size}"].architecture].split(":")
        ours = getattr(import_module(module), function)().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert family_of(theirs).NAME == "sam-hq"


def test_the_architecture_is_read_from_the_weights(checkpoint):
    loaded = load_model("auto", checkpoint)
    assert loaded.architecture == TINY and loaded.spec.title.startswith("SAM-HQ, 128 px, 28 wide")
    assert type(loaded.sam.image_encoder).__name__ == "HQImageEncoder"
    assert Architecture.from_dict(TINY.to_dict()) == TINY


def test_families_are_told_apart():
    assert set(FAMILIES) >= {"sam-hq", "sam"}
    assert family_of(["image_encoder.pos_embed"]).NAME == "sam"
    light = ["mask_decoder.hf_token.weight", "image_encoder.layers.0.x"]  # Light HQ-SAM's TinyViT
    assert family_of(light).NAME == "sam"
    with pytest.raises(UsageError, match="Unknown family 'sam-hp'.*sam-hq"):
        family("sam-hp")


def test_a_sam_of_that_size_says_what_the_weights_are(tmp_path):
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in package.sam_model_registry["vit_b"]().state_dict().items()}
    path = tmp_path / "hq.pth"
    torch.save({k: torch.tensor(0.25).expand(shape) for k, shape in shapes.items()}, path)
    with pytest.raises(CheckpointError, match="SAM-HQ. Leave --model away .*--model sam_hq_vit_b"):
        load_model("vit_b", path)


def test_without_the_package_it_says_what_to_install(monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "segment_anything_hq.modeling", None)
    with pytest.raises(MissingRuntimeError, match=r"pip install 'structsam-export\[hq\]'"):
        load_model("auto", checkpoint)


def test_the_encoder_is_the_packages_to_the_bit(checkpoint):
    ours, theirs = load_model("auto", checkpoint).sam, published(checkpoint)
    theirs.set_image(photo())
    found = ours.image_encoder(torch.as_tensor(prepare(photo(), 128).tensor))
    with patched(ours.image_encoder, make_method("structsam", 0.0), range(3)):
        again = ours.image_encoder(torch.as_tensor(prepare(photo(), 128).tensor))
    for made in (found, again):
        assert torch.allclose(made[0], theirs.features, atol=1e-6)
        assert torch.allclose(made[1], theirs.interm_features[0], atol=1e-6)
    assert len(theirs.interm_features) == 1  # one global block


@pytest.mark.parametrize("only", [False, True], ids=["added to SAM's", "its own mask alone"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_decoder_for_export_gives_the_packages_masks(checkpoint, prompt, only):
    """Its one mask of either kind: the first, or that of the other three with the largest guess."""
    from structsam_export.runtime.prompts import prompt_batch, prompt_of_photo
    from structsam_export.runtime.transforms import transform_of

    theirs = published(checkpoint)
    theirs.set_image(photo())
    arrays = prompt_of_photo(transform_of("sam", 128), photo().shape[:2], *map(PROMPTS[prompt].get, PARTS))
    batch = prompt_batch(*arrays, (32, 32), with_region=False)
    masks = np.zeros((1, 1, 32, 32), np.float32) if batch.masks is None else batch.masks
    model = load_model("auto", checkpoint).sam
    module = host_of(model.image_encoder).decoder_for_export(model).module
    feed = (batch.coords, batch.labels, masks, np.full(1, batch.masks is not None, np.float32))
    tensors = [torch.as_tensor(value) for value in feed]
    found = module(theirs.features, *tensors, theirs.interm_features[0], torch.full((1,), float(only)))
    logits, guesses = (value.detach().numpy()[0] for value in found)
    for several in (False, True):
        _, guess, want = theirs.predict(**PROMPTS[prompt], multimask_output=several, hq_token_only=only)
        place = 1 + guesses[1:].argmax() if several else 0
        np.testing.assert_allclose(logits[place], want[0], atol=2e-5)
        np.testing.assert_allclose(guesses[place], guess[0], atol=1e-5)


PARTS = ("point_coords", "point_labels", "box", "mask_input")


def test_early_tokens_of_a_smaller_grid_come_back_to_the_image(checkpoint):
    """CubistMerge from block 0 on: block 1, whose tokens the decoder reads, runs on a smaller grid."""
    encoder = load_model("auto", checkpoint).sam.image_encoder
    seen = []
    encoder.blocks[1].register_forward_hook(lambda module, given, made: seen.append(made))
    with patched(encoder, make_method("cubist", 0.5), range(3)), recording(encoder) as decisions:
        _, early = encoder(torch.as_tensor(prepare(photo(), 128).tensor))
    small, slot = seen[0], decisions["grid.0"].plan.slot()[0]
    assert small.shape[1] < 8 and early.shape == (1, 8, 8, 28)
    assert torch.equal(early.flatten(1, 2)[0], small.flatten(1, 2)[0][slot])


@pytest.fixture(scope="module")
def export(checkpoint, tmp_path_factory):
    """FP16, merged, with OpenVINO's engines where it is installed: folder and report."""
    return half_on_openvino(checkpoint, photo(), tmp_path_factory.mktemp("hq"))


def test_an_fp16_export_passes_and_runs(export):
    from structsam_export.graphs import load

    report, folder = export
    assert report["passed"] and set(report["parity"]) >= {"onnx_raw", "onnx_fp32", "onnx", "engine"}
    graph = load(folder / "encoder.onnx").graph
    assert [o.name for o in graph.output] == ["image_embeddings", "interm_embeddings"]
    assert [i.name for i in load(folder / "decoder.onnx").graph.input][-2:] == ["interm_embeddings", "hq_token_only"]


def test_engines_for_gpus_are_built(export, tmp_path):
    """Both embeddings leave the encoder's engine; no GPU is needed to build it."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx")
    folder = build_folder(shutil.copytree(export[1], tmp_path / "copy"), "tensorrt-rtx", "sm89")
    made = [engine for engine in folder.manifest.engines if engine.backend == "tensorrt-rtx"]
    assert {engine.part for engine in made} == {"encoder", "decoder"}
    assert all((folder.path / engine.file).stat().st_size == engine.bytes > 100_000 for engine in made)


def test_the_predictor_gives_the_packages_masks(export, checkpoint):
    from structsam_export.runtime import Predictor

    theirs, (_, folder) = published(checkpoint), export
    with Predictor(folder, "eager") as ours:
        ours.set_image(photo())
        theirs.set_image(photo())
        theirs.features = torch.as_tensor(ours.features)
        theirs.interm_features = [torch.as_tensor(ours.interm_features)]
        for prompt in PROMPTS.values():
            for only in (False, True):
                want = theirs.predict(**prompt, multimask_output=False, hq_token_only=only)
                found = ours.predict(**prompt, multimask_output=False, hq_token_only=only)
                np.testing.assert_allclose(found[2], want[2], atol=2e-5)
    with Predictor(folder, "onnxruntime") as files:
        files.set_image(photo())
        alone = files.predict(**PROMPTS["box"], multimask_output=False, hq_token_only=True)[2]
        both = files.predict(**PROMPTS["box"], multimask_output=False)[2]
        assert np.abs(alone - both).max() > 1e-3
        assert files.interm_features.shape == (1, 8, 8, 28)


@pytest.mark.parametrize("pack", ["meta", "hf", "nanosam", "anylabeling", "isaac-ros", "triton", "jetson"])
def test_packs_refuse_what_their_programs_cannot_carry(export, pack):
    from dataclasses import replace

    from structsam_export.packs import pack_class
    from structsam_export.packs.base import Source

    cls, source = pack_class(pack), Source.read(export[1])
    made = cls({name: option.choices[0] for name, option in cls.OPTIONS.items()})
    # Of the size that the program takes, so that nothing else is refused.
    assert "interm_embeddings besides" in made.refusal(
        replace(source, geometry=replace(source.geometry, image_size=1024))
    )


class Scene:
    """A sample in memory: one mask of the photo."""

    name, group = "scene", ""

    def image(self):
        return photo()

    def alpha(self):
        grey = np.zeros((1, 90, 120), np.uint8)
        grey[0, 20:70, 30:100] = 255
        return grey

    def digest(self):
        return self.name


def test_the_protocol_of_sam_hq_gives_the_packages_iou(checkpoint):
    from torch.nn import functional as F

    from structsam_export.config import ExportConfig
    from structsam_export.evaluate import evaluate
    from structsam_export.evaluate.predictors import eager_predictors
    from structsam_export.job import Job

    job = Job.prepare(ExportConfig(checkpoint=str(checkpoint), method="none"))
    found = evaluate([Scene()], eager_predictors(job), protocol="samhq").images[0]["scores"]["dense"]["iou"]
    image, label = torch.tensor(photo()).permute(2, 0, 1)[None].float(), torch.tensor(Scene().alpha())[None].float()
    image, shown = (F.interpolate(x, (128, 128), mode="bilinear") for x in (image, label))
    rows, columns = torch.where(shown[0, 0] > 128)
    box = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()]).float()[None]
    request = {"image": image[0].to(torch.uint8).float(), "boxes": box, "original_size": (128, 128)}
    with torch.no_grad():
        drawn = published(checkpoint).model([request], multimask_output=False)[0]["masks"].float()
    drawn = F.interpolate(drawn, (90, 120), mode="bilinear")[0, 0] > 0
    truth = label[0, 0] > 128
    assert 0 < found == pytest.approx(float((drawn & truth).sum() / (drawn | truth).sum()), abs=1e-6)


def test_macs_are_sparsesams_table():
    """SAM-HQ's ViT-L is SAM's: 1487.9 GMACs in SparseSAM's repository, without relative positions and norms.

    Gains at densities .25 to .7, attention and MLP, are counts of that repository's rules.
    """
    from structsam_export.config import ExportConfig
    from structsam_export.geometry import GEOMETRIES
    from structsam_export.macs import paper_macs, scheduled_macs
    from structsam_export.schedule import resolve

    geometry = GEOMETRIES["vit_l"]
    dense, T, d = paper_macs(geometry), 4096, 64
    relative = 20 * 25 * 16 * 196 * 28 * d + 4 * 16 * T * 128 * d
    assert round((dense - relative - 24 * 10 * T * 1024) / 1e9, 1) == 1487.9
    for density, gain in ((0.25, 1.51), (0.3, 1.46), (0.4, 1.37), (0.5, 1.28), (0.7, 1.15)):
        config = ExportConfig(method="sparsesam", rate=1 - density, mlp="residual-consistency", mlp_density=density)
        assert dense / scheduled_macs(geometry, resolve(config, geometry)) == pytest.approx(gain, abs=0.006)
