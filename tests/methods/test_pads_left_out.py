"""Slots that hold pads alone: known before any image is seen, and left out where nothing looks at neighbours."""

from __future__ import annotations

import pytest
import torch

from structsam_export.methods import make_method
from structsam_export.tokens import Tokens, WindowGrid

METHODS = ("structsam", "algm")
LAYOUTS = [WindowGrid((10, 10), 4), WindowGrid((9, 16), 6), WindowGrid((32, 32), 14), WindowGrid((64, 64), 14)]
RATES = (0.1, 0.25, 0.5, 0.7)


def planned(name, rate, layout, images=2):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, *layout.shape, 8, generator=generator)
    return make_method(name, rate, None).plan(Tokens(features, layout))


def empty_slots(plan, layout):
    """By the plan alone, slot by slot: those all of whose tokens are pads, for every call of every image."""
    found = []
    for call, slots in enumerate(plan.slot.tolist()):
        pads = layout.pads()[call % layout.windows]
        real = {slot for slot, pad in zip(slots, pads) if not pad}
        found.append(set(range(plan.kept)) - real)
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.shape}/{layout.window}")
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", METHODS)
def test_slots_of_pads_are_known_without_the_image(name, rate, layout):
    plan = planned(name, rate, layout)
    found = empty_slots(plan, layout)
    assert any(plan.pads)
    for call, slots in enumerate(found):
        listed = plan.pads[call % layout.windows]
        assert len(set(listed)) == len(listed) and set(listed) <= slots
        if layout.shape[0] % 2 == layout.shape[1] % 2 == 0:  # no cell mixes pads and real tokens
            assert set(listed) == slots


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.shape}/{layout.window}")
@pytest.mark.parametrize("name", METHODS)
def test_real_tokens_get_the_same(name, layout):
    plan = planned(name, 0.5, layout)
    x = torch.randn(plan.slot.shape[0], layout.tokens, 3)
    rows = []

    def compute(slots):
        rows.append(slots[..., 0].numel())
        return torch.sin(slots) + 1

    whole = layout.unpartition(plan.through(x, lambda slots, _: compute(slots)))
    assert torch.equal(layout.unpartition(plan.through_real(x, compute)), whole)
    assert rows[0] - rows[1] == 2 * sum(map(len, plan.pads)) > 0


def test_windows_without_pads_compute_all():
    plan = planned("structsam", 0.5, WindowGrid((8, 8), 4))
    assert not any(plan.pads)
    shapes = []
    plan.through_real(torch.zeros(8, 16, 3), lambda slots: shapes.append(slots.shape) or slots)
    assert shapes == [(8, plan.kept, 3)]


def test_pads_that_are_plain_tokens_are_not_left_out():
    """The thesis' code lets pads compete with real tokens: where they end depends on the image."""
    method = make_method("algm", 0.5, None, compat="thesis")
    plan = method.plan(Tokens(torch.randn(1, 10, 10, 8), LAYOUTS[0]))
    assert not plan.pads
