"""Whole encoders and the demo model's decoder: what the policy promises, overflow, and TensorRT."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from demo_exports import demo_export
from graphs import traced
from precision_graphs import casts, session, types

from structsam_export.backends import backend
from structsam_export.folder import OUTPUTS
from structsam_export.precision import calibrate, convert, fake_quantised
from structsam_export.rewrite import rewrite
from structsam_export.runtime.prompts import decoder_profile

# Method, variant, merging blocks and batch, as other tests trace them.
CASES = [
    ("none", "dense", (), 2),
    ("structsam", "cell", (0, 1), 2),
    ("structsam", "bsm", (0, 1), 2),
    ("structsam", "proportional", (0, 1), 2),
    ("tome", "alternate", (0, 1), 2),
    ("cubist", "window", (0, 1, 2), 1),
]
EXACT = {"TopK", "ArgMin", "ArgMax", "Less", "Greater", "Sin", "Cos", "LayerNormalization", "Sqrt"}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case[:2]))
def tiny(request, tmp_path_factory):
    """A tiny random-weight encoder of three blocks, traced, rewritten and converted."""
    folder = tmp_path_factory.mktemp("tiny")
    onnx.save(traced(*request.param), str(folder / "raw.onnx"))
    rewrite(folder / "raw.onnx", folder / "encoder.onnx", keep_outputs=OUTPUTS["encoder"])
    image = np.random.default_rng(0).standard_normal((request.param[3], 3, 96, 96)).astype(np.float32)
    result = convert(
        folder / "encoder.onnx", folder / "fp16.onnx", "fp16", calibrate(folder / "encoder.onnx", [{"image": image}])
    )
    return folder, result, image


def test_policy_on_every_kind_of_merging(tiny):
    """Sorting, comparing and norms see float32, products 16 bits, and casts are as few as can be."""
    folder, result, _ = tiny
    model = onnx.load(str(folder / "fp16.onnx"))
    onnx.checker.check_model(model, full_check=True)
    kinds = types(model)
    for node in model.graph.node:
        inputs = {kinds[name] for name in node.input if name and kinds[name] in ("fp32", "fp16")}
        if node.op_type in EXACT:
            assert inputs <= {"fp32"}, node.name
        assert len(inputs) <= 1, f"{node.name} mixes types"
    assert kinds[model.graph.input[0].name] == kinds["image_embeddings"] == "fp32"
    made = casts(model)
    assert len({source for source, _ in made}) == len(made) == result.casts, "one cast of a tensor"
    # Two down and two up in each of three blocks; the neck's two convolutions, one of its norms between.
    assert result.casts == 3 * 4 + 4
    assert result.offenders == ()
    assert set(result.fp32) <= {"decision", "norm", "stem", "residual", "movement"}


def test_no_value_is_cast_there_and_back(tiny):
    model = onnx.load(str(tiny[0] / "fp16.onnx"))
    made = dict(casts(model))
    for first, second in pairwise(made.items()):
        assert first[1] not in made, f"{first} is cast again"
        assert second[1] not in made


def test_fake_quantised_encoder_is_near_and_finite(tiny):
    folder, _, image = tiny
    fake_quantised(folder / "fp16.onnx", folder / "fake.onnx")
    exact, made = (session(folder / name).run(None, {"image": image})[0] for name in ("encoder.onnx", "fake.onnx"))
    error = np.abs(made - exact)
    assert np.isfinite(made).all()
    # Random weights have ties everywhere: a token that moves changes its surroundings, so most values are looked at.
    assert 0 < np.median(error) < 5e-3 * np.abs(exact).max()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo model's encoder with structsam .5 and its decoder, rewritten, in float32."""
    return Path(shutil.copytree(demo_export(), tmp_path_factory.mktemp("demo") / "export"))


def test_file_has_half_the_size(demo):
    for part in ("encoder", "decoder"):
        result = convert(demo / f"{part}.onnx", demo / f"{part}.half.onnx", "fp16")
        assert 0.5 < result.bytes / result.bytes_before <= 0.52, part
        # Queries' weights hold the scale, and a few of the smallest vanish.
        assert all(share < 1e-4 and "folded" in name for name, share in result.underflow.items())


@pytest.mark.skipif(not backend("tensorrt-rtx").installed(), reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_engines_build_and_their_norms_are_float32(demo, tmp_path, part, kind):
    import tensorrt_rtx as trt

    path = demo / f"{part}.{kind}.onnx"
    convert(demo / f"{part}.onnx", path, kind)
    profile = decoder_profile(512, 16) if part == "decoder" else {}
    engine = backend("tensorrt-rtx").build(path, tmp_path, part, "sm86", profile)
    assert engine.bytes > 1_000_000
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(path))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = {}
    for layer in layers:
        kinds.setdefault(layer.type, set()).update(data.dtype for data in [layer.get_input(0)] if data is not None)
    assert kinds[trt.LayerType.NORMALIZATION] == {trt.float32}
    low = {"fp16": trt.float16, "bf16": trt.bfloat16}[kind]
    assert kinds[trt.LayerType.SOFTMAX] == {low}
    if part == "encoder":
        assert kinds[trt.LayerType.TOPK] == {trt.float32}
