"""The MLP on important cells only: who is updated, and that nobody else changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from graphs import run

from structsam_export.errors import UsageError
from structsam_export.methods.importance import cell_rank
from structsam_export.methods.mlp import KeepPlan, ResidualConsistency

GRIDS = {"sam": (64, 64), "wide": (6, 10), "odd": (7, 9), "odd rows": (5, 8)}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
each_density = pytest.mark.parametrize("density", [0.25, 0.3, 0.5, 1.0])


def random_rank(grid, images=2, seed=0):
    generator = np.random.default_rng(seed)
    cells = (grid[0] // 2) * (grid[1] // 2)
    return torch.tensor(np.array([generator.permutation(cells) for _ in range(images)]) * 5.0, dtype=torch.float32)


def slow_kept(rank, grid, density):
    """The tokens of one image whose MLP runs: the best cells' four, and all that are in no cell."""
    H, W = grid
    corners = [(r, c) for r in range(0, H - 1, 2) for c in range(0, W - 1, 2)]
    wanted = round(round(density * H * W) / 4)
    best = sorted(range(len(corners)), key=lambda cell: rank[cell])[: max(1, min(wanted, len(corners)))]
    kept = {(corners[cell][0] + i) * W + corners[cell][1] + j for cell in best for i in (0, 1) for j in (0, 1)}
    return kept | {r * W + c for r in range(H) for c in range(W) if r == H - H % 2 or c == W - W % 2}


def tokens_of(grid, images=2, channels=3):
    return torch.randn(images, grid[0] * grid[1], channels, generator=torch.Generator().manual_seed(0))


# Specification B.4's round(density * 4096) = 1024, 1229, 1638, 2048, in whole cells of four.
@pytest.mark.parametrize(
    ("density", "k"), [(0.25, 1024), (0.3, 1228), (0.4, 1640), (0.5, 2048), (0.7, 2868), (1, 4096)]
)
def test_kept_tokens_at_sams_size(density, k):
    assert ResidualConsistency(density).kept((64, 64)) == k
    assert abs(k - round(density * 4096)) <= 2


@pytest.mark.parametrize(
    ("density", "grid", "k"),
    [(0.5, (7, 9), 4 * 8 + 15), (1.0, (7, 9), 63), (0.9, (7, 9), 63), (0.01, (6, 10), 4), (0.5, (2, 2), 4)],
)
def test_kept_tokens_of_small_and_odd_grids(density, grid, k):
    assert ResidualConsistency(density).kept(grid) == k


@each_density
@each_grid
def test_tokens_as_the_reference(grid, density):
    method, rank = ResidualConsistency(density), random_rank(grid)
    plan = method.plan(rank, grid)
    assert plan.keep.shape == (2, method.kept(grid)) and plan.slot.shape == (2, grid[0] * grid[1])
    assert plan.keep.dtype == plan.slot.dtype == torch.int64
    for found, own in zip(plan.keep.tolist(), rank.tolist()):
        assert len(set(found)) == len(found)
        assert set(found) == slow_kept(own, grid, density)


@each_density
@each_grid
def test_slots_and_kept_tokens_map_to_each_other(grid, density):
    plan = ResidualConsistency(density).plan(random_rank(grid), grid)
    k = plan.keep.shape[1]
    for keep, slot in zip(plan.keep.tolist(), plan.slot.tolist()):
        assert [slot[token] for token in keep] == list(range(k))
        assert {slot[token] for token in set(range(len(slot))) - set(keep)} <= {k}


@each_density
@each_grid
def test_kept_tokens_are_updated_and_all_others_stay_to_the_bit(grid, density):
    plan, x = ResidualConsistency(density).plan(random_rank(grid), grid), tokens_of(grid)
    seen = []

    def update(part):
        seen.append(part.shape)
        return part.square() + 1

    y = plan.apply(x, update)
    assert seen == [(2, plan.keep.shape[1], 3)]
    for before, after, keep in zip(x, y, plan.keep):
        kept = torch.zeros(len(before), dtype=torch.bool)
        kept[keep] = True
        assert torch.equal(after[kept], before[kept] + (before[kept].square() + 1))
        assert torch.equal(after[~kept], before[~kept])


def test_an_image_is_planned_alike_in_any_batch():
    grid, rank = (6, 10), random_rank((6, 10), 3)
    together = ResidualConsistency(0.4).plan(rank, grid)
    for i in range(3):
        alone = ResidualConsistency(0.4).plan(rank[i : i + 1], grid)
        assert torch.equal(alone.keep[0], together.keep[i]) and torch.equal(alone.slot[0], together.slot[i])


@pytest.mark.parametrize("density", [0.0, -0.5, 1.01, float("nan")])
def test_density_out_of_range(density):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        ResidualConsistency(density)


def test_parts_are_the_fields():
    plan = KeepPlan(torch.zeros(1, 1), torch.zeros(1, 4))
    assert [getattr(plan, part).shape[1] for part in KeepPlan.PARTS] == [1, 4]
    assert KeepPlan.PARTS == ("keep", "slot")


def test_the_same_in_onnx():
    """From keys to updated tokens, two images at once, with an odd row and column."""
    grid, method = (7, 9), ResidualConsistency(0.4)

    class Module(torch.nn.Module):
        def forward(self, keys, x):
            plan = method.plan(cell_rank(keys, grid), grid)
            return plan.apply(x, lambda part: part * 2 + 1), plan.keep, plan.slot

    generator = torch.Generator().manual_seed(1)
    keys, x = torch.randn(2, 3, 63, 4, generator=generator), tokens_of(grid)
    program = torch.onnx.export(Module().eval(), (keys, x), dynamo=True, opset_version=18, verbose=False)
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    assert not {n.op_type for n in model.graph.node} & {"NonZero", "Compress", "If", "Loop", "ScatterND", "OneHot"}
    for node in model.graph.node:
        if node.op_type == "ScatterElements":
            assert all(a.s in (b"", b"none") for a in node.attribute if a.name == "reduction")
    found = list(run(model, {"keys": keys.numpy(), "x": x.numpy()}).values())
    y, keep, slot = Module()(keys, x)
    assert np.array_equal(found[1], keep) and np.array_equal(found[2], slot)
    assert np.array_equal(found[0], y)
