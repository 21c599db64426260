"""What patching and tracing rely on, checked for every host with every method, on tiny encoders of random weights.

A new host gets all of it by its line in `HOSTS` and a tiny encoder in ENCODERS here.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import torch
from conftest import tiny_encoder
from graphs import run
from tiny_sams import tiny_vit

import structsam_export.hosts as registry
from structsam_export.errors import UsageError
from structsam_export.geometry import EncoderGeometry
from structsam_export.hosts import HOSTS, check_method, encoder_of, geometry_of, host_of
from structsam_export.methods import METHODS, make_method
from structsam_export.methods.mlp import MergedMLP, ResidualConsistency
from structsam_export.patch import apply_patch, decisions_of, observed, patched, recording, remove_patch, roles_of
from structsam_export.trace import decision_names, encoder_with_decisions, trace_encoder


def toy_encoder():
    from toy_host import ToyEncoder

    torch.manual_seed(0)
    return ToyEncoder().eval().requires_grad_(False)


# By class name, as in HOSTS: 6x6 tokens, windows of 4 (so 6 -> 8 with pads), block 1 of three global.
ENCODERS = {
    "EfficientSamViT": lambda: efficient_encoder(),
    "HQImageEncoder": lambda: hq_encoder(),
    "ImageEncoderViT": lambda: tiny_encoder(image=(96, 96)),
    "TimmBackbone": lambda: timm_encoder("backbone"),
    "TimmClassifier": lambda: timm_encoder("classifier"),
    "TinyViT": tiny_vit,
    "ToyEncoder": toy_encoder,
}
# Hosts that refuse all methods show no blocks: there is nothing more to check than how they are traced.
DENSE = ("TinyViT",)
# Some refuse single methods.
REFUSED = dict.fromkeys(("TimmBackbone", "TimmClassifier"), ("sparsesam",))
any_host = pytest.mark.parametrize("name", ENCODERS)
each_host = pytest.mark.parametrize("name", [name for name in ENCODERS if name not in DENSE])
MERGING = [name for name in METHODS if name != "none"]
PAIRS = [(n, m) for n in ENCODERS for m in MERGING if n not in DENSE and m not in REFUSED.get(n, ())]
each_pair = pytest.mark.parametrize(("name", "method"), PAIRS)
# Tracing takes seconds. All methods are traced in tests/rewrite and tests/test_export.py.
KINDS = ("none", "structsam", "tome", "sparsesam", "cubist")
# SAM-HQ's blocks are SAM's: what differs is the tensor that it hands out of the middle.
TRACED = {
    "HQImageEncoder": ("none", "cubist"),
    "EfficientSamViT": ("none", "structsam", "cubist"),
    "TimmBackbone": ("cubist",),
    "TimmClassifier": ("structsam",),
    **dict.fromkeys(DENSE, ("none",)),
}
each_trace = pytest.mark.parametrize(("name", "method"), [(n, m) for n in ENCODERS for m in TRACED.get(n, KINDS)])
POLICIES = {"residual-consistency": ResidualConsistency(0.5), "merge": MergedMLP()}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy's one line in the registry."""
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    monkeypatch.setitem(registry.HOSTS, "ToyEncoder", "toy_host:ToyHost")


def hq_encoder():
    """SAM-HQ's class with the weights and sizes of SAM's tiny encoder."""
    pytest.importorskip("segment_anything_hq", reason="SAM-HQ's package is an extra")
    from structsam_export.models.families.sam_hq import encoder_class

    encoder = tiny_encoder(image=(96, 96))
    for module in list(encoder.modules()):
        if type(module).__name__ in ("Block", "Attention"):
            module.__class__ = getattr(sys.modules["segment_anything_hq.modeling.image_encoder"], type(module).__name__)
    encoder.__class__ = encoder_class()
    return encoder


def efficient_encoder():
    """EfficientSAM's class, of three blocks: all global, no relative positions."""
    from structsam_export.models.architecture import Architecture, build_encoder
    from structsam_export.models.efficient_sam import EfficientSamViT

    torch.manual_seed(0)
    sizes = EncoderGeometry(96, 16, (6, 6), 28, 3, 2, 56, 16, (0, 0, 0))
    encoder = build_encoder(Architecture(sizes, positions=False), EfficientSamViT)
    torch.nn.init.normal_(encoder.pos_embed, std=0.5)
    return encoder.eval().requires_grad_(False)


