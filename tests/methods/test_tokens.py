"""Layouts cut a grid into windows exactly as segment_anything does."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition

from structsam_export.tokens import WindowGrid

WINDOWED = {
    "sam": WindowGrid((64, 64), 14),
    "demo": WindowGrid((32, 32), 12),
    "wide": WindowGrid((6, 10), 4),
    "pads below only": WindowGrid((6, 8), 4),
    "pads right only": WindowGrid((8, 6), 4),
    "no pads": WindowGrid((8, 12), 4),
}
each_windowed = pytest.mark.parametrize("layout", WINDOWED.values(), ids=WINDOWED)


def random_map(layout):
    return torch.randn(2, *layout.shape, 3, generator=torch.Generator().manual_seed(0))


@each_windowed
def test_windows_are_those_of_segment_anything(layout):
    x = random_map(layout)
    expected, padded = window_partition(x, layout.window)
    found = layout.partition(x)
    assert torch.equal(found, expected.flatten(1, 2))
    assert layout.window_counts == tuple(side // layout.window for side in padded)
    assert layout.tokens == layout.window**2 == found.shape[1]
    assert torch.equal(layout.unpartition(found), window_unpartition(expected, layout.window, padded, layout.shape))


@each_windowed
def test_pads_are_the_tokens_beyond_the_grid(layout):
    real = layout.partition(torch.ones(1, *layout.shape, 1)).squeeze(-1).bool()
    assert torch.equal(torch.tensor(layout.pads()), ~real)
    assert layout.has_pads == (not real.all())


@each_windowed
def test_cutting_and_putting_back_is_the_identity(layout):
    x = random_map(layout)
    assert torch.equal(layout.unpartition(layout.partition(x)), x)


def test_pads_hold_the_fill_value():
    layout = WINDOWED["wide"]
    filled = layout.partition(torch.zeros(1, *layout.shape, 1), fill=-5.0).squeeze(-1)
    assert torch.equal(filled == -5, torch.tensor(layout.pads()))


def test_the_whole_grid_is_one_call():
    layout = WindowGrid((9, 7))
    x = random_map(layout)
    assert (layout.window_shape, layout.window_counts, layout.tokens, layout.has_pads) == ((9, 7), (1, 1), 63, False)
    assert torch.equal(layout.partition(x), x.flatten(1, 2))
    assert torch.equal(layout.unpartition(layout.partition(x)), x)
    assert not any(layout.pads()[0])
