"""SAM's own sizes with random weights in the formats people have: Meta's state dict and MedSAM's training checkpoint.

Minutes each: run with `pytest -m slow`.
"""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest
import torch

from structsam_export.runtime.photos import bundled_photos

# Closed form and fvcore agree on the dense encoder (baselines of the token-merging papers).
DENSE = {"vit_b": 486_416_154_624, "vit_l": 1_493_846_786_048, "vit_h": 2_982_219_137_024, "medsam": 486_416_154_624}


def random_checkpoint(name: str, path) -> None:
    """Random weights (positions too, which SAM starts at zero) in the file format of this model's users."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    sam = sam_model_registry["vit_b" if name == "medsam" else name]()
    for key, value in sam.image_encoder.named_parameters():
        if "pos" in key:
            torch.nn.init.normal_(value, std=0.1)
    state = sam.state_dict()
    if name == "medsam":
        state = {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(state, path)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", list(DENSE))
def test_export_of_a_real_size(name, tmp_path):
    from PIL import Image

    checkpoint, photo = tmp_path / "weights.pth", tmp_path / "photo.png"
    random_checkpoint(name, checkpoint)
    Image.fromarray(bundled_photos(1)[0].image).save(photo)
    command = [sys.executable, "-m", "structsam_export", "--model", name, "--checkpoint", str(checkpoint)]
    command += ["--image", str(photo), "--output", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["passed"]
    assert report["macs"]["dense"] == DENSE[name]
    assert report["tokens"]["global"] == {"N": 4096, "n": 2050, "effective_rate": 0.499512}
    assert report["tokens"]["window"]["n"] == 100
    assert (tmp_path / "out" / "encoder.onnx.data").exists() == (name in ("vit_h",))
    onnx.checker.check_model(str(tmp_path / "out" / "encoder.onnx"))


# As Hugging Face's users have them: (files' precision, bytes of a shard, config of the encoder).
FOLDERS = {
    "slimsam-77": ("float16", "10MB", {"hidden_size": 168, "mlp_dim": 696}),
    "sam-vit-base": ("float32", "1GB", {}),
}


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", FOLDERS)
def test_export_of_a_real_folder_of_hugging_face(name, tmp_path):
    """The layout of facebook/sam-vit-base and of SlimSAM (heads of 14 channels), architecture and all read from it."""
    from hf_models import hf_sam
    from PIL import Image

    precision, shard, vision = FOLDERS[name]
    folder, photo = tmp_path / name, tmp_path / "photo.png"
    hf_sam(vision, {}, {}).to(getattr(torch, precision)).save_pretrained(folder, max_shard_size=shard)
    Image.fromarray(bundled_photos(1)[0].image).save(photo)
    command = [sys.executable, "-m", "structsam_export", "--checkpoint", str(folder), "--image", str(photo)]
    command += ["--output", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["passed"] and report["config"]["precision"] == "fp16"
    assert report["model"]["geometry"]["heads"] == 12
    assert report["model"]["geometry"]["dim"] == vision.get("hidden_size", 768)
    onnx.checker.check_model(str(tmp_path / "out" / "encoder.onnx"))
