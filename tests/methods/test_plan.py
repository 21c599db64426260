"""MergePlan: the three ways to reduce, and images that do not disturb each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from structsam_export.methods.plan import MergePlan, rows

# Two images of 6 tokens: the last two slots are destinations with two sources each, in different places.
POS = torch.tensor([[1, 4], [0, 3]])
SLOT = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 0]])
SOURCES = torch.tensor([[0, 2, 3, 5], [2, 5, 1, 4]])


def plan(**changes):
    return MergePlan(POS, SLOT, SOURCES, 2, **changes)


@pytest.fixture
def x():
    return torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))


def test_mean_by_hand():
    x = torch.tensor([[0.0, 3.0, 6.0, 10.0, 20.0, 60.0], [1.0, 2.0, 3.0, 4.0, 6.0, 8.0]]).unsqueeze(-1)
    assert plan(equal=True).merge(x).squeeze(-1).tolist() == [[3.0, 30.0], [4.0, 4.0]]


def test_one_hot_path_equals_equal_cell_path(x):
    assert torch.allclose(plan(equal=True).merge(x), plan(equal=False).merge(x), atol=1e-6)


def test_one_hot_path_does_not_need_runs(x):
    shuffled = SOURCES[:, [3, 0, 2, 1]]
    assert torch.allclose(MergePlan(POS, SLOT, shuffled, 2).merge(x), plan().merge(x), atol=1e-6)


def test_ragged_groups_and_single_tokens(x):
    """Slot 0 stands alone, slot 1 is a destination without sources, slot 2 has three."""
    ragged = MergePlan(
        pos=torch.tensor([[5, 0, 2]]),
        slot=torch.tensor([[1, 2, 2, 2, 2, 0]]),
        sources=torch.tensor([[1, 3, 4]]),
        groups=2,
    )
    x = x[:1]
    expected = torch.stack([x[0, 5], x[0, 0], x[0, 1:5].mean(0)])[None]
    assert torch.allclose(ragged.merge(x), expected, atol=1e-6)


def test_sizes_are_the_tokens_that_slots_hold():
    ragged = MergePlan(torch.tensor([[5, 0, 2]]), torch.tensor([[1, 2, 2, 2, 2, 0]]), torch.tensor([[1, 3, 4]]), 2)
    assert ragged.sizes is None
    assert dataclasses.replace(ragged, proportional=True).sizes.tolist() == [[1, 1, 4]]
    assert plan(proportional=True).sizes.tolist() == [[3, 3], [3, 3]]
    assert plan(proportional=True, equal=True).sizes.tolist() == [[3, 3]]


@pytest.mark.parametrize("equal", [True, False])
def test_replace_keeps_the_destination_alone(x, equal):
    merged = plan(reduce="replace", equal=equal).merge(x)
    assert torch.equal(merged, torch.stack([x[0, [1, 4]], x[1, [0, 3]]]))


@pytest.mark.parametrize("equal", [True, False])
def test_images_of_a_batch_are_independent(x, equal):
    alone = [
        MergePlan(POS[i : i + 1], SLOT[i : i + 1], SOURCES[i : i + 1], 2, equal=equal).merge(x[i : i + 1])
        for i in range(2)
    ]
    assert torch.allclose(plan(equal=equal).merge(x), torch.cat(alone), atol=1e-6)
    other = torch.cat([x[:1], x[1:] + 7])
    assert torch.equal(plan(equal=equal).merge(other)[0], plan(equal=equal).merge(x)[0])


def test_unmerge_copies_to_every_member(x):
    y = x[:, :2]
    assert torch.equal(plan().unmerge(y), torch.stack([y[0, [0, 0, 0, 1, 1, 1]], y[1, [0, 1, 0, 1, 1, 0]]]))


def test_destination_names_tokens_not_slots():
    assert plan().destination().tolist() == [[1, 1, 1, 4, 4, 4], [0, 3, 0, 3, 3, 0]]
    flipped = MergePlan(POS.flip(1), 1 - SLOT, SOURCES, 2)
    assert torch.equal(flipped.destination(), plan().destination())


def test_merging_keeps_the_type():
    half = torch.ones(2, 6, 3, dtype=torch.float16)
    assert plan().merge(half).dtype == plan(equal=True).merge(half).dtype == torch.float16


def test_rows_picks_whole_rows(x):
    assert torch.equal(rows(x, torch.tensor([[5, 5, 0], [1, 2, 3]])), torch.stack([x[0, [5, 5, 0]], x[1, [1, 2, 3]]]))


def test_a_plan_is_frozen_and_counts_its_slots():
    assert plan().kept == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().groups = 3