def timm_encoder(kind):
    """A tiny model of timm without leading tokens; those are in test_timm.py."""
    pytest.importorskip("timm", reason="timm is an extra")
    import tiny_timms

    return getattr(tiny_timms, kind)()


def outputs_of(encoder, x):
    """What an encoder gives, as a tuple."""
    found = encoder(x)
    return found if isinstance(found, tuple) else (found,)


def embedding_of(encoder, x):
    """The first of them, the image embedding."""
    return outputs_of(encoder, x)[0]


def image_of(encoder, batch=2):
    side = geometry_of(encoder).image_size
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def blocks_for(method, encoder, rate=0.5):
    """The method in all blocks it starts at by default."""
    made, depth = make_method(method, rate), geometry_of(encoder).depth
    return dict.fromkeys(range(made.first_layer(depth), depth), made)


def snapshot(encoder):
    plain = (bool, int, float, str, tuple)
    return (
        [type(module) for module in encoder.modules()],
        [{k: v if isinstance(v, plain) else None for k, v in vars(m).items()} for m in encoder.modules()],
        list(encoder.state_dict()),
    )


def test_every_host_has_its_tiny_encoder():
    assert set(HOSTS) == set(ENCODERS)


@any_host
def test_a_host_says_what_it_can_run(name):
    encoder = ENCODERS[name]()
    refused = [method for method in METHODS if method != "none" and host_of(encoder).refusal(method)]
    assert refused == (MERGING if name in DENSE else list(REFUSED.get(name, ())))
    assert bool(host_of(encoder).blocks(encoder)) == (name not in DENSE) == bool(geometry_of(encoder).depth)


@any_host
def test_a_host_recognises_its_encoder_and_no_other(name):
    encoder = ENCODERS[name]()
    host = host_of(encoder)
    assert type(host).ENCODER == name == type(encoder).__name__
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), encoder)
    assert encoder_of(model) is encoder
    impostor = type(name, (torch.nn.Module,), {})()
    with pytest.raises(UsageError, match=f"name of .* {name} but not its layout"):
        geometry_of(impostor)
    with pytest.raises(UsageError, match=f"Unsupported encoder torch.*Linear.*{name}"):
        host_of(torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match="Identity has no image encoder of a supported class"):
        encoder_of(torch.nn.Identity())


def test_what_a_host_refuses_is_said_with_its_reason():
    check_method(toy_encoder(), "tome")
    with pytest.raises(UsageError, match="--method a method that no toy can run cannot run in ToyEncoder: it is a toy"):
        check_method(toy_encoder(), "a method that no toy can run")


@each_host
def test_views_say_what_the_geometry_says(name):
    encoder = ENCODERS[name]()
    geometry, views = geometry_of(encoder), host_of(encoder).blocks(encoder)
    assert len(views) == geometry.depth
    assert tuple(view.window for view in views) == geometry.windows
    for view in views:
        attn = view.attention
        assert (attn.heads, attn.dim) == (geometry.heads, geometry.dim)
        for parts in ("q", "k", "v", "kv"):
            weight, bias = attn.linear(parts)
            assert weight.shape == (len(parts) * geometry.dim, geometry.dim)
            assert bias is None or bias.shape == (len(weight),)
        if attn.has_positions:
            assert attn.positions(0, 5).shape == attn.positions(1, 5).shape == (5, 5, geometry.head_dim)
        x = torch.randn(1, *geometry.grid, geometry.dim)
        assert torch.equal(view.to_grid(view.from_grid(x), geometry.grid), x)


@each_host
def test_views_compute_the_block(name):
    """Norms, stock attention by windows and MLP put together are the block itself."""
    encoder = ENCODERS[name]()
    geometry = geometry_of(encoder)
    for index, view in enumerate(host_of(encoder).blocks(encoder)):
        grid, x = geometry.window_grid(index), torch.randn(2, *geometry.grid, geometry.dim)
        windows = grid.partition(view.norm1(x))
        y = x + grid.unpartition(view.attention.stock(windows.view(-1, *grid.window_shape, geometry.dim)).flatten(1, 2))
        want = y + view.mlp(view.norm2(y))
        found = view.to_grid(view.module(view.from_grid(x)), geometry.grid)
        assert torch.allclose(found, want, atol=1e-5)


