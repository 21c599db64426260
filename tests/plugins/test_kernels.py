"""Kernels of plugins/ in Triton's interpreter against references in float64, over cases.yaml and at random.

BF16 is tested by up-casting: the interpreter's `dot` multiplies raw bits of BF16, so its results there mean nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from structsam_export.methods.cells import cell_indices, cell_plan, group_by_cell, merged_cells, rank_pads_first
from structsam_export.methods.energy import sobel_energy
from structsam_export.tokens import WindowGrid

pytest.importorskip("triton")
PLUGINS = Path(__file__).parents[2] / "plugins"
sys.path.append(str(PLUGINS))

from kernel_child import Interpreter  # noqa: E402
from kernel_launch import part, pieces, power_of_two  # noqa: E402

# Largest error relative to the largest value of the reference, which is computed from the same rounded inputs.
TOLERANCE = {"float32": 1e-6, "float16": 2e-3}
LAYOUTS = {
    "sam-global": WindowGrid((64, 64)),
    "sam-window": WindowGrid((64, 64), 14),
    "demo-global": WindowGrid((32, 32)),
    "demo-window": WindowGrid((32, 32), 12),
    "odd": WindowGrid((9, 7)),
}
fuzzed = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cases(name):
    """Cases of a plugin, lists as tuples."""
    found = yaml.safe_load((PLUGINS / name / "cases.yaml").read_text())["cases"]
    return {
        title: {key: tuple(v) if isinstance(v, list) else v for key, v in case.items()} for title, case in found.items()
    }


def each_case(name):
    return pytest.mark.parametrize("case", [pytest.param(c, id=title) for title, c in cases(name).items()])


each_type = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(scope="module")
def interpreter():
    child = Interpreter()
    yield child
    child.close()


def check(found, want, tolerance):
    """Same shape, NaN and infinities at the same places, and the rest within the tolerance."""
    assert found.shape == want.shape
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(found), finite)
    assert np.array_equal(found[~finite].astype(np.float64), want[~finite], equal_nan=True)
    error = np.abs(found.astype(np.float64) - want)[finite].max(initial=0)
    assert error <= tolerance * np.abs(want[finite]).max(initial=1e-30)


def random_places(rng, calls, n, places):
    return np.stack([rng.permutation(places)[:n] for _ in range(calls)]).astype(np.int32)


# --- relpos_attention


def attention_inputs(case, dtype, seed=0):
    """q, k, v, rel, pos of a case."""
    rng = np.random.default_rng(seed)
    B, n, heads, d, (h, w) = (case[key] for key in ("batch", "n", "heads", "dim", "window"))
    q, k, v = (rng.standard_normal((B, n, heads * d)).astype(dtype) for _ in range(3))
    rel = rng.standard_normal((B, n, heads, 2 * h + 2 * w - 2)).astype(dtype)
    q = (q * d**-0.5).astype(dtype)
    if case["mode"] == "aligned":
        return q, k, v, rel, np.tile(np.arange(n, dtype=np.int32), (B, 1))
    pos = random_places(rng, B, n, h * w)
    if case.get("absent"):
        pos[rng.random(pos.shape) < 0.3] = -1
        pos[:, :40] = -1  # a whole tile of keys
        pos[0, -1] = h * w
    return q, k, v, rel, pos


def attend(interpreter, case, dtype, inputs):
    arguments = {key: value for key, value in case.items() if key != "absent"} | {"dtype": dtype}
    (out,), clean = interpreter("relpos_attention", arguments, inputs, [(inputs[0].shape, inputs[0].dtype)])
    assert clean
    return out


def attention_reference(case, inputs):
    return part("relpos_attention", "reference").reference(*inputs, case["heads"], case["window"])


@each_type
@each_case("relpos_attention")
def test_attention_is_its_reference(interpreter, case, dtype):
    inputs = attention_inputs(case, dtype)
    check(attend(interpreter, case, dtype, inputs), attention_reference(case, inputs), TOLERANCE[dtype])


def test_attentions_reference_is_the_stock_attention():
    """The reference itself, against segment_anything's own attention of a dense window."""
    from segment_anything.modeling.image_encoder import Attention

    torch.manual_seed(0)
    stock = Attention(24, num_heads=2, use_rel_pos=True, input_size=(5, 4)).double()
    torch.nn.init.normal_(stock.rel_pos_h)
    torch.nn.init.normal_(stock.rel_pos_w)
    x = torch.randn(3, 5, 4, 24, dtype=torch.float64)
    with torch.no_grad():
        want = stock(x).numpy().reshape(3, 20, 24)
        q, k, v = stock.qkv(x).view(3, 20, 3, 24).unbind(2)
        table = torch.cat([stock.rel_pos_h, stock.rel_pos_w])
        rel = q.view(3, 20, 2, 12) @ table.T
        pos = np.tile(np.arange(20), (3, 1))
        parts = (q * stock.scale, k, v, rel)
        y = part("relpos_attention", "reference").reference(*(p.numpy() for p in parts), pos, 2, (5, 4))
        found = stock.proj(torch.from_numpy(y)).numpy()
    assert np.allclose(found, want, atol=1e-12)


