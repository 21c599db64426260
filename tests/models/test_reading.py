"""What is read from weights, what is assumed, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_sams import SMALL, random_sam

from structsam_export.errors import CheckpointError, UsageError
from structsam_export.geometry import EncoderGeometry
from structsam_export.manifest import check_architecture
from structsam_export.models import load_model
from structsam_export.models.architecture import Architecture, DecoderGeometry, build
from structsam_export.models.demo import demo_architecture
from structsam_export.models.reading import Stated, read_architecture
from structsam_export.schema import Misfit


def sam(dim, depth, heads, mlp, globally, image=1024, window=14):
    """SAM's encoder of a size, at an image size."""
    windows = tuple(0 if i in globally else window for i in range(depth))
    return Architecture(EncoderGeometry(image, 16, (image // 16,) * 2, dim, depth, heads, mlp, 256, windows))


ARCHITECTURES = {
    "demo": demo_architecture(),
    "small": SMALL,
    "ViT-B": sam(768, 12, 12, 3072, (2, 5, 8, 11)),
    "ViT-L": sam(1024, 24, 16, 4096, (5, 11, 17, 23)),
    "ViT-H": sam(1280, 32, 16, 5120, (7, 15, 23, 31)),
    "SlimSAM-77": sam(168, 12, 12, 696, (2, 5, 8, 11)),
    "SlimSAM-50": sam(384, 12, 12, 1536, (2, 5, 8, 11)),
    "256 px": sam(768, 12, 12, 3072, (2, 5, 8, 11), 256),
    "512 px": sam(768, 12, 12, 3072, (2, 5, 8, 11), 512),
    "no biases": replace(SMALL, qkv_bias=False),
    "other decoder": replace(SMALL, decoder=DecoderGeometry(32, 3, 8, 32, 48, 6, 4, 24)),
    "patches of 8": replace(SMALL, encoder=replace(SMALL.encoder, patch_size=8, image_size=64)),
    "all global": replace(SMALL, encoder=replace(SMALL.encoder, windows=(0, 0, 0))),
}


def state_of(architecture):
    with torch.device("meta"):
        return dict(build(architecture).state_dict())


def refused(state, *words):
    with pytest.raises(CheckpointError) as caught:
        read_architecture(state, Stated(), "w.pth")
    for word in ("The architecture of w.pth cannot be read from its weights", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_was_built_is_read(name):
    assert read_architecture(state_of(ARCHITECTURES[name]), Stated(), "w.pth") == ARCHITECTURES[name]


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_what_segment_anything_builds_is_read_and_built_again(name):
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        theirs = sam_model_registry[name](checkpoint=None)
        ours = build(read_architecture(theirs.state_dict(), Stated(), "w.pth"))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert repr(ours) == repr(theirs)  # every module with its options, epsilon of each norm included


def test_an_architecture_survives_a_manifest():
    import json

    plain = json.loads(json.dumps(SMALL.to_dict()))
    check_architecture(plain)
    assert Architecture.from_dict(plain) == SMALL


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (None, "decoder", None),
        (None, "odd", 1),
        (None, "decoder_eps", "small"),
        ("decoder", "heads", 0),
        ("decoder", "odd", 1),
        ("decoder", "layers", 1000),
        ("encoder", "depth", 2),
        ("encoder", "dim", 1 << 20),
    ],
)
def test_other_architectures_in_a_manifest_are_refused(part, key, value):
    plain = SMALL.to_dict()
    (plain[part] if part else plain)[key] = value
    with pytest.raises(Misfit):
        check_architecture(plain)


def with_tables(state, lengths):
    """Relative positions of these lengths, by block."""
    for block, length in lengths.items():
        for axis in "hw":
            state[f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"] = torch.zeros(length, 14)
    return state


@pytest.mark.parametrize(
    ("lengths", "windows"),
    [
        ({0: 15, 1: 15, 2: 15}, (0, 0, 0)),  # a window as large as the grid is a global block
        ({0: 5, 1: 127, 2: 5}, (3, 0, 3)),  # positions of the global block never resized from 1024 px
        ({0: 27, 1: 127, 2: 27}, (14, 0, 14)),  # windows larger than the grid carry pads
        ({0: 5, 1: 11, 2: 5}, (3, 0, 3)),  # and never enlarged
    ],
)
def test_windows_by_relative_positions(lengths, windows):
    made = read_architecture(with_tables(state_of(SMALL), lengths), Stated(), "w.pth")
    assert made.encoder.windows == windows


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ({0: 5, 1: 5, 2: 5}, "relative positions of 3 tokens a side on a grid of 8 do not tell windows"),
        ({0: 5, 1: 15, 2: 7}, "relative positions of 3, 4, 8 tokens a side"),
        ({0: 27, 1: 15, 2: 27}, "on a grid of 8, relative positions of 8 and 14 tokens a side may be"),
        ({0: 6, 1: 15, 2: 6}, "of length 6 and 6, which no square has"),
    ],
)
def test_windows_that_cannot_be_told(lengths, words):
    refused(with_tables(state_of(SMALL), lengths), words)


def test_what_is_stated_beside_weights_decides():
    state = with_tables(state_of(SMALL), {0: 27, 1: 15, 2: 27})
    made = read_architecture(state, Stated(window=14, global_layers=(1,)), "w.pth")
    assert made.encoder.windows == (14, 0, 14)


def changed(name, shape):
    return lambda state: {**state, name: torch.empty(shape, device="meta")}


def without(name):
    return lambda state: {k: v for k, v in state.items() if name not in k}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("image_encoder.patch_embed.proj.weight", (28, 4, 16, 16)), "of 4 channels"),
        (changed("image_encoder.patch_embed.proj.weight", (28, 3, 16, 8)), "patches of 16 x 8"),
        (changed("image_encoder.pos_embed", (1, 8, 9, 28)), "on a grid of 8 x 9"),
        (changed("image_encoder.pos_embed", (1, 65, 28)), "pos_embed has shape (1, 65, 28)"),
        (changed("image_encoder.pos_embed", (1, 0, 0, 28)), "pos_embed has shape (1, 0, 0, 28)"),
        (changed("image_encoder.pos_embed", (1, 4096, 4096, 28)), "larger than 256 x 256"),
        (changed("image_encoder.blocks.2.mlp.lin1.weight", (99, 28)), "MLPs of different widths (58, 99)"),
        (changed("image_encoder.blocks.99999.x", (1,)), "they have 0, 1, 2, 99999"),
        (changed("image_encoder.blocks.999999999.x", (1,)), None),
        (changed("image_encoder.blocks.0.attn.rel_pos_h", (5, 13)), "heads of 13, 14 channels"),
        (changed("mask_decoder.mask_tokens.weight", (4, 64)), "a decoder of 64 channels"),
        (without("image_encoder.blocks.1."), "they have 0, 2"),
        (without("pos_embed"), "they have no image_encoder.pos_embed"),
        (without("mask_decoder."), "they have no mask_decoder.mask_tokens.weight"),
        (without("blocks.0.attn.rel_pos"), "only some of its blocks have relative positions"),
        (without("rel_pos"), "they do not say how many attention heads"),
    ],
)
def test_shapes_that_say_nothing_or_too_much(change, words):
    state = change(state_of(SMALL))
    if words is None:  # a number nobody would count to is no block; loading then finds a tensor too many
        assert read_architecture(state, Stated(), "w.pth") == SMALL
    else:
        refused(state, words)


