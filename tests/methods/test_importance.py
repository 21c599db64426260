"""The ranking of 2x2 cells against a slow reference, written from the specification with plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from structsam_export.errors import UsageError
from structsam_export.methods.importance import EXACT, cell_rank, head_scores

GRIDS = {"square": (8, 8), "wide": (6, 10), "odd": (7, 9), "two cells": (2, 4)}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def random_keys(grid, images=2, heads=3, channels=5, seed=0, mean=0.0):
    """Random keys (B, heads, N, d) in double precision."""
    return np.random.default_rng(seed).normal(mean, 1, (images, heads, grid[0] * grid[1], channels))


def cells_of(keys, grid):
    """The four keys of every whole cell (C, 4, d), cells in raster order."""
    H, W = grid
    return np.array(
        [
            [keys[r * W + c], keys[r * W + c + 1], keys[(r + 1) * W + c], keys[(r + 1) * W + c + 1]]
            for r in range(0, H - 1, 2)
            for c in range(0, W - 1, 2)
        ]
    )


def z(values):
    return (values - np.mean(values)) / (np.std(values, ddof=1) + 1e-6)


def slow_scores(keys, grid):
    """z(sigma) + z(-sim) of one head, keys (N, d)."""
    cells = cells_of(keys, grid)
    sigma = np.array([np.mean([np.std(cell[:, i], ddof=1) for i in range(cell.shape[1])]) for cell in cells])
    means = [cell.mean(0) for cell in cells]
    units = np.array([mean / np.linalg.norm(mean) for mean in means])
    sim = np.array([np.mean([a @ b for j, b in enumerate(units) if j != i]) for i, a in enumerate(units)])
    return z(sigma) + z(-sim)


def slow_rank(keys, grid):
    """Ranks of one image's cells, keys (heads, N, d): head by head, then summed, ties by index."""
    total = 0
    for head in keys:
        scores = slow_scores(head, grid)
        place = np.zeros(len(scores))
        for position, cell in enumerate(sorted(range(len(scores)), key=lambda i: -scores[i])):
            place[cell] = position
        total = total + place
    return total * len(total) + np.arange(len(total))


def fast_rank(keys, grid):
    return cell_rank(torch.tensor(keys, dtype=torch.float32), grid)


@each_grid
def test_ranks_as_the_reference(grid):
    for seed in range(5):
        keys = random_keys(grid, seed=seed)
        assert np.array_equal(fast_rank(keys, grid).numpy(), [slow_rank(image, grid) for image in keys])


@each_grid
def test_scores_as_the_reference(grid):
    keys = random_keys(grid)
    found = head_scores(torch.tensor(keys, dtype=torch.float64), grid)
    assert np.allclose(found, [[slow_scores(head, grid) for head in image] for image in keys], atol=1e-9)


def test_keys_that_are_nearly_the_same_are_still_told_apart():
    """All cosines are 1 - 1e-6 here: summing them in float32 would leave nothing but rounding."""
    grid = (16, 16)
    keys = random_keys(grid, images=1, heads=1, seed=1, mean=1000.0)
    expected = slow_rank(keys[0], grid)
    assert np.corrcoef(fast_rank(keys, grid)[0].numpy(), expected)[0, 1] > 0.9999


def test_whole_numbers_all_different_at_sams_size():
    rank = fast_rank(random_keys((64, 64), images=1, heads=16, channels=4), (64, 64))
    assert rank.shape == (1, 1024)
    assert rank.dtype == torch.float32
    assert torch.equal(rank, rank.round())
    assert len(rank[0].unique()) == 1024
    assert rank.min() >= 0 and rank.max() < EXACT
    assert torch.equal(rank[0].long() % 1024, torch.arange(1024))


def test_a_varied_cell_comes_first_and_a_flat_common_one_does_not():
    """One cell of an otherwise nearly constant grid has keys that differ from each other and from the rest."""
    grid = (8, 8)
    keys = 1 + 0.01 * random_keys(grid, images=1)
    for token in (18, 19, 26, 27):  # rows 2-3, columns 2-3: cell 5
        keys[0, :, token] = np.random.default_rng(token).normal(0, 1, (3, 5))
    assert fast_rank(keys, grid)[0].argmin() == 5


def test_each_half_of_the_score_counts():
    """A cell of one value unlike the others', and a cell with spread about the common mean, both beat the rest."""
    grid = (8, 8)
    keys = np.ones((1, 2, 64, 2)) + 0.01 * random_keys(grid, images=1, heads=2, channels=2)
    keys[0, :, [0, 1, 8, 9]] *= np.array([1, -1])  # cell 0: another direction
    keys[0, :, [6, 15]] += 0.5  # cell 3: spread, same mean
    keys[0, :, [7, 14]] -= 0.5
    assert set(fast_rank(keys, grid)[0].argsort()[:2].tolist()) == {0, 3}


def test_heads_that_disagree_tie_by_index():
    keys = random_keys((4, 4), images=1, heads=1)
    cells = keys.reshape(1, 1, 2, 2, 2, 2, 5)
    first, second = cells.copy(), cells.copy()
    second[:, :, 0, :, 0], second[:, :, 1, :, 1] = first[:, :, 1, :, 1], first[:, :, 0, :, 0]  # cells 0 and 3 swapped
    both = np.concatenate([first, second], 1).reshape(1, 2, 16, 5)
    rank = fast_rank(both, (4, 4))[0]
    assert rank[3] - rank[0] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_ranks_are_single_precision_whatever_comes_in(dtype):
    assert cell_rank(torch.tensor(random_keys((8, 8)), dtype=dtype), (8, 8)).dtype == torch.float32


def test_an_image_is_ranked_alike_in_any_batch():
    keys = random_keys((6, 10), images=3)
    alone = torch.cat([fast_rank(keys[i : i + 1], (6, 10)) for i in range(3)])
    assert torch.equal(fast_rank(keys, (6, 10)), alone)


def test_equal_keys_everywhere_still_give_an_order():
    for keys in (torch.ones(1, 2, 16, 3), torch.zeros(1, 2, 16, 3)):
        rank = cell_rank(keys, (4, 4))
        assert rank.isfinite().all() and len(rank.unique()) == 4


def test_a_single_cell():
    assert cell_rank(torch.randn(2, 3, 4, 5), (2, 2)).tolist() == [[0.0], [0.0]]


def test_too_many_cells_for_float32():
    with pytest.raises(UsageError, match="Cannot rank 2304 cells of 16 heads"):
        cell_rank(torch.zeros(1, 16, 96 * 96, 1), (96, 96))
