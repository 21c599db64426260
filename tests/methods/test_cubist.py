"""CubistMerge on grids, against loops over lines of tokens written straight from the specification's rule."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from conftest import tiny_encoder
from graphs import run

from structsam_export.errors import UsageError
from structsam_export.methods.cubist import Cubist, GridPlan
from structsam_export.methods.lines import (
    FROM_LEFT,
    FROM_RIGHT,
    LEFT,
    RIGHT,
    line_joins,
    line_slots,
    merge_lines,
    real_left,
)
from structsam_export.patch import patched, roles_of
from structsam_export.roles import Decision
from structsam_export.tokens import WindowGrid

PAD = None
LAYOUTS = {
    "sam": WindowGrid((64, 64), 14),
    "demo": WindowGrid((32, 32), 12),
    "wide": WindowGrid((6, 10), 4),
    "odd": WindowGrid((9, 7)),
    "odd windows": WindowGrid((13, 16), 5),
    "lone pads": WindowGrid((7, 11), 4),
    "thin": WindowGrid((1, 12)),
}
VARIANTS = {"window": 0.7, "global": 0.75}
CASES = [
    pytest.param(layout, variant, rate, id=f"{name}-{variant}-{rate:g}")
    for name, layout in LAYOUTS.items()
    for variant, most in VARIANTS.items()
    for rate in (0.25, 0.5, most)
    if layout.window or variant == "global"
]
each_case = pytest.mark.parametrize(("layout", "variant", "rate"), CASES)


def features(grid, channels=4, images=1, seed=0):
    """Random features (images, H, W, C) in double precision that share a direction, as a trained block's do."""
    return np.random.default_rng(seed).normal(0.7, 1, (images, *grid, channels))


def alike(a, b):
    """Cosine of two neighbours; two pads are more alike than any real tokens, a pad and a real token less."""
    if a is PAD or b is PAD:
        return 2.0 if a is b else -2.0
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def slow_line(tokens, removed):
    """One line: what is left of it, and the place of every token there."""
    sources = []
    for k in range(1, len(tokens), 2):
        sides = [(alike(tokens[k], tokens[k - 1]), k - 1)]
        if k + 1 < len(tokens):
            sides.append((alike(tokens[k], tokens[k + 1]), k + 1))
        score, target = max(sides, key=lambda side: side[0])
        sources.append((score, k, target))
    goes_to = {k: target for _, k, target in sorted(sources, reverse=True)[:removed]}
    kept = [k for k in range(len(tokens)) if k not in goes_to]
    small = []
    for k in kept:
        members = [tokens[m] for m in (k, k - 1, k + 1) if (m == k or goes_to.get(m) == k) and tokens[m] is not PAD]
        small.append(np.array([max(values, key=abs) for values in zip(*members)]) if members else PAD)
    return small, [kept.index(goes_to.get(k, k)) for k in range(len(tokens))]


def slow_reduce(tokens, r_h, r_w):
    """Rows, then columns of the grid `tokens`; the small grid, and both steps' places [row][k] and [column][k]."""
    rows = [slow_line(row, r_w) for row in tokens]
    columns = [slow_line(list(column), r_h) for column in zip(*(small for small, _ in rows))]
    small = [list(row) for row in zip(*(column for column, _ in columns))]
    return small, [places for _, places in rows], [places for _, places in columns]


def slow_unmerge(y, rows, columns):
    """Undo columns, then rows, of y [h'][w'], value by value."""
    tall = [[y[columns[c][r]][c] for c in range(len(columns))] for r in range(len(rows))]
    return [[tall[r][rows[r][c]] for c in range(len(rows[0]))] for r in range(len(rows))]


def windows_of(layout, variant):
    """Top-left corner and size of everything that is reduced at once."""
    (H, W), size = layout.shape, layout.window
    if variant == "global":
        return [(0, 0, H, W)]
    return [(top, left, size, size) for top in range(0, H, size) for left in range(0, W, size)]


