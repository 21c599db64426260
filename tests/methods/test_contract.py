"""What `patch`, `trace` and `rewrite` rely on, checked for every method of the registry on every kind of layer.

A new method gets all of it by its registry line. Cases in which a method removes nothing have no plan to check.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch

from structsam_export.errors import UsageError
from structsam_export.methods import METHODS, make_method, method_class
from structsam_export.methods.base import MergeMethod
from structsam_export.methods.plan import REDUCTIONS
from structsam_export.tokens import Tokens, WindowGrid

IMAGES, CHANNELS = 2, 6
LAYOUTS = {
    "sam-global": WindowGrid((64, 64)),
    "sam-window": WindowGrid((64, 64), 14),
    "demo-global": WindowGrid((32, 32)),
    "demo-window": WindowGrid((32, 32), 12),
    "odd": WindowGrid((9, 7)),
}
RATES = (0.0, 0.25, 0.5, "max")
VARIANTS = [(name, variant) for name in METHODS for variant in method_class(name).VARIANTS]
# Only merging methods give a MergePlan; other kinds have tests of their own beside their files.
PLANS = [(name, variant) for name, variant in VARIANTS if issubclass(method_class(name), MergeMethod)]

each_method = pytest.mark.parametrize("name", METHODS)
each_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)


class Case(NamedTuple):
    """One method on one kind of layer."""

    name: str
    variant: str
    where: str
    rate: float

    @property
    def layout(self):
        return LAYOUTS[self.where]

    @property
    def method(self):
        return make_method(self.name, self.rate, self.variant)

    def __str__(self):
        return f"{self.name}-{self.variant}-{self.where}-{self.rate:g}"


def rates_of(name, variant):
    """The rates of RATES that this variant accepts."""
    most = method_class(name).VARIANTS[variant]
    return sorted({most if rate == "max" else rate for rate in RATES if rate == "max" or rate <= most})


ALL = [Case(*which, where, rate) for which in PLANS for where in LAYOUTS for rate in rates_of(*which)]
MERGING = [case for case in ALL if case.method.removed(case.layout) > 0]
PADDED = [case for case in MERGING if case.layout.has_pads]
SMALL = [case for case in MERGING if not case.where.startswith("sam")]

each_merging = pytest.mark.parametrize("case", MERGING, ids=str)


@lru_cache(maxsize=len(LAYOUTS) * 2)
def features_of(layout, seed=0):
    """Random features (IMAGES, H, W, CHANNELS) that share a direction, as a trained block's tokens do."""
    noise = torch.randn(IMAGES, *layout.shape, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return noise + 2


@lru_cache(maxsize=len(MERGING) * 2)
def plan_of(case, seed=0):
    return case.method.plan(Tokens(features_of(case.layout, seed), case.layout))


def calls(layout):
    return IMAGES * layout.window_counts[0] * layout.window_counts[1]


def pads_of(layout):
    """Which tokens are pads (calls, N)."""
    return torch.tensor(layout.pads()).repeat(IMAGES, 1)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_removed_keeps_to_the_rate(case):
    removed = case.method.removed(case.layout)
    assert isinstance(removed, int)
    assert 0 <= removed <= case.rate * case.layout.tokens + 1e-6
    assert removed == 0 or case.rate > 0


@each_merging
def test_shapes_are_constants_of_layout_and_rate(case):
    B, N = calls(case.layout), case.layout.tokens
    removed = case.method.removed(case.layout)
    for seed in (0, 1):
        plan = plan_of(case, seed)
        assert plan.pos.shape == (B, N - removed)
        assert plan.slot.shape == (B, N)
        assert plan.sources.shape == (B, removed)
        assert plan.kept == N - removed
        assert plan.groups == plan_of(case).groups
        assert plan.reduce in REDUCTIONS
        assert {plan.pos.dtype, plan.slot.dtype, plan.sources.dtype} == {torch.int64}


@each_merging
def test_slots_and_tokens_map_to_each_other(case):
    plan, N = plan_of(case), case.layout.tokens
    every_slot = torch.arange(plan.kept).expand(len(plan.pos), -1)
    assert torch.equal(plan.slot.gather(1, plan.pos), every_slot)
    assert torch.equal(torch.cat([plan.pos, plan.sources], 1).sort(1).values, torch.arange(N).expand(len(plan.pos), -1))
    assert plan.slot.min() >= 0 and plan.slot.max() < plan.kept


@each_merging
def test_destinations_are_kept_tokens(case):
    plan = plan_of(case)
    destination = plan.destination()
    for found, pos, sources in zip(destination.numpy(), plan.pos.numpy(), plan.sources.numpy()):
        kept = set(pos.tolist())
        assert all(found[token] == token for token in kept)
        assert set(found[sources].tolist()) <= kept


@each_merging
def test_only_the_last_slots_hold_several_tokens(case):
    plan = plan_of(case)
    held = torch.zeros_like(plan.pos).scatter_add(1, plan.slot, torch.ones_like(plan.slot))
    single = held[:, : plan.kept - plan.groups]
    assert torch.equal(single, torch.ones_like(single))
    assert held.min() >= 1
    if plan.equal:
        owner = plan.slot.gather(1, plan.sources) - (plan.kept - plan.groups)
        run = torch.arange(plan.groups).repeat_interleave(plan.sources.shape[1] // plan.groups)
        assert torch.equal(owner, run.expand(len(owner), -1))


@each_merging
def test_merge_is_the_mean_of_each_group(case):
    plan = plan_of(case)
    x = torch.randn(calls(case.layout), case.layout.tokens, 3, generator=torch.Generator().manual_seed(2))
    merged = plan.merge(x).numpy()
    for call in {0, len(x) // 2, len(x) - 1}:  # Python loops: not every window
        tokens, pos = x[call].double().numpy(), plan.pos[call].tolist()
        members = [[] for _ in pos]
        for token, slot in enumerate(plan.slot[call].tolist()):
            members[slot].append(tokens[token])
        if plan.reduce == "replace":
            members = [[tokens[token]] for token in pos]
        assert np.allclose(merged[call], [sum(group) / len(group) for group in members], atol=1e-5)


@each_merging
def test_unmerge_copies(case):
    plan = plan_of(case)
    y = torch.randn(calls(case.layout), plan.kept, 3, generator=torch.Generator().manual_seed(3))
    out = plan.unmerge(y)
    assert out.shape == (len(y), case.layout.tokens, 3)
    assert all(torch.equal(row, y[call][slots]) for call, (row, slots) in enumerate(zip(out, plan.slot)))


@each_merging
def test_equal_tokens_merge_without_loss(case):
    plan = plan_of(case)
    value = torch.randn(calls(case.layout), case.layout.tokens, 3, generator=torch.Generator().manual_seed(4))
    x = torch.stack([v[d] for v, d in zip(value, plan.destination())])
    assert torch.allclose(plan.unmerge(plan.merge(x)), x, atol=1e-6)


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_pads_and_real_tokens_never_share_a_slot(case):
    pads, plan = pads_of(case.layout), plan_of(case)
    assert torch.equal(pads, pads.gather(1, plan.destination()))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_an_image_is_merged_alike_in_any_batch(case):
    layout, together = case.layout, plan_of(case).destination()
    features = features_of(layout)
    alone = [case.method.plan(Tokens(image[None], layout)).destination() for image in features]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_macs_are_counted_in_whole_numbers(case):
    macs = case.method.macs(case.layout, 64)
    assert isinstance(macs, int)
    assert macs >= 0


@each_method
def test_a_method_describes_itself(name):
    cls = method_class(name)
    default = make_method(name)
    assert name == cls.NAME
    assert default.variant == next(iter(cls.VARIANTS))
    assert 0 <= default.rate <= cls.VARIANTS[default.variant] <= 1
    assert cls.PROTECTS
    assert cls.SOURCE


@each_variant
def test_a_method_is_a_frozen_value(name, variant):
    method = make_method(name, variant=variant)
    assert method.variant == variant
    assert method == make_method(name, variant=variant)
    assert hash(method) == hash(make_method(name, variant=variant))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.rate = 0.1


@pytest.mark.parametrize(("name", "variant"), [v for v in VARIANTS if v[0] != "none"])
@pytest.mark.parametrize("beyond", [0.01, float("nan"), -2.0])
def test_rate_out_of_range_names_the_maximum(name, variant, beyond):
    most = method_class(name).VARIANTS[variant]
    assert make_method(name, most, variant).rate == most
    with pytest.raises(UsageError, match=f"--rate {most:g} or less"):
        make_method(name, most + beyond, variant)


def test_the_dense_model_has_no_rate():
    assert make_method("none", 0.5) == make_method("none")


@each_method
def test_a_misspelt_method_gets_a_suggestion(name):
    with pytest.raises(UsageError, match=f"Did you mean '{name}'") as raised:
        make_method(name[:-1] + "x")
    assert all(known in str(raised.value) for known in METHODS)


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(UsageError, match="Unknown method '42'") as raised:
        make_method("42")
    assert all(known in str(raised.value) for known in METHODS)
    assert "Did you mean" not in str(raised.value)


@each_method
def test_an_unknown_variant_lists_the_known_ones(name):
    with pytest.raises(UsageError, match="has no variant 'tartan'") as raised:
        make_method(name, variant="tartan")
    assert all(variant in str(raised.value) for variant in method_class(name).VARIANTS)
