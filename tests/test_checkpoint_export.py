"""A checkpoint as people have it goes through the whole chain: read, exported, validated, and validated again."""

from __future__ import annotations

import json
import shutil

import pytest
from hf_models import hf_sam

from structsam_export.config import ExportConfig
from structsam_export.paths import checkpoint_name


@pytest.mark.slow
def test_a_sharded_half_precision_folder_is_exported_and_validated_again(in_process, tmp_path):
    """Heads of 14 channels and an MLP that is not 4x, in FP16; the folder then moves."""
    hf_sam().half().save_pretrained(tmp_path / "slim", max_shard_size="50KB")
    assert len(list((tmp_path / "slim").glob("*-of-*.safetensors"))) > 1
    code, out, err = in_process("--checkpoint", "slim", "--backend", "none", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["passed"] and report["config"]["precision"] == "fp16"
    assert "128 px, 28 wide, 3 blocks (global: 1; windows of 3), 2 heads of 14, MLP 58" in " ".join(err.split())
    assert "assumed: SAM's preprocessing" in " ".join(err.split())
    folder = tmp_path / "engines" / "slim-structsam-r50-fp16"
    model = json.loads((folder / "manifest.json").read_text())["model"]
    assert (model["checkpoint"], model["source"]) == ("slim", "huggingface")
    assert model["architecture"]["encoder"]["mlp_dim"] == 58 and model["architecture"]["decoder_eps"] == 1e-6
    # The recorded architecture is built, not what a config.json says by then.
    shutil.move(tmp_path / "slim", tmp_path / "moved")
    (tmp_path / "moved" / "config.json").unlink()
    code, out, err = in_process("validate", folder, "--checkpoint", "moved", "--json")
    assert code == 0, err
    assert json.loads(out)["passed"]
    hf_sam(seed=1).save_pretrained(tmp_path / "other")
    code, _, err = in_process("validate", folder, "--checkpoint", "other")
    assert code == 5 and "is not the checkpoint" in " ".join(err.split())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sam_vit_b_01ec64.pth", "sam_vit_b_01ec64"),
        ("/data/run 1/best.pth", "run_1-best"),
        ("/data/run2/model.safetensors", "run2"),
        ("/data/run2/pytorch_model.bin.index.json", "run2"),
        ("/data/run2/model.safetensors.index.json", "run2"),
        ("/data/sam-vit-base/", "sam-vit-base"),
        ("/h/models--facebook--sam-vit-base/snapshots/0a1b/model.safetensors", "facebook--sam-vit-base"),
        ("/h/models--facebook--sam-vit-base/snapshots/0a1b", "facebook--sam-vit-base"),
        ("/data/x/../y/last.ckpt", "y-last"),
        ("/.pth", "model"),
        ("/" + "a" * 200, "a" * 60),
        ("/\x1b[31m\u202e.pth", "31m"),
    ],
)
def test_what_a_checkpoint_is_called(path, name):
    assert checkpoint_name(path) == name


def test_names_of_folders():
    config = ExportConfig(checkpoint="/data/medsam_vit_b.pth", preprocessing="medsam", precision="fp32")
    assert (config.model, config.model_name) == ("auto", "medsam_vit_b-medsam")
    assert config.folder_name(0.5) == "medsam_vit_b-medsam-structsam-r50-fp32"
    assert ExportConfig(model="vit_b", checkpoint="x.pth").model_name == "vit_b"
    assert (ExportConfig().model, ExportConfig(model="auto").model_name) == ("demo", "demo")


def test_a_preprocessing_that_does_not_exist(in_process):
    code, _, err = in_process("--preprocessing", "imagenet")
    assert code == 2 and "Known preprocessings: auto, sam, medsam" in " ".join(err.split())


def test_auto_without_a_checkpoint_is_the_demo_model():
    kept = ExportConfig.from_dict(ExportConfig().to_dict())
    assert kept == ExportConfig(model="demo")
    early = {k: v for k, v in ExportConfig().to_dict().items() if k != "preprocessing"}
    assert ExportConfig.from_dict(early) == ExportConfig()  # of a version without it
