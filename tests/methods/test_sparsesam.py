"""Which keys SparseSAM visits, against loops written straight from the specification's order and its table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from structsam_export.errors import UsageError
from structsam_export.methods.sparsesam import KeyPlan, SparseSAM, tile_order
from structsam_export.tokens import WindowGrid

SAM, WINDOW = WindowGrid((64, 64)), WindowGrid((64, 64), 14)
# Specification B.3: rate -> (global stripe, its density with the diagonal, keys of a window of 196).
TABLE = {
    0.75: (1024, 0.262, 128),
    0.70: (1216, 0.308, 128),
    0.60: (1600, 0.400, 128),
    0.50: (2048, 0.508, 192),
    0.30: (2816, 0.692, 192),
    0.25: (3072, 0.754, 196),
}
LAYOUTS = {"sam": SAM, "demo": WindowGrid((32, 32)), "wide": WindowGrid((16, 32)), "no blocks": WindowGrid((6, 10))}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
each_rate = pytest.mark.parametrize("rate", [0.0, *TABLE])
each_variant = pytest.mark.parametrize("variant", SparseSAM.VARIANTS)


def random_rank(layout, images=2, seed=0):
    """All different, as `cell_rank` gives them (B, C)."""
    generator = np.random.default_rng(seed)
    return np.array([generator.permutation(layout.tokens // 4) for _ in range(images)]) * 7.0 + 3


def plan_of(rate, layout, variant="stripe", rank=None):
    rank = random_rank(layout) if rank is None else rank
    return SparseSAM(rate, variant).plan(torch.tensor(rank, dtype=torch.float32), layout, len(rank))


def slow_order(rank, grid):
    """All tokens: top-left ones of the cells from most to least important, then top-right, and so on."""
    H, W = grid
    corners = [(r, c) for r in range(0, H, 2) for c in range(0, W, 2)]
    first_to_last = sorted(range(len(corners)), key=lambda cell: rank[cell])
    return [
        (corners[cell][0] + dr) * W + corners[cell][1] + dc for dr in (0, 1) for dc in (0, 1) for cell in first_to_last
    ]


@pytest.mark.parametrize("rate", TABLE)
def test_keys_as_tabulated(rate):
    method = SparseSAM(rate)
    stripe, effective, window = TABLE[rate]
    assert method.kept_keys(SAM) == stripe
    assert method.removed(SAM) == 4096 - stripe
    assert method.paper_keys(SAM) / 4096 == pytest.approx(effective, abs=5e-4)
    assert method.paper_keys(WINDOW) == window
    assert method.kept_keys(WINDOW) == 196 and method.removed(WINDOW) == 0


def test_the_average_over_queries_counts_a_shared_diagonal_once():
    """Of 64 blocks of queries, those in the stripe find their diagonal block there already."""
    assert SparseSAM(0.75).paper_keys(SAM) == (16 * 1024 + 48 * (1024 + 64)) / 64


def test_density_one_is_dense():
    method = SparseSAM(0.0)
    assert method.density == 1
    assert method.kept_keys(SAM) == method.paper_keys(SAM) == 4096
    assert method.paper_keys(WINDOW) == 196
    assert method.removed(SAM) == 0


@pytest.mark.parametrize(
    ("rate", "grid", "kept"),
    [(0.5, (6, 10), 30), (0.7, (6, 10), 18), (0.3, (10, 10), 70), (0.75, (8, 8), 16), (0.75, (2, 2), 1)],
)
def test_grids_that_are_not_whole_blocks(rate, grid, kept):
    """Then single keys count; 60 * 0.3 is 18, whatever floating point makes of 1 - 0.7."""
    assert SparseSAM(rate).kept_keys(WindowGrid(grid)) == kept


@pytest.mark.parametrize("grid", [(63, 64), (64, 63), (7, 9)])
def test_an_odd_side_of_a_global_grid(grid):
    for rate in (0.0, 0.5):
        for question in (SparseSAM(rate).kept_keys, SparseSAM(rate).removed, SparseSAM(rate).needs_rank):
            with pytest.raises(UsageError, match=f"SparseSAM needs an even token grid.*{grid[0]}x{grid[1]}"):
                question(WindowGrid(grid))
    assert SparseSAM(0.5).kept_keys(WindowGrid(grid, 7)) == 49  # windows stay dense, odd or not


@each_rate
@each_layout
def test_keys_as_the_reference(layout, rate):
    rank = random_rank(layout)
    plan = plan_of(rate, layout, rank=rank)
    nk = SparseSAM(rate).kept_keys(layout)
    assert plan.keys.shape == (2, nk) and plan.keys.dtype == torch.int64
    for found, own in zip(plan.keys.tolist(), rank):
        assert len(set(found)) == nk
        assert set(found) == set(slow_order(own, layout.shape)[:nk])


@each_layout
def test_the_last_quarter_is_in_rank_order(layout):
    method, rank = SparseSAM(0.6), random_rank(layout)
    whole = layout.tokens // 4 * (method.kept_keys(layout) // (layout.tokens // 4))
    for found, own in zip(plan_of(0.6, layout, rank=rank).keys.tolist(), rank):
        assert found[whole:] == slow_order(own, layout.shape)[whole : len(found)]
        assert found[:whole] == slow_order(np.arange(len(own)), layout.shape)[:whole]


def test_less_than_a_quarter():
    rank = random_rank(SAM, 1)
    found = plan_of(0.9, SAM, rank=rank).keys[0].tolist()
    assert found == slow_order(rank[0], SAM.shape)[:384]


@each_layout
def test_a_quarter_is_every_second_row_and_column_and_a_half_every_second_row(layout):
    place = np.arange(layout.tokens).reshape(layout.shape)
    for rate, expected in ((0.75, place[::2, ::2]), (0.5, place[::2])):
        plan = SparseSAM(rate).plan(None, layout, 2)
        assert plan.fixed
        assert [sorted(keys) for keys in plan.keys.tolist()] == [expected.flatten().tolist()] * 2
    assert plan_of(0.75, layout).keys[0].tolist() == place[::2, ::2].flatten().tolist()


@pytest.mark.parametrize("rate", TABLE)
def test_a_rank_is_needed_between_whole_quarters_only(rate):
    assert SparseSAM(rate).needs_rank(SAM) == (rate not in (0.25, 0.5, 0.75))
    assert plan_of(rate, SAM).fixed == (rate in (0.25, 0.5, 0.75))
    assert not SparseSAM(rate).needs_rank(WINDOW)
    assert not SparseSAM(0.0).needs_rank(SAM)


def test_fixed_keys_ignore_the_rank():
    assert torch.equal(plan_of(0.5, SAM).keys, SparseSAM(0.5).plan(None, SAM, 2).keys)


@each_variant
def test_shapes_do_not_depend_on_the_image(variant):
    layout = LAYOUTS["wide"]
    a, b = (plan_of(0.6, layout, variant, random_rank(layout, seed=seed)) for seed in (0, 1))
    assert a.keys.shape == b.keys.shape and a.tile == b.tile == (16 if variant == "diagonal" else 0)
    assert not torch.equal(a.keys, b.keys)


def test_an_image_gets_the_same_keys_in_any_batch():
    layout, rank = LAYOUTS["wide"], random_rank(LAYOUTS["wide"], 3)
    alone = [plan_of(0.6, layout, rank=own[None]).keys for own in rank]
    assert torch.equal(plan_of(0.6, layout, rank=rank).keys, torch.cat(alone))


@pytest.mark.parametrize("rate", [0.5, 0.6])
def test_decision_and_rows_of_the_keys(rate):
    layout = LAYOUTS["wide"]
    plan = plan_of(rate, layout)
    member = plan.membership(layout.tokens)
    assert member.dtype == torch.int64
    assert member.tolist() == [[int(t in set(keys)) for t in range(layout.tokens)] for keys in plan.keys.tolist()]
    x = torch.randn(2, layout.tokens, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plan.pick(x), torch.stack([row[keys] for row, keys in zip(x, plan.keys)]))


@pytest.mark.parametrize(("grid", "side"), [((64, 64), 16), ((48, 16), 16), ((8, 24), 8), ((12, 20), 4), ((6, 10), 2)])
def test_tiles_group_tokens_by_place_and_parity(grid, side):
    H, W = grid
    groups = tile_order(grid)
    assert sorted(t for group in groups for t in group) == list(range(H * W))
    assert {len(group) for group in groups} == {side * side // 4}
    for group in groups:
        kinds = {(t // W // side, t % W // side, t // W % 2, t % W % 2) for t in group}
        assert len(kinds) == 1


def test_keys_name_their_part():
    assert KeyPlan.PARTS == ("keys",)
    assert [f.name for f in dataclasses.fields(KeyPlan)][0] == "keys"


def test_a_method_describes_itself():
    method = SparseSAM()
    assert (method.rate, method.variant) == (0.5, next(iter(SparseSAM.VARIANTS)))
    assert SparseSAM.VARIANTS == {"stripe": 0.75, "diagonal": 0.75}
    assert SparseSAM.NAME == "sparsesam"
    assert SparseSAM.PROTECTS and "2605.17633" in SparseSAM.SOURCE
    assert method.macs(SAM, 64) == 0
    assert hash(method) == hash(SparseSAM(0.5, "stripe"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.rate = 0.1
