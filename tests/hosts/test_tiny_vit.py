"""TinyViT encoders: compared with timm's TinyViT, counted, refused to methods, and exported by the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_sams import STAGES, STRIDED, architecture, tiny_sam, tiny_vit

from structsam_export.errors import CheckpointError, UsageError
from structsam_export.hosts import check_method, geometry_of, host_of
from structsam_export.macs import graph_macs, paper_macs
from structsam_export.manifest import check_architecture
from structsam_export.methods import METHODS, make_method
from structsam_export.models import load_model
from structsam_export.models.architecture import Architecture
from structsam_export.patch import apply_patch
from structsam_export.schema import Misfit
from structsam_export.stages import TinyStages
from structsam_export.trace import trace_encoder

# Of MobileSAM and LiteMedSAM.
PUBLISHED = TinyStages(3, (64, 128, 160, 320), (2, 2, 6, 2), (0, 4, 5, 10), (0, 7, 14, 7))


def timm_name(name):
    """timm's name of one of our encoder's tensors."""
    name = re.sub(r"^patch_embed\.seq\.(\d)\.", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}.", name)
    name = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name)
    return re.sub(r"\.c\.", ".conv.", re.sub(r"^layers\.", "stages.", name))


def test_stages_are_timms_but_for_the_last_stride():
    timm = pytest.importorskip("timm.models.tiny_vit")
    ours = tiny_vit(STRIDED, image=224)
    theirs = timm.TinyVit(
        embed_dims=STRIDED.dims,
        depths=STRIDED.depths,
        num_heads=(1, *STRIDED.heads[1:]),
        window_sizes=(7, *STRIDED.windows[1:]),
        num_classes=0,
    ).eval()
    theirs.stages[3].downsample.conv2.conv.stride = (1, 1)  # MobileSAM's change
    state = {timm_name(k): v for k, v in ours.state_dict().items() if not k.startswith("neck.")}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("num_batches_tracked" in k or k.startswith("head.") for k in missing)
    x = torch.randn(2, 3, 224, 224)
    seen = {}
    ours.neck.register_forward_pre_hook(lambda _, given: seen.update(stages=given[0]))
    with torch.no_grad():
        ours(x)
        want = theirs.forward_features(x)
    assert want.shape == seen["stages"].shape == (2, 24, 14, 14)  # windows of 7, and 14 in one; 28 in the first
    assert torch.allclose(seen["stages"], want, atol=1e-5 * float(want.abs().max()))


def test_grids_that_windows_do_not_divide_are_timms_too():
    timm = pytest.importorskip("timm.models.tiny_vit")
    ours = tiny_vit().layers[2].blocks[0]
    theirs = timm.TinyVitBlock(16, 2, window_size=14).eval()
    theirs.load_state_dict({k.replace(".c.", ".conv."): v for k, v in ours.state_dict().items()}, strict=False)
    x = torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        want = theirs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.allclose(ours(x), want, atol=1e-5)


@pytest.mark.parametrize("stages", [STAGES, STRIDED], ids=["LiteMedSAM", "MobileSAM"])
def test_geometry_is_read_from_the_module(stages):
    encoder = tiny_vit(stages, 16 * stages.patch_size)
    geometry = geometry_of(encoder)
    assert geometry == stages.geometry(16 * stages.patch_size, 32)
    assert encoder(torch.zeros(1, 3, geometry.image_size, geometry.image_size)).shape == (1, 32, *geometry.grid)
    assert host_of(encoder).blocks(encoder) == [] and geometry.depth == 0


def test_every_method_is_refused_with_the_share_it_could_save():
    encoder = tiny_vit()
    for method in METHODS:
        if method != "none":
            with pytest.raises(UsageError, match=r"TinyViT: .*convolution.* 7 % of .*--method none"):
                check_method(encoder, method)
            with pytest.raises(UsageError, match="TinyViT has a convolution"):
                apply_patch(encoder, make_method(method, 0.5), [0])
    lite = replace(PUBLISHED, stem=1)
    scores = sum(n * lite.scores(side, i) for i, (n, side) in enumerate(zip(lite.depths, (256, 128, 64, 64))) if i)
    assert round(100 * scores / lite.macs(256, 256)) == 7


def test_macs_are_those_of_the_traced_graph(tmp_path):
    encoder = tiny_vit()
    path = tmp_path / "encoder.onnx"
    trace_encoder(encoder, 64, path)
    assert graph_macs(path) == paper_macs(geometry_of(encoder)) == STAGES.macs(64, 32)


# --- checkpoints ------------------------------------------------------------------------------------------------


def saved(path, stages=STAGES, **extra):
    """A checkpoint as these projects save it: counters of training, and MobileSAM's classifier, among the weights."""
    state = tiny_sam(stages).state_dict()
    counters = {k.replace("running_var", "num_batches_tracked"): torch.tensor(7) for k in state if "running_var" in k}
    head = {"image_encoder.norm_head.weight": torch.zeros(24), "image_encoder.head.weight": torch.zeros(10, 24)}
    torch.save({**state, **counters, **(head if stages.stem == 3 else {}), **extra}, path)
    return path