def test_attention_of_bf16_values_is_exact_after_up_casting(interpreter):
    """Values that BF16 holds, given as FP32: what the kernel computes from BF16 but for the rounding of products."""
    case = cases("relpos_attention")["window"]
    inputs = attention_inputs(case, "float32")
    inputs = [torch.from_numpy(x).bfloat16().float().numpy() for x in inputs[:4]] + [inputs[4]]
    check(attend(interpreter, case, "float32", inputs), attention_reference(case, inputs), TOLERANCE["float32"])


@pytest.mark.parametrize("mode", ["one_hot", "gather", "aligned"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_is(interpreter, mode, value):
    """In a query: its row and head. In a key or a value: that head of that window. Nowhere else."""
    n = 25 if mode == "aligned" else 20
    case = {"batch": 2, "n": n, "heads": 2, "dim": 16, "window": (5, 5), "mode": mode}
    clean = attention_inputs(case, "float32")
    want = attention_reference(case, clean)
    for which, touched in ((0, np.s_[0, 3, :16]), (1, np.s_[1, :, 16:]), (2, np.s_[0, :, :16]), (3, np.s_[1, 4, 16:])):
        inputs = [x.copy() for x in clean]
        at = {0: np.s_[0, 3, 2], 1: np.s_[1, 7, 16], 2: np.s_[0, 9, 5], 3: np.s_[1, 4, 1, :]}[which]
        inputs[which][at] = value
        found = attend(interpreter, case, "float32", inputs)
        hit = np.zeros(want.shape, bool)
        hit[touched] = True
        assert not np.isfinite(found[hit]).all()
        check(np.where(hit, 0, found), np.where(hit, 0, want), 1e-6)


def test_what_absent_keys_hold_is_not_read(interpreter):
    case = {"batch": 1, "n": 40, "heads": 1, "dim": 16, "window": (7, 7), "mode": "one_hot"}
    inputs = attention_inputs(case, "float32")
    inputs[4][0, 5:9] = -1
    want = attention_reference(case, inputs)
    for x in inputs[1:3]:
        x[0, 5:9] = np.nan
    check(attend(interpreter, case, "float32", inputs), want, 1e-6)


@fuzzed
@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 36), st.integers(1, 6), st.integers(1, 6), st.integers(1, 70),
    st.sampled_from(["one_hot", "gather", "aligned"]), st.sampled_from(["float32", "float16"]), st.integers(0, 99),
)  # fmt: skip
def test_attention_of_any_size(interpreter, batch, heads, dim, h, w, n, mode, dtype, seed):
    n = h * w if mode == "aligned" else min(n, h * w)
    case = {"batch": batch, "n": n, "heads": heads, "dim": dim, "window": (h, w), "mode": mode}
    inputs = attention_inputs(case, dtype, seed)
    check(attend(interpreter, case, dtype, inputs), attention_reference(case, inputs), TOLERANCE[dtype])


# --- token_energy