def slow_cubist(x, y, layout, variant, r_h, r_w):
    """One image x (H, W, C): the small grid, zeros for pads, and any y (H', W', ...) of its size restored."""
    H, W, C = x.shape
    small = np.zeros((*y.shape[:2], C))
    restored = np.zeros((H, W), y.dtype)
    for top, left, h, w in windows_of(layout, variant):
        tokens = [[x[r, c] if r < H and c < W else PAD for c in range(left, left + w)] for r in range(top, top + h)]
        merged, rows, columns = slow_reduce(tokens, r_h, r_w)
        i, j = top // h * (h - r_h), left // w * (w - r_w)
        for r, row in enumerate(merged):
            for c, value in enumerate(row):
                small[i + r, j + c] = 0 if value is PAD else value
        back = np.array(slow_unmerge(y[i : i + h - r_h, j : j + w - r_w].tolist(), rows, columns))
        restored[top : top + h, left : left + w] = back[: H - top, : W - left]
    return small, restored


def reduce(x, method, layout):
    return method.reduce(torch.tensor(x, dtype=torch.float32), layout)


@each_case
def test_reduces_and_restores_as_the_reference(layout, variant, rate):
    method, x = Cubist(rate, variant), features(layout.shape)
    small, plan = reduce(x, method, layout)
    H, W = plan.after.shape
    place = np.arange(H * W).reshape(H, W)
    expected, restored = slow_cubist(x[0], place, layout, variant, *method.lines(layout))
    assert small.shape == (1, H, W, 4)
    assert np.array_equal(small[0].numpy(), expected.astype(np.float32))
    assert np.array_equal(plan.slot()[0].numpy().reshape(layout.shape), restored)
    y = torch.randn(1, H, W, 3, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(plan.unmerge(y)[0].numpy(), y[0].flatten(0, 1).numpy()[restored])


@each_case
def test_shapes_and_types_do_not_depend_on_the_image(layout, variant, rate):
    method = Cubist(rate, variant)
    scope = layout if variant == "window" else WindowGrid(layout.shape)
    (h, w), (r_h, r_w) = scope.window_shape, method.lines(layout)
    assert 0 <= r_h <= h // 2 and 0 <= r_w <= w // 2 and r_h + r_w > 0
    for seed in (0, 1):
        small, plan = reduce(features(layout.shape, images=2, seed=seed), method, layout)
        assert plan.rows.shape == (2 * scope.windows * h, w // 2)
        assert plan.columns.shape == (2 * scope.windows * (w - r_w), h // 2)
        assert plan.slot().shape == (2, layout.shape[0] * layout.shape[1])
        assert {plan.rows.dtype, plan.columns.dtype, plan.slot().dtype} == {torch.int64}
        assert ((plan.rows > 0).sum(1) == r_w).all() and ((plan.columns > 0).sum(1) == r_h).all()
        assert plan.rows.min() >= 0 and plan.rows.max() <= RIGHT
        assert small.shape == (2, *plan.after.shape, 4)
        assert (plan.grid, plan.removed) == (scope, (r_h, r_w))
        assert plan.after.shape == method.after(layout).shape
        assert not plan.after.has_pads
        assert plan.slot().min() >= 0 and plan.slot().max() < plan.after.shape[0] * plan.after.shape[1]


@each_case
def test_equal_tokens_merge_without_loss(layout, variant, rate):
    """What is restored reduces to itself where every token equals those it went with."""
    method = Cubist(rate, variant)
    _, plan = reduce(features(layout.shape), method, layout)
    y = torch.randn(1, *plan.after.shape, 4, generator=torch.Generator().manual_seed(2))
    x = plan.unmerge(y)
    small, again = method.reduce(x, layout)
    assert torch.equal(again.unmerge(small), x)


@pytest.mark.parametrize(
    ("layout", "variant", "rate", "size"),
    [
        pytest.param(WindowGrid((64, 64), 14), "window", 0.39, 14, id="sam"),
        pytest.param(WindowGrid((12, 12), 6), "window", 0.5, 6, id="windows"),
        pytest.param(WindowGrid((16, 16)), "global", 0.4, 16, id="whole"),
        pytest.param(WindowGrid((9, 7)), "global", 0.5, 9, id="odd"),
    ],
)
@pytest.mark.parametrize("twin", ["left", "right"])
def test_lines_that_equal_a_neighbour_are_the_ones_that_go(layout, variant, rate, size, twin):
    """Some odd rows and columns repeat the even one before or after: just those are lost, and nothing with them."""
    method = Cubist(rate, variant)
    (H, W), (r_h, r_w) = layout.shape, method.lines(layout)
    x = features(layout.shape)[0]
    for axis, (length, removed) in enumerate(((H, r_h), (W, r_w))):
        lines = np.moveaxis(x, axis, 0)
        for start in range(0, length, size):
            for k in range(start + 1, min(start + size, length - 1), 2)[:removed]:
                lines[k] = lines[k - 1 if twin == "left" else k + 1]
    small, plan = reduce(x[None], method, layout)
    assert torch.equal(plan.unmerge(small)[0], torch.tensor(x, dtype=torch.float32))
    slots = plan.slot().view(H, W)
    for group in slots.unique().tolist():
        rows, columns = (slots == group).nonzero(as_tuple=True)
        assert len({tuple(x[r, c]) for r, c in zip(rows.tolist(), columns.tolist())}) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_value_everywhere(variant):
    """All edges tie, and whichever merge, the value stays; no pad brings a zero in."""
    layout, method = LAYOUTS["demo"], Cubist(0.5, variant)
    x = torch.full((1, 32, 32, 3), -2.0)
    small, plan = method.reduce(x, layout)
    assert torch.equal(plan.unmerge(small), x)


@each_case
def test_an_image_is_reduced_alike_in_any_batch(layout, variant, rate):
    method, x = Cubist(rate, variant), features(layout.shape, images=3)
    together, plan = reduce(x, method, layout)
    for image in range(3):
        small, alone = reduce(x[image : image + 1], method, layout)
        assert torch.equal(small[0], together[image])
        assert torch.equal(alone.slot()[0], plan.slot()[image])


def test_two_sources_of_one_target_both_count():
    """The released code loses one of the two."""
    line = torch.tensor([[[9.0, 0, 0], [1, 8, -3], [2, -7, 1], [3, 1, 2], [0, 0, 9]]])
    joins = torch.tensor([[RIGHT, LEFT]])
    merged, values = merge_lines(line, joins, 2)
    assert merged.tolist() == [[[9, 0, 0], [3, 8, -3], [0, 0, 9]]]
    assert values.tolist() == [[[0, 0, 0], [FROM_RIGHT, FROM_LEFT, FROM_LEFT], [0, 0, 0]]]
    assert line_slots(joins, 5).tolist() == [[0, 1, 1, 1, 2]]
    # And from features: 1 and 3 point where 2 does.
    line = torch.tensor([[[1.0, 0, 0], [0, 5, 1], [0, 4, 4], [0, -1, 6], [-1, -1, 0]]])
    assert line_joins(line, 2, None).tolist() == [[RIGHT, LEFT]]
    assert merge_lines(line, joins, 2)[0][0, 1].tolist() == [0, 5, 6]


def test_a_target_wins_a_tie_of_magnitudes():
    line = torch.tensor([[[1.0], [-1.0], [1.0]]])
    for joins, expected in ((LEFT, [1, 1]), (RIGHT, [1, 1])):
        merged, values = merge_lines(line, torch.tensor([[joins]]), 1)
        assert merged.flatten().tolist() == expected
        assert not values.any()


def test_whose_value_stays_is_a_decision():
    """Of opposite values of one magnitude, rounding picks the sign: a tie, which a report can name."""
    layout = WindowGrid((6, 6), 6)
    x = torch.rand(1, 6, 6, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    x[0, 0, 0, 2] = 0.01
    x[0, 0, 1] = x[0, 0, 0]
    x[0, 0, 1, 2] *= -1
    decision = Decision(None, lambda t: Cubist(0.3).reduce(t, layout)[1], (x,))
    seen = {bool(decision.again(1e-5, seed).row_values[0, 0, 2]) for seed in range(20)}
    assert seen == {False, True}
    assert len({decision.again(1e-5, seed).rows.sum().item() for seed in range(20)}) == 1


def test_nearly_equal_tokens_are_told_apart():
    """Cosines of 1 - 1e-7 have no digits left in FP32 (nine in ten of these lines would go wrong), distances do."""
    noise = torch.randn(200, 14, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    line = (1 + 3e-4 * noise).float()
    expected = [slow_line(list(row), 3)[1] for row in line.double().numpy()]
    assert line_slots(line_joins(line, 3, None), 14).tolist() == expected


def test_exactly_equal_neighbours_join_the_left_one():
    assert line_joins(torch.ones(1, 5, 2), 2, None).tolist() == [[LEFT, LEFT]]


@pytest.mark.parametrize(
    ("rate", "side", "lines"),
    [
        (0.0, 64, 0),
        (0.05, 64, 0),
        (0.12, 60, 2),
        (0.26, 55, 3),
        (0.39, 50, 4),
        (0.5, 45, 5),
        (0.7, 35, 7),
    ],
)
def test_windowed_grids_of_sam(rate, side, lines):
    """Never 65, which is what 14 -> 13 would give."""
    layout, method = LAYOUTS["sam"], Cubist(rate)
    assert method.lines(layout) == (lines, lines)
    assert method.after(layout) == WindowGrid((side, side), 14 - lines)


@pytest.mark.parametrize(
    ("rate", "grid", "lines"),
    [
        (0.0, (64, 64), (0, 0)),
        (0.234, (56, 56), (8, 8)),
        (0.5, (45, 45), (19, 19)),
        (0.75, (32, 32), (32, 32)),
    ],
)
def test_whole_grids_of_sam(rate, grid, lines):
    layout, method = LAYOUTS["sam"], Cubist(rate, "global")
    assert method.lines(layout) == lines
    assert method.after(layout) == WindowGrid(grid, 14)


def test_both_sides_lose_the_same_fraction():
    assert Cubist(0.4375, "global").lines(WindowGrid((32, 64))) == (8, 16)
    assert Cubist(0.75, "global").lines(WindowGrid((5, 8))) == (2, 4)
    assert Cubist(0.25, "global").lines(WindowGrid((1, 12))) == (0, 3)


@each_case
def test_no_other_grid_is_nearer_to_the_rate(layout, variant, rate):
    method = Cubist(rate, variant)
    H, W = layout.shape
    off = [
        abs(1 - np.prod(Cubist(other, variant).after(layout).shape) / (H * W) - rate)
        for other in np.linspace(0, VARIANTS[variant], 60)
    ]
    assert abs(1 - np.prod(method.after(layout).shape) / (H * W) - rate) <= min(off) + 1e-9


def test_windows_of_an_encoder_without_windows_are_the_whole_grid():
    layout, x = LAYOUTS["odd"], features((9, 7))
    assert Cubist(0.5).after(layout) == Cubist(0.5, "global").after(layout)
    assert torch.equal(reduce(x, Cubist(0.5), layout)[0], reduce(x, Cubist(0.5, "global"), layout)[0])


@pytest.mark.parametrize(("rate", "lines"), [(0.12, 2), (0.26, 3)])
def test_border_windows_of_sam_lose_pads_only(rate, lines):
    layout = LAYOUTS["sam"]
    x = features(layout.shape)
    small, plan = reduce(x, Cubist(rate), layout)
    assert plan.removed == (lines, lines)
    real = 4 * (14 - lines) + 8  # four inner windows and what is real of the border one
    pads = np.ones((5 * (14 - lines),) * 2, bool)
    pads[:real, :real] = False
    assert np.array_equal(small[0].abs().amax(-1).numpy() == 0, pads)
    corner = plan.slot()[0].view(64, 64)[56:, 56:]
    assert len(set(corner.flatten().tolist())) == 64
    assert torch.equal(small[0, real - 8 : real, real - 8 : real], torch.tensor(x[0, 56:, 56:], dtype=torch.float32))


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.window])
def test_lines_of_pads_leave_no_choice(name, rate):
    """Their tokens are all equal, but all runtimes must merge the same ones."""
    layout = LAYOUTS[name]
    small, plan = reduce(features(layout.shape), Cubist(rate), layout)
    r_h, r_w = plan.removed
    h, w = plan.grid.window_shape
    pads = plan.grid.partition(torch.ones(1, *layout.shape, 1)).view(-1, h, w) == 0
    rows = plan.rows.view(-1, h, w // 2)[pads.all(2)]
    assert rows.tolist() == [[LEFT] * r_w + [0] * (w // 2 - r_w)] * len(rows)
    pads = (plan.after.partition(small) == 0).all(-1).view(-1, h - r_h, w - r_w)
    columns = plan.columns.view(-1, w - r_w, h // 2)[pads.all(1)]
    assert columns.tolist() == [[LEFT] * r_h + [0] * (h // 2 - r_h)] * len(columns)


@pytest.mark.parametrize("length", range(2, 10))
def test_how_many_real_tokens_stay_is_known_beforehand(length):
    for real in range(length + 1):
        line = list(features((length,))[0][:real]) + [PAD] * (length - real)
        for removed in range(length // 2 + 1):
            small, _ = slow_line(line, removed)
            staying = sum(token is not PAD for token in small)
            assert real_left(real, length, removed) == staying
            assert all(token is not PAD for token in small[:staying])


@each_case
def test_no_real_token_turns_into_a_pad(layout, variant, rate):
    """A pad takes no real value away, wherever it has to go."""
    x = np.where(features(layout.shape) > 0, 1.0, -1.0) * np.array([1, 2, 3, 4])
    small, plan = reduce(x, Cubist(rate, variant), layout)
    assert np.array_equal(plan.unmerge(small).abs().numpy(), np.abs(x))


def test_half_precision_keeps_its_type_and_decides_in_single():
    layout, method = LAYOUTS["demo"], Cubist(0.5)
    x = torch.tensor(1 + features(layout.shape) / 10, dtype=torch.float16)
    small, plan = method.reduce(x, layout)
    expected, same = method.reduce(x.float(), layout)
    assert small.dtype == torch.float16
    assert torch.equal(small.float(), expected)
    assert torch.equal(plan.slot(), same.slot())


@pytest.mark.parametrize(("rate", "lines"), [(0.12, 2), (0.26, 3)])
def test_border_windows_that_stick_out_at_one_side_lose_pads_there(rate, lines):
    """All 8 real columns at the right stay apart, all 8 real rows at the bottom too."""
    slots = reduce(features((64, 64)), Cubist(rate), LAYOUTS["sam"])[1].slot()[0].view(64, 64)
    side = 5 * (14 - lines)
    right, below = slots[:56, 56:] % side, slots[56:, :56] // side
    assert torch.equal(right, (side - (14 - lines) + torch.arange(8)).expand(56, 8))
    assert torch.equal(below, (side - (14 - lines) + torch.arange(8)).view(8, 1).expand(8, 56))


ONNX_CASES = {
    "windows": (WindowGrid((6, 10), 4), "window", 0.5),
    "sam": (LAYOUTS["sam"], "window", 0.26),
    "sam's pads": (WindowGrid((20, 20), 14), "window", 0.6),
    "whole": (WindowGrid((9, 7)), "global", 0.4),
    "half of all": (WindowGrid((8, 8)), "global", 0.75),
}


@pytest.fixture(scope="module", params=ONNX_CASES.values(), ids=ONNX_CASES)
def exported(request):
    """A reduction and its inverse, traced for two images: layout, method, x, graph."""
    layout, variant, rate = request.param
    method = Cubist(rate, variant)
    x = torch.tensor(features(layout.shape, images=2), dtype=torch.float32)

    class Module(torch.nn.Module):
        def forward(self, x):
            small, plan = method.reduce(x, layout)
            return small, plan.unmerge(small * 2), plan.slot(), plan.rows, plan.columns

    names = ["small", "restored", "slot", "rows", "columns"]
    program = torch.onnx.export(
        Module().eval(),
        (x,),
        dynamo=True,
        opset_version=18,
        verbose=False,
        input_names=["x"],
        output_names=names,
    )
    return layout, method, x, program.model_proto


def test_the_same_in_onnx(exported):
    layout, method, x, model = exported
    found = run(model, {"x": x.numpy()})
    small, plan = method.reduce(x, layout)
    assert np.array_equal(found["rows"], plan.rows) and np.array_equal(found["columns"], plan.columns)
    assert np.array_equal(found["slot"], plan.slot())
    assert np.array_equal(found["small"], small)
    assert np.array_equal(found["restored"], plan.unmerge(small * 2))


def test_onnx_has_fixed_shapes_and_plain_operators(exported):
    model = exported[-1]
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    known = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph.node:
        assert node.op_type not in {"NonZero", "Compress", "If", "Loop", "ScatterND", "OneHot", "Unique"}
        if node.op_type.startswith("Scatter"):
            assert all(a.s in (b"", b"none") for a in node.attribute if a.name == "reduction")
        for output in node.output:
            dims = known[output].type.tensor_type.shape.dim
            assert all(d.HasField("dim_value") for d in dims), output
        if node.op_type == "TopK":
            assert known[node.output[0]].type.tensor_type.shape.dim[-1].dim_value <= 3840


def test_onnx_values_follow_the_integers(exported):
    """Other decisions put into the graph in place of its own change the values as they should."""
    layout, method, x, model = exported
    _, plan = method.reduce(x, layout)
    rows, columns = (other_joins(part, r) for part, r in zip((plan.rows, plan.columns), plan.removed[::-1]))
    assert not torch.equal(rows, plan.rows) and not torch.equal(columns, plan.columns)
    fed = onnx.ModelProto()
    fed.CopyFrom(model)
    for node in fed.graph.node:
        node.input[:] = [f"given_{name}" if name in ("rows", "columns") else name for name in node.input]
    for name, part in (("given_rows", rows), ("given_columns", columns)):
        fed.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, part.shape))
    found = run(fed, {"x": x.numpy(), "given_rows": rows.numpy(), "given_columns": columns.numpy()})
    given = dataclasses.replace(plan, rows=rows, columns=columns)
    expected = by_slots(x, given)
    assert np.array_equal(found["slot"], given.slot())
    assert np.array_equal(found["small"], expected)
    assert np.array_equal(found["restored"], given.unmerge(expected * 2))


def other_joins(joins, removed):
    """Random decisions of the same kind."""
    random = np.random.default_rng(5)
    out = np.zeros(joins.shape, np.int64)
    for row in out:
        chosen = random.permutation(len(row))[:removed]
        row[chosen] = random.integers(LEFT, RIGHT + 1, removed)
        if joins.shape[1] == removed or row[-1] == RIGHT:
            row[-1] = LEFT if row[-1] else 0  # a last odd token may have no right neighbour
    return torch.tensor(out)


def by_slots(x, plan):
    """The value of largest magnitude of all tokens that share a slot; a slot of pads only is zero."""
    H, W = plan.after.shape
    small = torch.zeros(len(x), H * W, x.shape[-1])
    for image, slots in enumerate(plan.slot().tolist()):
        for slot, token in zip(slots, x[image].flatten(0, 1)):
            small[image, slot] = torch.where(token.abs() > small[image, slot].abs(), token, small[image, slot])
    return small.view(len(x), H, W, -1)


# In the host: 10 x 10 tokens in windows of 4 (12 with pads), blocks 0, 2 and 4 windowed, 1 and 3 global.
HOST_CASES = [
    pytest.param(variant, rate, first, grid, id=f"{variant}-{rate:g}-from-{first}")
    for variant, rate, grid in [("window", 0.2, 9), ("window", 0.6, 6), ("global", 0.36, 8), ("global", 0.5, 7)]
    for first in (0, 1, 2, 4)
]
each_host_case = pytest.mark.parametrize(("variant", "rate", "first", "grid"), HOST_CASES)


@pytest.fixture(scope="module")
def stock():
    """An encoder, an input of two images and its embedding; only for tests that leave the encoder stock."""
    encoder = tiny_encoder(image=(160, 160), depth=5, global_layers=(1, 3))
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(4))
    return encoder, x, encoder(x)


@each_host_case
def test_host_runs_the_blocks_that_follow_on_the_small_grid(stock, variant, rate, first, grid):
    """The embedding of stock blocks called by hand: their window size set, the grid reduced and restored between."""
    encoder, x, dense = stock
    method, layout = Cubist(rate, variant), WindowGrid((10, 10), 4)
    window = 4 if variant == "global" else {9: 3, 6: 2}[grid]
    assert method.after(layout) == WindowGrid((grid, grid), window)
    with patched(encoder, method, range(first, 5)):
        found = encoder(x)
    by_hand = copy.deepcopy(encoder)
    y = by_hand.patch_embed(x) + by_hand.pos_embed
    for block in by_hand.blocks[:first]:
        y = block(y)
    y, plan = method.reduce(y, layout)
    for block in by_hand.blocks[first:]:
        block.window_size = window if block.window_size else 0
        assert y.shape == (2, grid, grid, 16)
        y = block(y)
    expected = by_hand.neck(plan.unmerge(y).permute(0, 3, 1, 2))
    assert found.shape == dense.shape
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, dense, atol=1e-2)


@each_host_case
def test_host_blocks_keep_their_window_sizes(stock, variant, rate, first, grid):
    encoder, x, dense = stock
    before = [(type(block), block.window_size, sorted(vars(block))) for block in encoder.blocks]
    assert [size for _, size, _ in before] == [4, 0, 4, 0, 4]
    small = Cubist(rate, variant).after(WindowGrid((10, 10), 4)).window
    with patched(encoder, Cubist(rate, variant), range(first, 5)):
        inside = {i: role.grid.window for i, role in roles_of(encoder).items()}
        assert [block.window_size for block in encoder.blocks] == [size for _, size, _ in before]
        encoder(x)
    assert inside == {i: small if before[i][1] else 0 for i in range(first, 5)}
    assert [(type(block), block.window_size, sorted(vars(block))) for block in encoder.blocks] == before
    assert torch.equal(encoder(x), dense)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rate_zero_is_the_stock_encoder(stock, variant):
    encoder, x, dense = stock
    kinds = [type(block) for block in encoder.blocks]
    with patched(encoder, Cubist(0.0, variant), range(5)):
        assert [type(block) for block in encoder.blocks] == kinds
        assert torch.equal(encoder(x), dense)


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(dict.fromkeys([0, 1], Cubist()), id="a prefix"),
        pytest.param(dict.fromkeys([3], Cubist()), id="one in the middle"),
        pytest.param(dict.fromkeys([1, 2, 4], Cubist()), id="a gap"),
        pytest.param({2: Cubist(), 3: Cubist(), 4: Cubist(0.2)}, id="two rates"),
        pytest.param({2: Cubist(), 3: Cubist(), 4: Cubist(0.5, "global")}, id="two variants"),
    ],
)
def test_layers_that_are_not_the_last_ones_are_refused(stock, blocks):
    encoder, x, dense = stock
    first = min(blocks)
    with (
        pytest.raises(UsageError, match=rf"'cubist' reduces the grid once.*--layers {first}-4"),
        patched(encoder, blocks),
    ):
        raise AssertionError("not refused")
    assert torch.equal(encoder(x), dense)


def test_parts_are_the_first_fields():
    assert tuple(field.name for field in dataclasses.fields(GridPlan))[:4] == GridPlan.PARTS


def test_a_method_describes_itself():
    method = Cubist()
    assert (method.rate, method.variant) == (0.5, next(iter(Cubist.VARIANTS)))
    assert Cubist.VARIANTS == VARIANTS
    assert Cubist.NAME == "cubist"
    assert Cubist.PROTECTS and "2509.21764" in Cubist.SOURCE
    assert method.macs(LAYOUTS["sam"], 768) == 0
    assert hash(method) == hash(Cubist(0.5, "window"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.rate = 0.1
