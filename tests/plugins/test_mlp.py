"""MLP policies beside plugins: what the MLP's own merging has is fused where an operator says the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from conftest import tiny_encoder
from graphs import run
from shared_traces import traced_encoder

from structsam_export.fused import PLUGINS
from structsam_export.methods import make_method
from structsam_export.methods.mlp import make_mlp
from structsam_export.patch import patched
from structsam_export.rewrite import apply_plugins, rewrite

IMAGE = np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32)
ONCE = dict.fromkeys(PLUGINS, 3)
# Merged MLPs merge by the plan of their block, once more. Those of windows with pads leave the pads' slots out, and
# what puts them back is no TokenUnmerge; that of the global block is one.
COUNTS = {"merge": ONCE | {"token_merge": 6, "token_unmerge": 4}, "residual-consistency": ONCE}


@pytest.mark.parametrize("policy", COUNTS)
def test_policies_go_with_plugins(policy, tmp_path):
    encoder = tiny_encoder(image=(96, 96))
    with patched(encoder, make_method("structsam", 0.5, "cell"), (0, 1, 2), make_mlp(policy)):
        raw = traced_encoder(encoder, 96, batch=2)
        rewrite(raw, tmp_path / "plain.onnx", keep_outputs=("image_embeddings",))
    made = apply_plugins(tmp_path / "plain.onnx", tmp_path / "fused.onnx", tuple(PLUGINS))
    assert made.counts == {f"use_plugin.{name}": count for name, count in COUNTS[policy].items()}
    before, after = (run(onnx.load(str(tmp_path / f"{name}.onnx")), {"image": IMAGE}) for name in ("plain", "fused"))
    want, found = before["image_embeddings"], after["image_embeddings"]
    assert np.abs(found - want).max() < 2e-6 * np.abs(want).max()