@each_type
@each_case("token_energy")
def test_energy_is_its_reference(interpreter, case, dtype):
    rng = np.random.default_rng(1)
    y = rng.standard_normal((case["batch"], *case["shape"], case["heads"] * case["dim"])).astype(dtype)
    (found,), clean = interpreter("token_energy", case | {"dtype": dtype}, [y], [(y.shape[:3], "float32")])
    assert clean
    # From rounded values, but in FP32.
    check(found, part("token_energy", "reference").reference(y, case["heads"]), 1e-6)


@fuzzed
@given(
    st.integers(1, 2), st.integers(1, 6), st.integers(1, 40), st.integers(1, 3), st.integers(1, 40),
    st.sampled_from(["float32", "float16"]), st.integers(0, 99),
)  # fmt: skip
def test_energy_of_any_size(interpreter, batch, H, W, heads, dim, dtype, seed):
    y = np.random.default_rng(seed).standard_normal((batch, H, W, heads * dim)).astype(dtype)
    case = {"batch": batch, "shape": (H, W), "heads": heads, "dim": dim, "dtype": dtype}
    (found,), clean = interpreter("token_energy", case, [y], [(y.shape[:3], "float32")])
    assert clean
    check(found, part("token_energy", "reference").reference(y, heads), 1e-6)


def test_energys_reference_is_the_methods():
    y = torch.randn(2, 6, 5, 24, generator=torch.Generator().manual_seed(0))
    want = sobel_energy(y.view(2, 6, 5, 3, 8).mean(3))
    assert np.allclose(part("token_energy", "reference").reference(y.numpy(), 3), want.numpy(), atol=1e-5)


def test_energy_of_nan_and_infinity_stays_beside_them(interpreter):
    y = np.random.default_rng(2).standard_normal((1, 5, 7, 8)).astype("float32")
    y[0, 1, 1, 1], y[0, 4, 6, 2] = np.nan, np.inf
    (found,), _ = interpreter(
        "token_energy",
        {"batch": 1, "shape": (5, 7), "heads": 2, "dim": 4, "dtype": "float32"},
        [y],
        [(y.shape[:3], "float32")],
    )
    finite = np.ones((5, 7), bool)
    finite[:3, :3] = finite[3:, 5:] = False
    assert np.isfinite(found[0][finite]).all()
    assert not np.isfinite(found[0][2, 2]) and not np.isfinite(found[0][3, 5])


# --- merge_plan


def plan(interpreter, energy, window, merged, constants=None):
    B, H, W = energy.shape
    N, calls = window[0] * window[1], B * pieces(H, window[0]) * pieces(W, window[1])
    arguments = {"batch": B, "shape": (H, W), "window": window, "merged": merged}
    shapes = [((calls, N - 3 * merged), "int32"), ((calls, N), "int32")]
    (pos, slot), clean = interpreter("merge_plan", arguments, [energy], shapes, constants)
    assert clean
    return pos, slot


def stock_plan(energy, grid, merged):
    """`cells.cell_plan`, given every cell's place in the order as its rank, so that TopK has no tie to break."""
    values = grid.partition(torch.from_numpy(energy).unsqueeze(-1)).squeeze(-1)
    by_cell = group_by_cell(values, grid.window_shape)
    ranks = rank_pads_first(by_cell.amax(-1), grid)
    place = ranks.argsort(stable=True, dim=1).argsort(1).float()
    made = cell_plan(place, by_cell.argmin(-1), grid, merged)
    return made.pos.numpy(), made.slot.numpy()


def random_energy(seed, shape, levels):
    """Energies (B, H, W); with few levels, most of them are tied."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, levels, shape) / levels if levels else rng.random(shape)).astype("float32")


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("where", LAYOUTS)
def test_plan_is_exactly_that_of_cells(interpreter, where, rate):
    """Layouts and batches of the methods' contract; without ties, `cell_plan` itself decides."""
    grid, images = LAYOUTS[where], 2
    merged = merged_cells(grid, rate)
    energy = random_energy(3, (images, *grid.shape), 0)
    cells = power_of_two(
        len(cell_indices(grid.window_shape)[0]), 16
    )  # in one program: that takes the interpreter least
    pos, slot = plan(interpreter, energy, grid.window_shape, merged, {"BLOCK": cells, "CHUNK": cells})
    values = grid.partition(torch.from_numpy(energy).unsqueeze(-1)).squeeze(-1)
    by_cell = group_by_cell(values, grid.window_shape)
    want = cell_plan(rank_pads_first(by_cell.amax(-1), grid), by_cell.argmin(-1), grid, merged)
    assert np.array_equal(pos, want.pos.numpy())
    assert np.array_equal(slot, want.slot.numpy())


