"""StructSAM's decisions against a slow reference, written from the paper's figure with plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from structsam_export.methods import make_method
from structsam_export.methods.energy import sobel_energy
from structsam_export.methods.matching import similarity, unit_features
from structsam_export.methods.structsam import StructSAM
from structsam_export.tokens import Tokens, WindowGrid

SX = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
SY = ((-1, -2, -1), (0, 0, 0), (1, 2, 1))
PAD = None

LAYOUTS = {
    "sam-window": WindowGrid((64, 64), 14),
    "demo-global": WindowGrid((32, 32)),
    "demo-window": WindowGrid((32, 32), 12),
    "wide": WindowGrid((6, 10), 4),
    "odd": WindowGrid((9, 7)),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
each_variant = pytest.mark.parametrize("variant", StructSAM.VARIANTS)
each_rate = pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])


def features(grid, channels=4, seed=0, mean=1.0):
    """Random features (H, W, C) in double precision."""
    return np.random.default_rng(seed).normal(mean, 1, (*grid, channels))


def slow_energy(x):
    """sqrt(mean over channels of gx^2 + gy^2), one token at a time, border repeated."""
    H, W, C = x.shape
    energy = np.zeros((H, W))
    for r in range(H):
        for c in range(W):
            gx, gy = np.zeros(C), np.zeros(C)
            for i in range(3):
                for j in range(3):
                    near = x[min(max(r + i - 1, 0), H - 1), min(max(c + j - 1, 0), W - 1)]
                    gx += SX[i][j] * near
                    gy += SY[i][j] * near
            energy[r, c] = math.sqrt(np.mean(gx**2 + gy**2))
    return energy


def windows_of(layout):
    """Per attention call, the grid coordinates of its tokens; PAD beyond the grid."""
    (H, W), size = layout.shape, layout.window
    if not size:
        return [[(r, c) for r in range(H) for c in range(W)]]
    return [
        [(r, c) if r < H and c < W else PAD for r in range(top, top + size) for c in range(left, left + size)]
        for top in range(0, H, size)
        for left in range(0, W, size)
    ]


def slow_destination(x, layout, rate, variant):
    """Where StructSAM sends each token, call by call."""
    energy = slow_energy(x)
    height, width = (layout.window, layout.window) if layout.window else layout.shape
    result = []
    for places in windows_of(layout):
        value = [0.0 if place is PAD else energy[place] for place in places]
        cells = [
            [r * width + c, r * width + c + 1, (r + 1) * width + c, (r + 1) * width + c + 1]
            for r in range(0, height - 1, 2)
            for c in range(0, width - 1, 2)
        ]
        merged = min(len(cells), math.floor(rate * height * width / 3))
        # phi = -max; a cell of pads is flatter than any other.
        flatness = [max(value[t] for t in cell) for cell in cells]
        if variant == "proportional":
            flatness = [e * spread([places[t] for t in cell], x) for e, cell in zip(flatness, cells)]
        flatness = [-1.0 if all(places[t] is PAD for t in cell) else e for e, cell in zip(flatness, cells)]
        chosen = sorted(range(len(cells)), key=lambda m: flatness[m])[:merged]
        own = {m: min(cells[m], key=lambda t: value[t]) for m in chosen}
        goes_to = list(range(height * width))
        for m in chosen:
            for token in cells[m]:
                if token != own[m]:
                    goes_to[token] = closest(token, own.values(), places, x) if variant == "bsm" else own[m]
        result.append(goes_to)
    return np.array(result)


def spread(places, x):
    """How far a cell's tokens lie from their mean, summed squares' root; pads are zero."""
    tokens = [np.zeros(x.shape[2]) if place is PAD else x[place] for place in places]
    mean = sum(tokens) / len(tokens)
    return math.sqrt(sum(float(((token - mean) ** 2).sum()) for token in tokens))


def closest(token, destinations, places, x):
    """The destination of the same kind (real or pad) with the largest cosine."""
    alike = [d for d in destinations if (places[d] is PAD) == (places[token] is PAD)]
    if places[token] is PAD:
        return alike[0]  # pads are all equal
    a = x[places[token]]
    return max(alike, key=lambda d: a @ x[places[d]] / np.linalg.norm(x[places[d]]))


def fast_destination(x, layout, rate, variant):
    tokens = Tokens(torch.tensor(x[None], dtype=torch.float32), layout)
    return make_method("structsam", rate, variant).plan(tokens).destination().numpy()


def real_tokens(layout):
    return np.array([[place is not PAD for place in places] for places in windows_of(layout)])


@each_rate
@each_layout
@pytest.mark.parametrize("variant", ["cell", "proportional"])
def test_cells_are_decided_as_by_the_reference(layout, rate, variant):
    x = features(layout.shape)
    found, expected = fast_destination(x, layout, rate, variant), slow_destination(x, layout, rate, variant)
    real = real_tokens(layout)  # which of many equal cells of pads merge is left open
    assert np.array_equal(found[real], expected[real])
    assert (found != np.arange(layout.tokens)).sum(1).tolist() == (expected != np.arange(layout.tokens)).sum(1).tolist()


@each_rate
@each_layout
def test_bsm_decides_as_the_reference(layout, rate):
    x = features(layout.shape, mean=3.0)  # all cosines are positive, as between a trained block's tokens
    found, expected = fast_destination(x, layout, rate, "bsm"), slow_destination(x, layout, rate, "bsm")
    real = real_tokens(layout)
    assert np.array_equal(found[real], expected[real])


def test_bsm_leaves_the_cell_when_another_is_more_alike():
    x = features((32, 32))
    layout = WindowGrid((32, 32))
    assert (fast_destination(x, layout, 0.5, "bsm") != fast_destination(x, layout, 0.5, "cell")).mean() > 0.1


@each_variant
def test_tokens_unlike_all_others_still_do_not_join_pads(variant):
    layout = LAYOUTS["wide"]
    real = real_tokens(layout)
    destination = fast_destination(features(layout.shape, mean=0.0), layout, 0.75, variant)
    assert np.array_equal(real, np.take_along_axis(real, destination, 1))


@each_variant
def test_cells_that_are_half_pads_do_not_mix_them(variant):
    layout = WindowGrid((7, 7), 4)
    real = real_tokens(layout)
    destination = fast_destination(features(layout.shape), layout, 0.5, variant)
    assert np.array_equal(real, np.take_along_axis(real, destination, 1))


@pytest.mark.parametrize("flat", [False, True], ids=["random", "flat"])
@each_variant
@each_rate
@pytest.mark.parametrize("where", ["sam-window", "demo-window", "wide"])
def test_pads_merge_before_any_real_token(where, rate, variant, flat):
    """Even before those of a field with no energy at all, like a pad's."""
    layout = LAYOUTS[where]
    x = np.ones((*layout.shape, 4)) if flat else features(layout.shape)
    destination, real = fast_destination(x, layout, rate, variant), real_tokens(layout)
    merged_real = ((destination != np.arange(layout.tokens)) & real).sum(1)
    cells = math.floor(rate * layout.tokens / 3)
    pad_cells = (~real).sum(1) // 4
    assert merged_real.tolist() == (3 * np.maximum(cells - pad_cells, 0)).tolist()