# --- loading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["meta", "medsam", "half", "compiled"])
def test_loading_without_a_name(file, tmp_path):
    made = random_sam()
    state = made.state_dict()
    content = {
        "meta": state,
        "medsam": {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        "half": {k: v.half() for k, v in state.items()},
        "compiled": {"net": {f"_orig_mod.sam.{k}": v for k, v in state.items()}},
    }[file]
    torch.save(content, tmp_path / "w.pth")
    loaded = load_model("auto", tmp_path / "w.pth")
    assert (loaded.architecture, loaded.source, loaded.spec.preprocessing) == (SMALL, "meta", "sam")
    assert loaded.geometry == SMALL.encoder
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        off = (loaded.sam.image_encoder(image) - made.image_encoder(image)).abs().max()
    assert off < (0.05 if file == "half" else 1e-6)
    assert load_model("auto", tmp_path / "w.pth", preprocessing="medsam").spec.preprocessing == "medsam"


def test_positions_that_were_never_resized_compute_what_segment_anything_does(tmp_path):
    """It resizes them in every call; here that is done once."""
    made = random_sam()
    for name in ("rel_pos_h", "rel_pos_w"):
        setattr(made.image_encoder.blocks[1].attn, name, torch.nn.Parameter(torch.randn(127, 14)))
    torch.save(made.state_dict(), tmp_path / "w.pth")
    loaded, image = load_model("auto", tmp_path / "w.pth"), torch.randn(1, 3, 128, 128)
    assert loaded.geometry.windows == (3, 0, 3)
    assert loaded.sam.image_encoder.blocks[1].attn.rel_pos_h.shape == (15, 14)
    with torch.no_grad():
        assert torch.allclose(loaded.sam.image_encoder(image), made.image_encoder(image), atol=1e-5)


def test_weights_that_are_not_sam_s_are_listed(tmp_path):
    torch.save({**random_sam().state_dict(), "classifier.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model("auto", tmp_path / "w.pth")
    assert "does not fit the architecture read from it:\n  1 unexpected: classifier.weight\nPass" in str(caught.value)


def test_what_an_earlier_run_has_read_is_built_without_reading(tmp_path):
    torch.save(random_sam().state_dict(), tmp_path / "w.pth")
    recorded = replace(SMALL, decoder=replace(SMALL.decoder, heads=4))
    loaded = load_model("auto", tmp_path / "w.pth", architecture=recorded)
    assert loaded.sam.mask_decoder.transformer.num_heads == 4


def test_auto_needs_a_checkpoint():
    with pytest.raises(UsageError, match="Pass one with --checkpoint"):
        load_model("auto")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["mask_decoder.hq_token.weight"], "looks like SAM-HQ"),
        (["image_encoder.blocks.0.attn.qkv.linear_a_q.weight"], "looks like SAM with LoRA weights"),
        (["base_model.model.vision_encoder.layers.0.attn.qkv.lora_A.weight"], "looks like SAM with LoRA weights"),
        (["image_encoder.blocks.0.Adapter.channel.0.weight"], "looks like SAM with adapters"),
        (["image_encoder.trunk.blocks.0.norm1.weight"], "looks like SAM 2"),
        (["vision_encoder.backbone.patch_embed.projection.weight"], "looks like SAM 2 or SAM 3 as transformers"),
        (["image_encoder.patch_embed.seq.0.c.weight"], r"patch_embed\.seq\.0\.c\.weight has shape \(1,\)"),
        (["image_encoder.blocks.0.mlp.fc1.weight"], "looks like an encoder of EfficientSAM without its decoder"),
        (["image_encoder.backbone.stages.0.0.weight"], "looks like EdgeSAM or another model with a convolutional"),
        (["conv1.weight"], "is no Segment Anything checkpoint"),
    ],
)
def test_relatives_are_named_before_anything_is_read(names, words, tmp_path):
    own = random_sam().state_dict() if "SAM-HQ" in words or "Efficient" in words or "adapters" in words else {}
    torch.save({**own, **{name: torch.zeros(1) for name in names}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=words):
        load_model("auto", tmp_path / "w.pth")
