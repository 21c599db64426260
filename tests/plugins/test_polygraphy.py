"""`polygraphy plugin match` and `replace`, the command itself, with our patterns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from graphs import traced
from shared_traces import sharing

from structsam_export.fused import DOMAIN, PLUGINS, add_functions, plugin_folder
from structsam_export.precision import calibrate, convert
from structsam_export.rewrite import apply_plugins, rewrite

DEPTH = 3
IMAGE = np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32)
EVERY = dict.fromkeys(PLUGINS, DEPTH)


def polygraphy(*arguments):
    """The command of the environment that runs the tests."""
    command = [str(Path(sys.executable).with_name("polygraphy")), "plugin", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def matched(model, config):
    """What `polygraphy plugin match` finds in a file: plugin -> number of subgraphs; the list goes into `config`."""
    polygraphy("match", model, "--plugin-dir", plugin_folder(), "-o", config)
    found = [entry for entry in yaml.safe_load_all(config.read_text()) if entry]
    assert all(entry["op"] == PLUGINS[entry["name"]] for entry in found)
    return {entry["name"]: len(entry["instances"]) for entry in found}


def ours(model, folder):
    """What our own rule finds."""
    counts = apply_plugins(model, folder / "ours.onnx", tuple(PLUGINS)).counts
    return {name: counts[f"use_plugin.{name}"] for name in PLUGINS if counts[f"use_plugin.{name}"]}


def encoder(method, variant, layers, folder):
    """A rewritten encoder, without plugins."""
    with sharing():
        onnx.save(traced(method, variant, layers, 2), str(folder / "raw.onnx"))
    rewrite(folder / "raw.onnx", folder / "plain.onnx", keep_outputs=("image_embeddings",))
    return folder / "plain.onnx"


def test_merged_encoders_match_in_every_block_and_are_replaced(tmp_path):
    """FP16, as it comes last in exports; the operators are those that our rule puts in, and so are all other nodes."""
    plain, half = encoder("structsam", "cell", (0, 1, 2), tmp_path), tmp_path / "half.onnx"
    convert(plain, half, "fp16", calibrate(plain, [{"image": IMAGE}]))
    config, replaced = tmp_path / "config.yaml", tmp_path / "replaced.onnx"
    assert matched(half, config) == EVERY == ours(half, tmp_path)
    polygraphy("replace", half, "--plugin-dir", plugin_folder(), "--config", config, "-o", replaced)
    own, theirs = (onnx.load(str(p)) for p in (tmp_path / "ours.onnx", replaced))
    assert sorted(n.op_type for n in own.graph.node) == sorted(n.op_type for n in theirs.graph.node)
    assert DOMAIN in {entry.domain for entry in theirs.opset_import} and not theirs.functions
    add_functions(theirs)
    feeds = {"image": IMAGE}
    from graphs import run

    a, b = (run(model, feeds)["image_embeddings"] for model in (own, theirs))
    assert np.array_equal(a, b)


def test_dense_encoders_match_their_attention_alone(tmp_path):
    plain = encoder("none", "dense", (), tmp_path)
    assert matched(plain, tmp_path / "config.yaml") == {"relpos_attention": DEPTH} == ours(plain, tmp_path)


def test_models_that_are_not_ours_do_not_match(tmp_path):
    """A transformer's block as PyTorch exports it: attention, residual sums, a convolution, TopK and row gathers."""
    import torch

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 16, 4, stride=4)
            self.block = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

        def forward(self, image):
            x = self.conv(image).flatten(2).transpose(1, 2)
            best = x.norm(dim=-1).topk(8, dim=1).indices.unsqueeze(-1).expand(-1, -1, 16)
            x = torch.cat([x.gather(1, best), x.mean(1, keepdim=True)], 1)
            return self.block(x) + x

    torch.manual_seed(0)
    path = tmp_path / "other.onnx"
    program = torch.onnx.export(Other().eval(), (torch.zeros(1, 3, 32, 32),), dynamo=True, verbose=False)
    program.save(str(path))
    assert {"Softmax", "TopK", "Conv", "Concat"} <= {n.op_type for n in onnx.load(str(path)).graph.node}
    assert matched(path, tmp_path / "config.yaml") == {} == ours(path, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["structsam", "none"])
def test_vit_b_matches_in_every_block(tmp_path, method):
    """Random weights, 1024 x 1024: 12 subgraphs of each kind, by polygraphy and by our rule."""
    import torch
    from segment_anything import sam_model_registry

    from structsam_export.methods import make_method
    from structsam_export.patch import patched
    from structsam_export.trace import trace_encoder

    torch.manual_seed(0)
    model = sam_model_registry["vit_b"](None).eval().requires_grad_(False).image_encoder
    merged = method == "structsam"
    with patched(model, make_method(method, 0.5, "cell" if merged else None), tuple(range(12)) if merged else ()):
        trace_encoder(model, 1024, tmp_path / "raw.onnx")
    rewrite(tmp_path / "raw.onnx", tmp_path / "plain.onnx", keep_outputs=("image_embeddings",))
    made = apply_plugins(tmp_path / "plain.onnx", tmp_path / "fused.onnx", tuple(PLUGINS))
    wanted = {name: 12 for name in PLUGINS if merged or name == "relpos_attention"}
    assert {name: made.counts[f"use_plugin.{name}"] for name in wanted} == wanted
    assert matched(tmp_path / "plain.onnx", tmp_path / "config.yaml") == wanted
    if merged:
        assert made.nodes <= 360 < 900 <= made.nodes_before