def test_similarity_has_the_cosines_order():
    """Even where all rows are nearly the same, it tells them apart as float64 does; also between sources."""
    generator = torch.Generator().manual_seed(2)
    src, dst = torch.arange(30), torch.arange(30, 40)
    for spread in (1.0, 1e-3):
        rows = torch.ones(2, 40, 8, dtype=torch.float64)
        rows = rows + spread * torch.randn(2, 40, 8, generator=generator, dtype=torch.float64)
        unit = unit_features(rows)
        cosine = unit[:, :30] @ unit[:, 30:].transpose(1, 2)
        scores, offset = similarity(rows.float(), src, dst, WindowGrid((5, 8)), plain=False)
        assert (scores.argmax(-1) == cosine.argmax(-1)).all()
        best = scores.amax(-1) + offset.squeeze(-1)
        assert (best.argsort(1) == cosine.amax(-1).argsort(1)).all()
        assert torch.allclose(best.double(), 2 * cosine.amax(-1) - 2, atol=1e-6)


def test_a_corner_window_of_sam_keeps_all_its_real_tokens():
    layout = LAYOUTS["sam-window"]
    corner = fast_destination(features(layout.shape), layout, 0.5, "cell")[-1]
    real = real_tokens(layout)[-1]
    assert real.sum() == 64
    assert (corner[real] == np.arange(196)[real]).all()