@each_host
def test_views_project_as_the_attention_does(name):
    """Attention written from `linear`, `positions`, `scale` and `output` alone is the stock one."""
    encoder = ENCODERS[name]()
    geometry = geometry_of(encoder)
    attn, (h, w) = host_of(encoder).blocks(encoder)[0].attention, (4, 4)
    x = torch.randn(3, h, w, geometry.dim)
    q, k, v = (
        torch.nn.functional.linear(x.flatten(1, 2), *attn.linear(part)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        for part in "qkv"
    )
    scores = q @ k.transpose(2, 3) * attn.scale
    if attn.has_positions:
        at = q.unflatten(2, (h, w))
        rows = torch.einsum("bnhwc,hkc->bnhwk", at, attn.positions(0, h))
        columns = torch.einsum("bnhwc,wkc->bnhwk", at, attn.positions(1, w))
        scores = scores + (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(4, 5).flatten(2, 3)
    y = attn.output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(y.view(x.shape), attn.stock(x), atol=1e-5)


@each_pair
def test_rate_0_is_the_stock_encoder_to_the_bit(name, method):
    encoder = ENCODERS[name]()
    before, dense = snapshot(encoder), outputs_of(encoder, image_of(encoder))
    with patched(encoder, blocks_for(method, encoder, 0.0)):
        assert snapshot(encoder) == before
        assert all(map(torch.equal, outputs_of(encoder, image_of(encoder)), dense))


@each_pair
@pytest.mark.parametrize("mlp", [None, "merge", "residual-consistency"])
def test_a_patch_decides_what_it_announces_and_is_reversible(name, method, mlp):
    encoder = ENCODERS[name]()
    x, before, blocks = image_of(encoder), snapshot(encoder), blocks_for(method, encoder)
    dense = embedding_of(encoder, x)
    try:
        apply_patch(encoder, blocks, mlp=POLICIES.get(mlp))
    except UsageError:
        assert mlp == "merge" and method in ("cubist", "sparsesam")
        return
    plans = decisions_of(encoder)
    with recording(encoder) as decisions:
        made = embedding_of(encoder, x)
    assert {key: type(decision.plan) for key, decision in decisions.items()} == plans
    assert all(t.dtype == torch.int64 for decision in decisions.values() for t in decision.tensors.values())
    assert made.shape == dense.shape and made.isfinite().all()
    assert not torch.allclose(made, dense, atol=1e-4)
    for i in range(2):  # images of a batch do not mix
        assert torch.allclose(embedding_of(encoder, x[i : i + 1])[0], made[i], atol=1e-5)
    assert snapshot(remove_patch(encoder)) == before
    assert torch.equal(embedding_of(encoder, x), dense)


@each_pair
def test_plans_settle_every_token_of_every_image(name, method):
    encoder = ENCODERS[name]()
    geometry = geometry_of(encoder)
    apply_patch(encoder, blocks_for(method, encoder), mlp=ResidualConsistency(0.5))
    with recording(encoder) as decisions:
        encoder(image_of(encoder))
    assert decisions
    for key, decision in decisions.items():
        parts = {part: t.numpy() for part, t in decision.tensors.items()}
        settled = decision.plan.assignment(parts, geometry.tokens_global)
        assert settled.ndim == 2 and settled.dtype == np.int64
        groups = decision.plan.token_groups(geometry.window_grid(int(key.split(".")[1])))
        assert groups.shape == geometry.grid
        assert len(np.unique(groups)) < geometry.tokens_global, f"{key} treats no two tokens as one"


def merged_by_hand(view, plan, grid, x):
    """One block with merged attention, window by window and head by head in numpy, from views and a plan's indices."""
    attn, dim = view.attention, x.shape[-1]
    y = grid.partition(view.norm1(x)).numpy()
    (q_w, q_b), (k_w, k_b), (v_w, v_b) = ([t.numpy() for t in attn.linear(part)] for part in "qkv")
    tables = [attn.positions(axis, size).numpy() for axis, size in enumerate(grid.window_shape) if attn.has_positions]
    width, d, out = grid.window_shape[1], dim // attn.heads, np.zeros_like(y)
    for window, (tokens, slot, pos) in enumerate(zip(y, plan.slot.numpy(), plan.pos.numpy())):
        slots = np.array([tokens[slot == j].mean(0) for j in range(len(pos))])
        row, column = pos // width, pos % width
        heads = []
        for head in range(attn.heads):
            part = slice(head * d, (head + 1) * d)
            q, k, v = (slots @ w[part].T + b[part] for w, b in ((q_w, q_b), (k_w, k_b), (v_w, v_b)))
            scores = q @ k.T * attn.scale
            if tables:
                scores += np.einsum("nc,nmc->nm", q, tables[0][row[:, None], row] + tables[1][column[:, None], column])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ v)
        out[window] = attn.output(torch.tensor(np.concatenate(heads, 1))).numpy()[slot]
    x = x + grid.unpartition(torch.tensor(out))
    return x + view.mlp(view.norm2(x))


@each_host
@pytest.mark.parametrize("index", [0, 1], ids=["windows with pads", "global"])
def test_structsam_is_merged_attention_written_by_hand(name, index):
    encoder = ENCODERS[name]()
    geometry, view = geometry_of(encoder), host_of(encoder).blocks(encoder)[index]
    seen = {}
    view.module.register_forward_hook(lambda _, given, made: seen.update(given=given[0], made=made))
    with patched(encoder, make_method("structsam", 0.5), [index]), recording(encoder) as decisions:
        encoder(image_of(encoder))
    given, made = (view.to_grid(seen[key], geometry.grid) for key in ("given", "made"))
    plan = decisions[f"plan.{index}"].plan
    want = merged_by_hand(view, plan, geometry.window_grid(index), given)
    assert torch.allclose(made, want, atol=1e-5)


@each_host
def test_methods_see_normalised_tokens_averaged_over_heads(name):
    encoder = ENCODERS[name]()
    with observed(encoder) as stock:
        encoder(image_of(encoder))
    assert sorted(stock) == list(range(geometry_of(encoder).depth))
    with patched(encoder, make_method("structsam", 0.5), range(3)), recording(encoder) as decisions:
        encoder(image_of(encoder))
    assert torch.equal(decisions["plan.0"].inputs[0], stock[0])


@cache
def traced(name, method, mlp=None):
    """Names, PyTorch's outputs for one image, and those of the traced graph on ONNX Runtime."""
    encoder = ENCODERS[name]()
    x = image_of(encoder, batch=1)
    with patched(encoder, blocks_for(method, encoder), mlp=POLICIES.get(mlp)):
        names = [*host_of(encoder).ENCODER_OUTPUTS, *decision_names(encoder)]
        want = [t.numpy() for t in encoder_with_decisions(encoder)(x)]
        return names, want, run(exported(encoder), {"image": x.numpy()})


def exported(encoder):
    """The encoder as traced."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        trace_encoder(encoder, geometry_of(encoder).image_size, path)
        return onnx.load(path)


def test_a_dense_host_is_traced_as_it_is():
    for name in DENSE:
        assert traced(name, "none")[0] == ["image_embeddings"]


@each_trace
def test_onnx_runtime_computes_and_decides_what_pytorch_does(name, method):
    names, want, found = traced(name, method)
    assert list(found) == names
    assert names[0] == "image_embeddings"
    for key, value in zip(names, want):
        if value.dtype == np.int64:
            assert np.array_equal(found[key], value)
        else:
            assert np.abs(found[key] - value).max() < 2e-5


def test_the_toy_differs_from_sam_where_it_should():
    """What makes it a proof: sequences, Linears apart, no relative positions."""
    view = host_of(toy := toy_encoder()).blocks(toy)[0]
    assert not view.attention.has_positions
    assert view.from_grid(torch.zeros(1, 6, 6, 16)).shape == (1, 36, 16)
    assert not hasattr(view.module.attention, "qkv")
    apply_patch(toy, make_method("structsam", 0.5), [0])
    assert list(roles_of(toy)) == [0]
