"""Small random-weight SAMs, so that no test needs a download."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import shared_traces
import torch
from tiny_model import save as save_tiny


def tiny_encoder(image=(80, 80), window=4, depth=3, heads=2, dim=16, patch=16, global_layers=(1,)):
    """A segment_anything encoder with random weights everywhere (relative positions included)."""
    from segment_anything.modeling import ImageEncoderViT

    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=max(image),
        patch_size=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=2,
        out_chans=8,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=global_layers,
        window_size=window,
    )
    for name, p in encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(p, std=0.5)
    return encoder.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def traces_are_shared(monkeypatch):
    """Exports of this test take their traces from the cache of the whole run; tracing is left out of coverage."""
    monkeypatch.setattr("torch.onnx.export", shared_traces.export_without_coverage)
    monkeypatch.setattr("structsam_export.pipeline.trace_stage", shared_traces.trace_stage)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Commands run in the process of the test, where its changes hold; what watches them has tests of its own."""
    monkeypatch.setenv("STRUCTSAM_SUPERVISE", "0")


@pytest.fixture
def tiny_model(monkeypatch, tmp_path_factory):
    """Registers the model "tiny" for `--model`; path of its weights."""
    from structsam_export import models

    monkeypatch.setitem(models.ARCHITECTURES, "tiny", "tiny_model:build")
    monkeypatch.setitem(models.MODELS, "tiny", models.ModelSpec("tiny", "tiny SAM", "tiny", "sam"))
    path = tmp_path_factory.getbasetemp() / "tiny.pth"
    return path if path.exists() else save_tiny(path)


@pytest.fixture
def in_process(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in an empty folder: (command, arguments) -> (exit code, stdout, stderr)."""
    from structsam_export.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["structsam-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture
def encoder():
    """6x6 grid, windows of 4 (so 6 -> 8 with pads), block 1 global."""
    return tiny_encoder(image=(96, 96))