@pytest.mark.parametrize("levels", [0, 3, 1], ids=["no ties", "ties", "all tied"])
@each_case("merge_plan")
def test_plan_is_its_reference(interpreter, case, levels):
    energy = random_energy(4, (case["batch"], *case["shape"]), levels)
    pos, slot = plan(interpreter, energy, case["window"], case["merged"])
    want = part("merge_plan", "reference").reference(energy, case["window"], case["merged"])
    assert np.array_equal(pos, want[0]) and np.array_equal(slot, want[1])
    side = 0 if case["window"] == case["shape"] else case["window"][0]
    want = stock_plan(energy, WindowGrid(case["shape"], side), case["merged"])
    assert np.array_equal(pos, want[0]) and np.array_equal(slot, want[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
def test_plan_of_odd_energies_is_a_plan(interpreter, value):
    """Also of NaN: every token has a slot, and every slot a token."""
    energy = random_energy(5, (2, 6, 6), 4)
    energy[np.random.default_rng(0).random(energy.shape) < 0.2] = value
    pos, slot = plan(interpreter, energy, (6, 6), 4)
    want = part("merge_plan", "reference").reference(energy, (6, 6), 4)
    assert np.array_equal(pos, want[0]) and np.array_equal(slot, want[1])
    assert np.array_equal(np.take_along_axis(slot, pos, 1), np.tile(np.arange(pos.shape[1]), (2, 1)))


@fuzzed
@given(st.integers(1, 2), st.integers(2, 7), st.integers(2, 7), st.integers(2, 5), st.integers(0, 4), st.data())
def test_plan_of_any_geometry(interpreter, batch, H, W, side, levels, data):
    window = data.draw(st.sampled_from([(H, W), (side, side)]))
    merged = data.draw(st.integers(0, (window[0] // 2) * (window[1] // 2)))
    energy = random_energy(data.draw(st.integers(0, 99)), (batch, H, W), levels)
    pos, slot = plan(interpreter, energy, window, merged)
    want = part("merge_plan", "reference").reference(energy, window, merged)
    assert np.array_equal(pos, want[0]) and np.array_equal(slot, want[1])


# --- token_merge and token_unmerge


def merge_inputs(case, dtype, seed=6):
    """Tokens and a plan of their windows."""
    y = np.random.default_rng(seed).standard_normal((case["batch"], *case["shape"], case["dim"])).astype(dtype)
    energy = random_energy(seed, y.shape[:3], 0)
    return y, *part("merge_plan", "reference").reference(energy, case["window"], case["merged"])


def merge(interpreter, case, y, pos, dtype):
    shape = (*pos.shape, case["dim"])
    (out,), clean = interpreter("token_merge", case | {"dtype": dtype}, [y, pos], [(shape, dtype)])
    assert clean
    return out


@each_type
@each_case("token_merge")
def test_merge_is_its_reference(interpreter, case, dtype):
    y, pos, _ = merge_inputs(case, dtype)
    want = part("token_merge", "reference").reference(y, pos, case["window"], case["merged"])
    check(merge(interpreter, case, y, pos, dtype), want, TOLERANCE[dtype])


def test_merge_is_the_plans_own(interpreter):
    """`MergePlan.merge` of the tokens cut into windows."""
    grid, merged = WindowGrid((8, 8), 6), 2
    case = {"batch": 2, "shape": (8, 8), "window": (6, 6), "merged": merged, "dim": 8}
    y, pos, slot = merge_inputs(case, "float32")
    energy = torch.from_numpy(random_energy(6, y.shape[:3], 0))
    by_cell = group_by_cell(grid.partition(energy.unsqueeze(-1)).squeeze(-1), (6, 6))
    made = cell_plan(rank_pads_first(by_cell.amax(-1), grid), by_cell.argmin(-1), grid, merged)
    assert np.array_equal(pos, made.pos.numpy())
    slots = made.merge(grid.partition(torch.from_numpy(y)))
    check(merge(interpreter, case, y, pos, "float32"), slots.double().numpy(), 1e-6)
    residual = np.random.default_rng(9).standard_normal(y.shape).astype("float32")
    want = torch.from_numpy(residual).double() + grid.unpartition(made.unmerge(slots.double()))
    inputs = [slots.numpy(), slot, residual]
    (out,), clean = interpreter("token_unmerge", case | {"dtype": "float32"}, inputs, [(y.shape, "float32")])
    assert clean
    check(out, want.numpy(), 1e-6)


@pytest.mark.parametrize(
    ("dtype", "residual"), [("float32", "float32"), ("float16", "float16"), ("float16", "float32")]
)
@each_case("token_unmerge")
def test_unmerge_is_its_reference(interpreter, case, dtype, residual):
    y, pos, slot = merge_inputs(case, residual)
    slots = np.random.default_rng(7).standard_normal((*pos.shape, case["dim"])).astype(dtype)
    arguments = case | {"dtype": dtype, "residual": residual}
    (found,), clean = interpreter("token_unmerge", arguments, [slots, slot, y], [(y.shape, residual)])
    assert clean
    want = part("token_unmerge", "reference").reference(slots, slot, y, case["window"])
    check(found, want, TOLERANCE[residual])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_merging_spreads_nothing(interpreter, value):
    """A token that is not finite reaches its own slot and that slot's tokens alone."""
    case = {"batch": 1, "shape": (6, 6), "window": (6, 6), "merged": 4, "dim": 8}
    y, pos, slot = merge_inputs(case, "float32")
    y[0, 2, 3, 5] = value
    found = merge(interpreter, case, y, pos, "float32")
    bad = np.zeros(found.shape, bool)
    bad[0, slot[0, 2 * 6 + 3], 5] = True
    assert np.array_equal(~np.isfinite(found), bad)
    inputs = [found, slot, np.zeros_like(y)]
    (out,), _ = interpreter("token_unmerge", case | {"dtype": "float32"}, inputs, [(y.shape, "float32")])
    assert np.array_equal(~np.isfinite(out[0].reshape(36, 8)), bad[0, slot[0]])


def test_wrong_indices_stay_inside(interpreter):
    """Positions and slots that no plan has: zeros, and nothing read or written beside the arrays."""
    case = {"batch": 1, "shape": (4, 4), "window": (4, 4), "merged": 1, "dim": 8}
    y, pos, slot = merge_inputs(case, "float32")
    pos[0, :3], pos[0, -1] = (-5, 16, 2**31 - 1), 99
    found = merge(interpreter, case, y, pos, "float32")
    assert (found[0, :3] == 0).all() and (found[0, -1] == 0).all()
    check(found, part("token_merge", "reference").reference(y, pos, (4, 4), 1), 1e-6)
    slot[0, :3] = (-1, 13, 2**31 - 1)
    (out,), clean = interpreter("token_unmerge", case | {"dtype": "float32"}, [found, slot, y], [(y.shape, "float32")])
    assert clean
    assert np.array_equal(out[0, 0, :3], y[0, 0, :3])


@fuzzed
@given(st.integers(1, 2), st.integers(2, 7), st.integers(2, 7), st.integers(2, 5), st.integers(1, 20), st.data())
def test_merge_and_unmerge_of_any_geometry(interpreter, batch, H, W, side, dim, data):
    window = data.draw(st.sampled_from([(H, W), (side, side)]))
    merged = data.draw(st.integers(0, (window[0] // 2) * (window[1] // 2)))
    case = {"batch": batch, "shape": (H, W), "window": window, "merged": merged, "dim": dim}
    y, pos, slot = merge_inputs(case, "float32", data.draw(st.integers(0, 99)))
    slots = merge(interpreter, case, y, pos, "float32")
    check(slots, part("token_merge", "reference").reference(y, pos, window, merged), 1e-6)
    (out,), clean = interpreter("token_unmerge", case | {"dtype": "float32"}, [slots, slot, y], [(y.shape, "float32")])
    assert clean
    check(out, part("token_unmerge", "reference").reference(slots, slot, y, window), 1e-6)
