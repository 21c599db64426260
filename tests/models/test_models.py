from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from structsam_export import models
from structsam_export.errors import CheckpointError, UsageError
from structsam_export.models import MODELS, ModelSpec, load_model
from structsam_export.models.checkpoint import read_state_dict
from structsam_export.models.demo import build_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(path, float16 weights) of a random demo model."""
    torch.manual_seed(1)
    weights = {k: v.half() for k, v in build_demo().state_dict().items()}
    path = tmp_path_factory.mktemp("demo") / "demo.safetensors"
    save_file(weights, path)
    return path, weights


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory):
    """A full ViT-B checkpoint as MedSAM's training writes it, in a small file: every tensor repeats one value."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        shapes = {k: v.shape for k, v in sam_model_registry["vit_b"](checkpoint=None).state_dict().items()}
    path = tmp_path_factory.mktemp("vit_b") / "medsam_vit_b.pth"
    state = {f"module.{k}": torch.tensor(0.25).expand(shape) for k, shape in shapes.items()}
    torch.save({"model": state, "epoch": 3}, path)
    return path


def test_registry():
    hq = [f"sam_hq_vit_{size}" for size in "blh"]
    efficient = ["efficient_sam_ti", "efficient_sam_s"]
    assert list(MODELS) == ["demo", "demo-1024", "vit_b", "vit_l", "vit_h", "medsam", *hq, *efficient]
    own = {"medsam": "medsam", **dict.fromkeys(efficient, "efficientsam")}
    for name, spec in MODELS.items():
        assert spec.name == name
        assert spec.preprocessing == own.get(name, "sam")
        assert spec.architecture == {"medsam": "vit_b"}.get(name, name)
        official = name.startswith("vit_")
        assert [v is not None for v in (spec.url, spec.sha256, spec.bytes)] == [official] * 3
        if official:
            assert spec.url.startswith("https://") and f"sam_{name}_" in spec.url
            assert len(bytes.fromhex(spec.sha256)) == 32


def test_the_official_size_is_four_bytes_per_weight(vit_b):
    weights = sum(v.numel() for v in read_state_dict(vit_b).values())
    assert MODELS["vit_b"].bytes == pytest.approx(4 * weights, rel=1e-3)


def test_specs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODELS["demo"].url = "http://example.org"


def test_demo(demo):
    path, weights = demo
    model = load_model("demo", path)
    assert model.spec is MODELS["demo"]
    assert model.checkpoint == path
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (model.geometry.image_size, model.geometry.grid, model.geometry.dim) == (512, (32, 32), 192)
    assert model.geometry.windows == (12, 12, 0, 12, 12, 0, 12, 0)
    for name, loaded in model.sam.state_dict().items():
        assert torch.equal(loaded, weights[name].float())


def test_a_loaded_model_computes_what_a_built_one_does(demo):
    path, weights = demo
    built = build_demo().eval()
    built.load_state_dict({k: v.float() for k, v in weights.items()})
    sam = load_model("demo", path).sam
    tensors = [*sam.parameters(), *sam.buffers()]
    assert all(t.device.type == "cpu" and t.dtype == torch.float32 and not t.requires_grad for t in tensors)
    assert not any(m.training for m in sam.modules())
    image, box = torch.rand(3, 300, 512) * 255, torch.tensor([[10.0, 20.0, 200.0, 250.0]])
    with torch.no_grad():
        for got, expected in zip(_partial_forward(sam, image, box), _partial_forward(built, image, box), strict=True):
            assert torch.equal(got, expected)


def _partial_forward(sam, image, box):
    """Everything but most of the encoder's blocks, which would take seconds."""
    tokens = sam.image_encoder.blocks[0](sam.image_encoder.patch_embed(sam.preprocess(image[None])))
    embedding = sam.image_encoder.neck(tokens.permute(0, 3, 1, 2))
    sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=None)
    return embedding, *sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)


def test_the_bundled_file_is_the_default(demo, monkeypatch):
    monkeypatch.setattr(models, "_bundled", lambda: demo[0])
    assert load_model("demo").checkpoint == demo[0]


def test_missing_bundled_file(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(CheckpointError, match="Reinstall"):
        load_model("demo")


def test_medsam_training_checkpoint(vit_b):
    model = load_model("medsam", vit_b)
    assert model.spec.preprocessing == "medsam"
    assert (model.geometry.dim, model.geometry.depth) == (768, 12)
    assert model.sam.image_encoder.pos_embed[0, 3, 5, 7] == 0.25


def test_official_weights_are_fetched_and_not_hashed_again(vit_b, monkeypatch):
    def no(_):
        raise AssertionError("hashed again")

    asked = []
    monkeypatch.setattr("structsam_export.models.download.fetch", lambda spec: asked.append(spec) or vit_b)
    monkeypatch.setattr("structsam_export.models.download.sha256_of", no)
    model = load_model("vit_b")
    assert asked == [MODELS["vit_b"]]
    assert (model.checkpoint, model.sha256) == (vit_b, MODELS["vit_b"].sha256)


def test_medsam_needs_a_checkpoint():
    with pytest.raises(CheckpointError, match=r"medsam_vit_b\.pth .*--checkpoint"):
        load_model("medsam")


def test_the_wrong_model_is_told_the_right_one(vit_b):
    with pytest.raises(CheckpointError, match="pass --model vit_b"):
        load_model("demo", vit_b)


def test_unknown_model():
    with pytest.raises(UsageError) as caught:
        load_model("vitb")
    assert "Did you mean 'vit_b'?" in str(caught.value)
    for name in MODELS:
        assert name in str(caught.value)
    with pytest.raises(UsageError, match="Unknown model 'resnet'. Known"):
        load_model("resnet")


def test_import_is_light():
    code = "import sys, structsam_export.models; print({'torch', 'segment_anything', 'safetensors'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_spec_defaults():
    spec = ModelSpec("x", "X", "demo", "sam")
    assert (spec.url, spec.sha256, spec.bytes) == (None, None, None)
