"""timm's ViTs as a host, against timm itself and against merging written out by hand."""

from __future__ import annotations

import json
import math
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="timm is an extra")
import timm
from timm.data import create_transform
from tiny_timms import MODELS, pair

from structsam_export.cli import main
from structsam_export.config import ExportConfig
from structsam_export.errors import ArtifactError, CheckpointError, UsageError
from structsam_export.folder import ExportFolder
from structsam_export.hosts import geometry_of, host_of
from structsam_export.job import Job
from structsam_export.macs import paper_macs
from structsam_export.methods import METHODS, make_method
from structsam_export.methods.mlp import MergedMLP
from structsam_export.models import load_model
from structsam_export.patch import patched, recording
from structsam_export.pipeline import export, validate_folder
from structsam_export.report import baseline
from structsam_export.runtime.cropped import DataConfig, prepare_cropped
from structsam_export.runtime.model import open_model

SUPPORTED = [name for name in METHODS if name not in ("none", "sparsesam")]
any_model = pytest.mark.parametrize("name", MODELS)


def image(batch=2):
    return torch.randn(batch, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def outputs(encoder, x):
    found = encoder(x)
    return found if isinstance(found, tuple) else (found,)


@any_model
def test_it_is_timms_model_with_its_features_beside_the_logits(name):
    stock, ours = pair(name)
    assert list(ours.state_dict()) == list(stock.state_dict())
    features, *logits = outputs(ours, image())
    assert torch.equal(features, stock.forward_head(stock.forward_features(image()), pre_logits=True))
    assert torch.equal(logits[0] if logits else features, stock(image()))
    assert ("image_embeddings", "logits")[: 1 + len(logits)] == host_of(ours).ENCODER_OUTPUTS


@any_model
def test_rate_0_is_timms_model_to_the_bit(name):
    stock, ours = pair(name)
    for method in SUPPORTED:
        with patched(ours, make_method(method, 0.0), range(1 if method == "cubist" else 0, 4)):
            assert torch.equal(outputs(ours, image())[-1], stock(image())), method


def rotated(x, places, side):
    """DINOv3's rotations by their definition: x (heads, n, d), rows and columns of a grid of `side`, halves turned."""
    d = x.shape[-1]
    periods = 100.0 ** (2 * torch.arange(d // 4) / (d // 2))
    centres = [2 * ((places // side if axis == 0 else places % side) + 0.5) / side - 1 for axis in (0, 1)]
    angles = torch.cat([2 * math.pi * c[:, None] / periods for c in centres], 1)
    cos, sin = (torch.cat([f(angles)] * 2, 1) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def block_by_hand(block, x, plan, lead, rope):
    """One block of one image, (P + N, D): slots are means, the lead stays, rotations are those of destinations."""
    heads, dim = block.attn.num_heads, x.shape[1]
    y = block.norm1(x)
    slot, pos = plan.slot[0], plan.pos[0]
    slots = torch.stack([y[lead:][slot == j].mean(0) for j in range(len(pos))])
    tokens = torch.cat([y[:lead], slots])
    bias = block.attn.qkv.bias
    if rope:  # EVA's keys have no bias
        bias = torch.cat([block.attn.q_bias, torch.zeros(dim), block.attn.v_bias])
    q, k, v = (tokens @ block.attn.qkv.weight.T + bias).view(-1, 3, heads, dim // heads).permute(1, 2, 0, 3)
    q, k = block.attn.q_norm(q), block.attn.k_norm(k)
    if rope:
        q, k = (torch.cat([t[:, :lead], rotated(t[:, lead:], pos, 6)], 1) for t in (q, k))
    scores = (q @ k.transpose(1, 2)) / (dim // heads) ** 0.5
    if plan.proportional:  # a slot counts as often as it has tokens
        held = torch.cat([torch.ones(lead), torch.stack([(slot == j).sum() for j in range(len(pos))])])
        made = (scores.exp() * held / (scores.exp() * held).sum(-1, keepdim=True)) @ v
    else:
        made = scores.softmax(-1) @ v
    made = block.attn.proj(made.transpose(0, 1).flatten(1))
    scale1, scale2 = (
        getattr(block, f"gamma_{i}") if rope else getattr(getattr(block, f"ls{i}"), "gamma", 1) for i in (1, 2)
    )
    x = x + scale1 * torch.cat([made[:lead], made[lead:][slot]])
    return x + scale2 * block.mlp(block.norm2(x))


@pytest.mark.parametrize("name", ["deit", "registers", "dinov3"])
@pytest.mark.parametrize("method", ["tome", "structsam", "structsam proportional", "pitome"])
def test_a_merged_block_is_that_written_by_hand(name, method):
    stock, ours = pair(name)
    seen = {}
    ours.blocks[1].register_forward_hook(lambda _, given, made: seen.update(given=given[0], made=made))
    method, *variant = method.split()
    with patched(ours, make_method(method, 0.5, *variant), [1]), recording(ours) as decisions:
        ours(image(1))
    plan, lead = decisions["plan.1"].plan, stock.num_prefix_tokens
    assert plan.slot.shape == (1, 36) and plan.kept < 36  # of the grid alone: class token and registers are in no plan
    want = block_by_hand(stock.blocks[1], seen["given"][0], plan, lead, name == "dinov3")
    assert torch.allclose(seen["made"][0], want, atol=2e-5)


@any_model
def test_merged_mlps_leave_the_lead_its_own(name):
    stock, ours = pair(name)
    lead = stock.num_prefix_tokens
    seen = {}
    ours.blocks[3].register_forward_hook(lambda _, given, made: seen.update(made=made))
    made = {}
    for mlp in (None, MergedMLP()):
        with patched(ours, make_method("tome", 0.5), [3], mlp=mlp):
            ours(image())
        made[mlp is None] = seen["made"]
    assert torch.allclose(made[True][:, :lead], made[False][:, :lead], atol=1e-5)
    assert not torch.allclose(made[True][:, lead:], made[False][:, lead:], atol=1e-3)


@any_model
def test_cubist_runs_timms_own_blocks_on_the_small_grid(name):
    """Behind the reduction blocks are stock ones, with rotations of the small grid; tokens come back at the end."""
    stock, ours = pair(name)
    method, grid, lead = make_method("cubist", 0.5), geometry_of(ours).windowed_grid, stock.num_prefix_tokens
    with patched(ours, method, range(2, 4)), recording(ours) as decisions:
        found = outputs(ours, image())[-1]
    seen = {}
    hook = stock.blocks[1].register_forward_hook(lambda _, given, made: seen.update(x=made))
    stock.forward_features(image())
    hook.remove()
    small, plan = method.reduce(seen["x"][:, lead:].unflatten(1, (6, 6)), grid)
    assert small.shape[1:3] == (4, 4) and torch.equal(plan.rows, decisions["grid.2"].plan.rows)
    x = torch.cat([seen["x"][:, :lead], small.flatten(1, 2)], 1)
    rope = getattr(stock, "rope", None)
    for block in stock.blocks[2:]:
        x = block(x) if rope is None else block(x, rope=rope.get_embed(shape=[4, 4]))
    whole = plan.unmerge(x[:, lead:].unflatten(1, (4, 4))).flatten(1, 2)
    want = stock.forward_head(stock.norm(torch.cat([x[:, :lead], whole], 1)))
    assert torch.allclose(found, want, atol=2e-5)
    assert not torch.allclose(found, stock(image()), atol=1e-3)


def test_deit_b_has_the_published_multiply_adds():
    """17.6 G of DeiT-B and 4.6 G of DeiT-S, as their papers and ToMe's count them."""
    for name, published in (("deit_base_patch16_224", 17.6e9), ("deit_small_patch16_224", 4.6e9)):
        from structsam_export.models.timm_models import build

        with torch.device("meta"):
            geometry = geometry_of(build(name, 1000))
        assert paper_macs(geometry) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("size", [(300, 211), (97, 400), (224, 224), (1000, 333)])
@pytest.mark.parametrize(
    "data",
    [
        DataConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9),
        DataConfig((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0, "squash"),
        DataConfig((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", 0.875, "squash"),
    ],
)
def test_photos_are_prepared_as_timm_does(size, data):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    want = create_transform(input_size=(3, 160, 160), **data.to_dict())(Image.fromarray(pixels))
    ready = prepare_cropped(pixels, 160, data)
    assert np.abs(ready.tensor[0] - want.numpy()).max() < 2e-6
    assert ready.seen.shape == (160, 160, 3)
    assert DataConfig.from_dict(json.loads(json.dumps(data.to_dict()))) == data


@pytest.mark.parametrize("change", [{"std": [0, 1, 1]}, {"crop_pct": 0.001}, {"mean": [1]}, {"crop_mode": "border"}])
def test_absurd_preparation_is_refused(change):
    data = DataConfig((0.5,) * 3, (0.5,) * 3).to_dict() | change
    with pytest.raises(ArtifactError, match="manifest"):
        DataConfig.from_dict(data)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """timm's own smallest ViT (160 px, 64 wide, six blocks), saved as timm saves it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "test_vit.pth"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    return path


def test_weights_are_loaded_by_timms_names(weights):
    loaded = load_model("timm:test_vit", weights)
    stock = timm.create_model("test_vit").eval()
    stock.load_state_dict(torch.load(weights, weights_only=True))
    x = torch.randn(1, 3, loaded.geometry.image_size, loaded.geometry.image_size)
    with torch.no_grad():
        assert torch.equal(loaded.sam.image_encoder(x)[1], stock(x))
    said = timm.data.resolve_model_data_config(stock)
    assert loaded.geometry.image_size == said["input_size"][1]
    assert loaded.data.mean == tuple(said["mean"]) and loaded.data.crop_pct == said["crop_pct"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:deit_base_patch16_242", "Did you mean 'deit_base_patch16_224'"),
        ("timm:resnet18", "is a ResNet. Supported: models that are a VisionTransformer or an Eva"),
        ("timm:vit_tiny_patch16_224", "does not fit model"),
    ],
)
def test_models_that_are_none_are_refused(name, message, weights):
    with pytest.raises((UsageError, CheckpointError), match=message):
        load_model(name, weights)


def test_nothing_is_downloaded_unasked():
    with pytest.raises(CheckpointError, match="pretrained=True.*test_vit.pth"):
        load_model("timm:test_vit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sparsesam"}, "cannot run in TimmClassifier: SparseSAM leaves out keys"),
        ({"prompt_aware": True}, "takes no prompts"),
        ({"mlp": "residual-consistency"}, "has none. Pass --mlp merge"),
        ({"preprocessing": "sam"}, "a preprocessing of its own"),
    ],
)
def test_what_means_nothing_here_is_refused(options, message, weights):
    with pytest.raises(UsageError, match=message):
        Job.prepare(ExportConfig(model="timm:test_vit", checkpoint=str(weights), **options))


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    """ToMe in one block, FP16, through the whole chain, on one photo."""
    photo = next((files("structsam_export") / "assets" / "photos").glob("*.jpg"))
    config = ExportConfig(
        "timm:test_vit",
        str(weights),
        method="tome",
        rate=0.4,
        layers="2",
        precision="fp16",
        backend="none",
        images=(str(photo),),
    )
    return export(config, tmp_path_factory.mktemp("out") / "export")


def test_it_is_exported_and_judged_by_features_and_classes(exported):
    report, folder = exported
    assert report["passed"] and list(report["parity"]) == ["onnx_raw", "onnx_fp32", "onnx"]
    for row in report["parity"].values():
        assert row["top1_agreement"] >= row["gates"]["top1_agreement"] and "mask_iou_mean" not in row
    assert set(report["quality"]) == {"embedding_cosine_vs_dense", "top1_vs_dense"}
    assert report["model"]["parts"] == ["encoder"]
    names = {path.name for path in folder.iterdir()}
    assert "encoder.onnx" in names and not any("decoder" in name for name in names)
    page = (folder / "report.html").read_text()
    assert "same best class" in page and "mask IoU" not in page


def test_the_file_computes_what_timm_does_with_its_own_transform(exported, weights):
    """From a photo to logits, without anything of ours but the file: rate 0 blocks are stock, merging ones near."""
    import onnxruntime

    _, folder = exported
    stock = timm.create_model("test_vit").eval()
    stock.load_state_dict(torch.load(weights, weights_only=True))
    transform = create_transform(**timm.data.resolve_model_data_config(stock))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    x = transform(photo)[None]
    found = onnxruntime.InferenceSession(folder / "encoder.fp32.onnx").run(None, {"image": x.numpy()})
    job = Job.of_folder(ExportFolder.read(folder))
    with job.schedule.patched(job.loaded.sam.image_encoder) as encoder, torch.no_grad():
        want = encoder(x)
    assert all(np.abs(a - b.numpy()).max() < 1e-4 for a, b in zip(found, want))


def test_it_is_judged_again_and_against_a_stored_report(exported):
    report, folder = exported
    again = validate_folder(folder)
    stored = baseline.read_baseline(folder / "report.json")
    verdict = baseline.judge(again, stored, folder / "report.json")
    assert not verdict.worse
    assert {c.metric for c in verdict.checks} >= {"top1_agreement", "top1_vs_dense", "embedding_cosine_vs_dense"}
    stored["parity"]["onnx"]["top1_agreement"] = 1.5
    assert [c.metric for c in baseline.judge(again, stored).worse] == ["top1_agreement"]


def test_commands_that_need_masks_say_so(exported, weights, tmp_path, monkeypatch, capsys):
    _, folder = exported
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.png")
    commands = (
        ["predict", str(folder), str(tmp_path / "photo.png"), "--point", "5,5"],
        ["pack", str(folder), str(tmp_path / "pack"), "--as", "meta"],
        ["serve", str(folder)],
        ["evaluate", str(folder), "--dataset", "bundled"],
        ["evaluate", "--model", "timm:test_vit", "--checkpoint", str(weights), "--dataset", "bundled"],
        ["sweep", "--model", "timm:test_vit", "--checkpoint", str(weights), "--dataset", "bundled"],
        ["tune", "--model", "timm:test_vit", "--checkpoint", str(weights)],
    )
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["structsam-export", *command])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code, "draws no masks" in capsys.readouterr().err) == (2, True), command
    with pytest.raises(UsageError, match="draws no masks: it has no decoder"):
        open_model(ExportFolder.read(folder))