# Kept tokens n of specification 2.5: N - 3*floor(rate*N/3).
TABLE = {
    0.30: (2869, 139),
    0.40: (2458, 118),
    0.45: (2254, 109),
    0.50: (2050, 100),
    0.60: (1639, 79),
    0.70: (1231, 61),
    0.75: (1024, 49),
}


@each_variant
@pytest.mark.parametrize("rate", TABLE)
def test_kept_tokens_as_tabulated(rate, variant):
    method = make_method("structsam", rate, variant)
    assert (4096 - method.removed(WindowGrid((64, 64))), 196 - method.removed(WindowGrid((64, 64), 14))) == TABLE[rate]


def test_rounding_does_not_lose_a_cell():
    """4 * 45 * 0.7 / 3 is 42, but 41.99 in floating point."""
    assert make_method("structsam", 0.7).removed(WindowGrid((4, 45))) == 3 * 42


def test_never_more_cells_than_there_are():
    assert make_method("structsam", 0.75).removed(WindowGrid((9, 7))) == 3 * 12
    assert make_method("structsam", 0.75).removed(WindowGrid((9, 1))) == 0


@pytest.mark.parametrize("grid", [(12, 12), (9, 7), (1, 5)])
def test_energy_as_the_reference(grid):
    x = features(grid)
    found = sobel_energy(torch.tensor(x[None], dtype=torch.float32))[0].numpy()
    assert np.allclose(found, slow_energy(x), atol=1e-5)


def test_a_constant_field_has_no_energy_anywhere():
    assert torch.equal(sobel_energy(torch.full((2, 6, 5, 3), 3.0)), torch.zeros(2, 6, 5))


def test_both_directions_are_measured_alike():
    """The widely copied second kernel has a wrong sign, so that it also answers to the mean and to columns."""
    ramp = torch.arange(8.0).expand(8, 8)[None, ..., None]
    across, down = sobel_energy(ramp), sobel_energy(ramp.transpose(1, 2))
    assert torch.equal(across[:, 1:-1, 1:-1], torch.full((1, 6, 6), 8.0))
    assert torch.equal(across, down.transpose(1, 2))
    assert torch.equal(sobel_energy(ramp + 16), across)


def test_energy_is_single_precision_whatever_comes_in():
    x = torch.tensor(features((6, 6)))[None]
    assert sobel_energy(x.half()).dtype == sobel_energy(x).dtype == torch.float32


def test_structure_is_protected():
    """Two flat halves: every cell away from the edge merges before one at the edge does."""
    x = np.zeros((16, 16, 2))
    x[:, 9:] = 1.0  # between columns 8 and 9, inside the cells of column pair (8, 9)
    destination = fast_destination(x, WindowGrid((16, 16)), 0.5, "cell")[0].reshape(16, 16)
    alone = destination == np.arange(256).reshape(16, 16)
    assert alone[:, 8:10].all()


def test_macs_of_energy_and_matching():
    layout, calls, merged = WindowGrid((64, 64), 14), 25, 32
    energy = 2 * 9 * 4096 * 64
    assert make_method("structsam", 0.5, "cell").macs(layout, 64) == energy
    assert make_method("structsam", 0.5, "proportional").macs(layout, 64) == energy
    assert make_method("structsam", 0.5, "bsm").macs(layout, 64) == energy + calls * 3 * merged * merged * 64
