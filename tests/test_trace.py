"""Tracing beyond the default: batches, other opsets, every layer preset."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import tiny_encoder

from structsam_export.methods import make_method
from structsam_export.patch import patched
from structsam_export.rewrite import rewrite
from structsam_export.trace import decision_names, encoder_with_decisions, trace_encoder


def traced(tmp_path, method, layers, batch=1, opset=18):
    """Eager outputs and those of the rewritten file, for random images."""
    encoder = tiny_encoder(image=(96, 96))
    image = torch.randn(batch, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    with patched(encoder, method, layers):
        with torch.no_grad():
            want = encoder_with_decisions(encoder)(image)
        names = decision_names(encoder)
        trace_encoder(encoder, 96, tmp_path / "raw.onnx", batch=batch, opset=opset)
    rewrite(tmp_path / "raw.onnx", tmp_path / "new.onnx", keep_outputs=("image_embeddings", *names))
    session = onnxruntime.InferenceSession(str(tmp_path / "new.onnx"), providers=["CPUExecutionProvider"])
    return want, session.run(None, {"image": image.numpy()}), tmp_path / "new.onnx"


@pytest.mark.parametrize("variant", ["cell", "bsm"])
def test_batch_of_two(tmp_path, variant):
    want, got, _ = traced(tmp_path, make_method("structsam", 0.5, variant), (0, 1, 2), batch=2)
    assert len(want) == len(got) == 10
    np.testing.assert_allclose(got[0], want[0].numpy(), atol=2e-5)
    for a, b in zip(got[1:], want[1:], strict=True):
        assert (a == b.numpy()).all()


@pytest.mark.parametrize("opset", [20, 23])
def test_other_opsets(tmp_path, opset):
    want, got, path = traced(tmp_path, make_method("structsam", 0.5), (0, 1), opset=opset)
    np.testing.assert_allclose(got[0], want[0].numpy(), atol=2e-5)
    assert onnx.load(str(path)).opset_import[0].version == opset


def test_unmerged_blocks_are_folded_too(tmp_path):
    want, got, path = traced(tmp_path, make_method("structsam", 0.5), (1,))
    np.testing.assert_allclose(got[0], want[0].numpy(), atol=2e-5)
    names = {o.name for o in onnx.load(str(path)).graph.output}
    assert names == {"image_embeddings", "plan.1.pos", "plan.1.slot", "plan.1.sources"}