@pytest.mark.parametrize(
    ("stages", "size", "preprocessing"), [(STAGES, 256, "litemedsam"), (STRIDED, 1024, "sam")], ids=["Lite", "Mobile"]
)
def test_checkpoints_are_recognised(stages, size, preprocessing, tmp_path):
    loaded = load_model("auto", saved(tmp_path / "w.pth", stages))
    assert (loaded.source, loaded.spec.preprocessing) == ("tiny_vit", preprocessing)
    assert loaded.geometry.image_size == size and loaded.geometry.grid == (64, 64)
    assert loaded.architecture == architecture(stages)
    assert "TinyViT, 8, 16, 16, 24 wide, 5 blocks" in loaded.spec.title
    want = tiny_sam(stages).state_dict()
    assert all(torch.equal(v, want[k]) for k, v in loaded.sam.state_dict().items())
    as_stored = json.loads(json.dumps(loaded.architecture.to_dict()))
    check_architecture(as_stored)
    assert Architecture.from_dict(as_stored) == loaded.architecture


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_encoder.layers.2.blocks.0.attn.attention_biases": torch.zeros(2, 195)}, "195 distances and 2 heads"),
        ({"image_encoder.layers.2.blocks.0.attn.attention_biases": torch.zeros(3, 196)}, "3 heads of 16 channels"),
        ({"image_encoder.layers.4.blocks.0.attn.norm.weight": torch.zeros(1)}, "5 stages where"),
        ({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(4, 3, 2, 2)}, "2 x 2 over 3 channels"),
        ({"image_encoder.layers.1.blocks.0.mlp.fc1.weight": torch.zeros(48, 16)}, "does not fit the architecture read"),
        ({"image_encoder.neck.1.bias": torch.full((32,), torch.nan)}, "NaN or infinity"),
    ],
)
def test_what_is_no_tinyvit_of_sam_is_refused(change, words, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        load_model("auto", saved(tmp_path / "w.pth", **change))


def test_a_named_model_says_to_leave_the_name_away(tmp_path):
    with pytest.raises(CheckpointError, match=r"TinyViT\)\. Leave --model away"):
        load_model("demo", saved(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "change",
    [
        {"stages": {**STAGES.to_dict(), "dims": [8, 16, 16]}},
        {"stages": {**STAGES.to_dict(), "stem": 2}},
        {"stages": {**STAGES.to_dict(), "heads": [0, 0, 2, 3]}},
        {"stages": {**STAGES.to_dict(), "heads": [0, 3, 2, 3]}},
        {"stages": {**STAGES.to_dict(), "depths": [1, 1, 300, 1]}},
        {"stages": {**STAGES.to_dict(), "more": 1}},
        {"stages": {"stem": 1}},
        {"stages": None},
    ],
)
def test_manifests_with_odd_stages_are_refused(change):
    with pytest.raises(Misfit):
        check_architecture({k: v for k, v in {**architecture().to_dict(), **change}.items() if v is not None})


# --- the command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_refuses_a_method_and_exports_without(tmp_path, in_process):
    path = saved(tmp_path / "w.pth")
    code, _, err = in_process("export", "--checkpoint", path, "--method", "structsam", "--output", tmp_path / "no")
    assert code == 2 and "TinyViT has a convolution" in err and not (tmp_path / "no").exists()
    code, _, err = in_process(
        *("export", "--checkpoint", path, "--method", "none", "--precision", "fp32", "--backend", "none"),
        *("--output", tmp_path / "made"),
    )
    assert code == 0, err
    assert "assumed: LiteMedSAM's preprocessing" in err
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    assert report["macs"]["dense"] == report["macs"]["paper"] == STAGES.macs(256, 32)
    from structsam_export.runtime.predictor import Predictor

    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    with Predictor(tmp_path / "made") as predictor:
        predictor.set_image(image)
        masks, scores, logits = predictor.predict(box=np.array([20, 20, 80, 70]), multimask_output=False)
    assert masks.shape == (1, 90, 120) and logits.shape == (1, 256, 256) and np.isfinite(scores).all()
    loaded = load_model("auto", path)
    from structsam_export.runtime.images import prepare

    ready = prepare(image, 256, "litemedsam").tensor
    assert ready[0, :, 192:].max() == ready.min() == 0 and ready.max() == 1
    with torch.no_grad():
        embedding = loaded.sam.image_encoder(torch.as_tensor(ready))
        sparse, dense = loaded.sam.prompt_encoder(None, torch.tensor([[20, 20, 80, 70]]) * 256 / 120, None)
        positions = loaded.sam.prompt_encoder.get_dense_pe()
        want, _ = loaded.sam.mask_decoder(embedding, positions, sparse, dense, False)
    assert np.abs(logits[0] - want[0, 0].numpy()).max() < 1e-4 * max(1.0, float(want.abs().max()))
    code, _, err = in_process("pack", tmp_path / "made", tmp_path / "pack", "--as", "meta")
    assert code == 2 and "this model's are litemedsam" in err
    assert in_process("pack", tmp_path / "made", tmp_path / "pack", "--as", "ray")[0] == 0
