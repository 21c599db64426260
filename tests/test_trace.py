"""Tracing beyond the default: batches, other opsets, blocks that do not merge."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import tiny_encoder
from graphs import traced
from tiny_model import OUT

from structsam_export.hosts.segment_anything import decoder_module
from structsam_export.methods import make_method
from structsam_export.models import load_model
from structsam_export.patch import patched
from structsam_export.rewrite import rewrite
from structsam_export.trace import decision_names, encoder_with_decisions


def computed(tmp_path, variant, layers, opset=18):
    """Eager outputs for two random images, those of the rewritten file, by the names of its outputs, and its path."""
    encoder = tiny_encoder(image=(96, 96))
    image = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    with patched(encoder, make_method("structsam", 0.5, variant), layers), torch.no_grad():
        want = encoder_with_decisions(encoder)(image)
        names = ["image_embeddings", *decision_names(encoder)]
    onnx.save(traced("structsam", variant, layers, 2, opset), str(tmp_path / "raw.onnx"))
    rewrite(tmp_path / "raw.onnx", tmp_path / "new.onnx", keep_outputs=names)
    session = onnxruntime.InferenceSession(str(tmp_path / "new.onnx"), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == names
    return want, dict(zip(names, session.run(None, {"image": image.numpy()}))), tmp_path / "new.onnx"


@pytest.mark.parametrize("variant", ["cell", "bsm"])
def test_batch_of_two(tmp_path, variant):
    """Block 2, which merges nothing, is folded as segment_anything's and tells no decision."""
    want, got, _ = computed(tmp_path, variant, (0, 1))
    assert list(got)[1:] == [f"plan.{i}.{part}" for i in (0, 1) for part in ("pos", "slot", "sources")]
    made = list(got.values())
    np.testing.assert_allclose(made[0], want[0].numpy(), atol=2e-5)
    for a, b in zip(made[1:], want[1:], strict=True):
        assert (a == b.numpy()).all()


@pytest.mark.parametrize("opset", [20, 23])
def test_other_opsets(tmp_path, opset):
    want, got, path = computed(tmp_path, "cell", (0, 1, 2), opset)
    np.testing.assert_allclose(got["image_embeddings"], want[0].numpy(), atol=2e-5)
    assert onnx.load(str(path)).opset_import[0].version == opset


def test_an_unused_mask_input_is_not_read(tiny_model):
    """NaN stands for memory that nobody has filled."""
    decoder = decoder_module(load_model("tiny", tiny_model).sam)
    prompt = (torch.tensor([[[9.0, 9.0], [0.0, 0.0]]]), torch.tensor([[1, -1]]))
    embedding, random = torch.randn(1, OUT, 8, 8), torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        plain = decoder(embedding, *prompt, torch.zeros_like(random), torch.zeros(1))
        found = decoder(embedding, *prompt, torch.full_like(random, torch.nan), torch.zeros(1))
        other = decoder(embedding, *prompt, random, torch.ones(1))
    assert all(torch.equal(a, b) for a, b in zip(plain, found))
    assert not torch.allclose(plain[0], other[0])
