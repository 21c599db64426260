"""Checkpoints of Hugging Face: masks are those of transformers, whatever the files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hf_models import DECODER, PROMPTS, VISION, hf_sam, masks_of_hf, masks_of_sam
from safetensors.torch import load_file, save_file

from structsam_export.errors import CheckpointError
from structsam_export.models import load_model
from structsam_export.models.sources import source

IMAGE = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
POINTS, LABELS = torch.tensor([[70.0, 90.0], [30.0, 50.0]]), torch.tensor([1, 0])


@pytest.fixture(scope="module")
def hf():
    return hf_sam()


@pytest.fixture(scope="module")
def saved(hf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "slim"
    hf.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to change."""
    return shutil.copytree(saved, tmp_path / "slim")


def assert_same_masks(loaded, hf, tolerance=1e-4):
    theirs, ours = masks_of_hf(hf, IMAGE, POINTS, LABELS), masks_of_sam(loaded.sam, IMAGE, POINTS, LABELS)
    for a, b in zip(theirs, ours, strict=True):
        assert (a - b).abs().max() < tolerance * a.abs().max()


def change(path, **values):
    data = json.loads(path.read_text())
    for key, value in values.items():
        part, _, name = key.rpartition("__")
        (data[part] if part else data)[name] = value
    path.write_text(json.dumps(data))


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        load_model("auto", path)
    for word in words:
        assert word in str(caught.value)


def test_masks_are_those_of_transformers(saved, hf):
    loaded = load_model("auto", saved)
    assert loaded.source == "huggingface"
    e = loaded.geometry
    assert (e.image_size, e.grid, e.dim, e.heads, e.head_dim, e.mlp_dim) == (128, (8, 8), 28, 2, 14, 58)
    assert e.windows == (3, 0, 3)
    assert_same_masks(loaded, hf, 1e-5)


def test_the_epsilon_of_transformers_is_kept(saved, hf):
    """Meta's 1e-5 would move masks further than any rounding: that is what the choice is about."""
    from structsam_export.models.architecture import with_decoder_eps

    loaded = load_model("auto", saved)
    assert (loaded.architecture.decoder_eps, loaded.architecture.encoder_eps) == (1e-6, 1e-6)
    theirs = masks_of_hf(hf, IMAGE, POINTS, LABELS)[0]
    near = (masks_of_sam(loaded.sam, IMAGE, POINTS, LABELS)[0] - theirs).abs().max()
    meta = with_decoder_eps(loaded.sam, 1e-5)
    assert (masks_of_sam(meta, IMAGE, POINTS, LABELS)[0] - theirs).abs().max() > 3 * near


def test_every_name_is_mapped_and_none_twice(hf):
    huggingface, state = source("huggingface"), hf.state_dict()
    names = huggingface.renamed(state, "x")
    assert len(names) == len(state) - 1  # the two names of one tensor
    assert not [name for name in names if "layer_norm" in name or "vision" in name or "proj_in" in name]


@pytest.mark.parametrize("kind", ["file", "sharded", "index", "bin", "half", "bfloat16", "no config", "other name"])
def test_files_as_people_have_them(kind, hf, folder):
    path, model, tolerance = folder, hf, 1e-4
    if kind == "file":
        path = folder / "model.safetensors"
    elif kind in ("sharded", "index"):
        (folder / "model.safetensors").unlink()
        hf.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("*-of-*.safetensors"))) > 1
        path = folder / "model.safetensors.index.json" if kind == "index" else folder
    elif kind == "bin":
        torch.save(hf.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif kind in ("half", "bfloat16"):
        dtype = getattr(torch, {"half": "float16"}.get(kind, kind))
        state = {k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}
        save_file(state, folder / "model.safetensors")
        model = hf_sam()
        model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
        twin = model.prompt_encoder.shared_embedding.positional_embedding
        twin.copy_(model.shared_image_embedding.positional_embedding)
    elif kind == "no config":
        (folder / "config.json").unlink()
    else:
        (folder / "model.safetensors").rename(folder / "sam.fp32.safetensors")
    assert_same_masks(load_model("auto", path), model, tolerance)


def test_wrappers_and_prefixes(hf, tmp_path):
    state = {f"module.model.{k}": v for k, v in hf.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    assert_same_masks(load_model("auto", tmp_path / "w.pth"), hf)


@pytest.mark.parametrize("kept", ["shared_image_embedding", "prompt_encoder.shared_embedding"])
def test_either_name_of_the_position_encoding(kept, hf, tmp_path):
    state = {k: v for k, v in hf.state_dict().items() if "positional_embedding" not in k or k.startswith(kept)}
    torch.save(state, tmp_path / "w.pth")
    assert_same_masks(load_model("auto", tmp_path / "w.pth"), hf)


def test_two_different_position_encodings_are_refused(hf, tmp_path):
    state = dict(hf.state_dict())
    state["shared_image_embedding.positional_embedding"] = state["shared_image_embedding.positional_embedding"] + 1
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "two different tensors for prompt_encoder.pe_layer", "save it again")


def test_a_folder_and_the_file_in_it_are_one_checkpoint(saved):
    assert load_model("auto", saved).sha256 == load_model("auto", saved / "model.safetensors").sha256


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vision_config__image_size": 256}, ["two image sizes: 256 in vision_config and 128"]),
        ({"vision_config__num_attention_heads": 4}, ["says 4 for the number of attention heads, the weights have 2"]),
        ({"vision_config__window_size": 5}, ["says 5 for the side of block 0's attention, the weights have 3"]),
        ({"vision_config__global_attn_indexes": [0]}, ["says 8 for the side of block 0's attention"]),
        ({"vision_config__hidden_act": "relu"}, ["asks for 'relu' in vision_config; SAM has 'gelu'"]),
        (
            {"mask_decoder_config__num_attention_heads": 3},
            ["a decoder of 32 channels, 16 in its cross"],
        ),
        ({"mask_decoder_config__layer_norm_eps": -1.0}, ["config.json cannot be used", "layer_norm_eps"]),
        ({"model_type": "sam2"}, ["a model of type 'sam2', not 'sam'"]),
        ({"vision_config": [1]}, ["config.json cannot be used", "a list of 1"]),
    ],
)
def test_what_config_says_otherwise_is_refused(values, words, folder):
    change(folder / "config.json", **values)
    refused(folder, *words)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_config(content, folder):
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json cannot be read as JSON")


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_another_normalisation_is_refused(name, folder):
    usual = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    for inner, right in ((usual, True), ({**usual, "image_mean": [0.5] * 3}, False), ({"image_std": "no"}, False)):
        wrapped = {"image_processor": inner} if name.startswith("processor") else inner
        (folder / name).write_text(json.dumps(wrapped))
        if right:
            assert load_model("auto", folder).source == "huggingface"
        else:
            refused(folder, name, "other input normalisations are not supported")


def test_without_relative_positions_config_says_what_is_missing(tmp_path):
    """Heads and windows are in no tensor then, but in config.json."""
    model = hf_sam({**VISION, "use_rel_pos": False}, PROMPTS, DECODER)
    model.save_pretrained(tmp_path)
    loaded = load_model("auto", tmp_path)
    assert (loaded.geometry.windows, loaded.geometry.heads, loaded.architecture.positions) == ((3, 0, 3), 2, False)
    assert_same_masks(loaded, model)
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "without relative positions they do not say how many attention heads")
