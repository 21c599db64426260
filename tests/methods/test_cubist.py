"""CubistMerge on grids, against loops over lines of tokens written straight from the specification's rule."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from graphs import run

from structsam_export.methods.cubist import LEFT, RIGHT, Cubist, GridPlan, line_joins, line_slots, merge_lines
from structsam_export.methods.tokens import Layout

PAD = None
LAYOUTS = {
    "sam": Layout((64, 64), 14),
    "demo": Layout((32, 32), 12),
    "odd": Layout((9, 7)),
    "odd windows": Layout((13, 16), 5),
    "lone pads": Layout((7, 11), 4),
    "thin": Layout((1, 12)),
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
    (H, W), size = layout.grid, layout.window
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
    method, x = Cubist(rate, variant), features(layout.grid)
    small, plan = reduce(x, method, layout)
    H, W = plan.after.grid
    place = np.arange(H * W).reshape(H, W)
    expected, restored = slow_cubist(x[0], place, layout, variant, *method.lines(layout))
    assert small.shape == (1, H, W, 4)
    assert np.array_equal(small[0].numpy(), expected.astype(np.float32))
    assert np.array_equal(plan.slot()[0].numpy().reshape(layout.grid), restored)
    assert torch.equal(plan.decision(), plan.slot())
    y = torch.randn(1, H, W, 3, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(plan.unmerge(y)[0].numpy(), y[0].flatten(0, 1).numpy()[restored])


@each_case
def test_shapes_and_types_do_not_depend_on_the_image(layout, variant, rate):
    method = Cubist(rate, variant)
    scope = layout if variant == "window" else Layout(layout.grid)
    (h, w), (r_h, r_w) = scope.side, method.lines(layout)
    assert 0 <= r_h <= h // 2 and 0 <= r_w <= w // 2 and r_h + r_w > 0
    for seed in (0, 1):
        small, plan = reduce(features(layout.grid, images=2, seed=seed), method, layout)
        assert plan.rows.shape == (2 * scope.calls * h, w // 2)
        assert plan.columns.shape == (2 * scope.calls * (w - r_w), h // 2)
        assert plan.slot().shape == (2, layout.grid[0] * layout.grid[1])
        assert {plan.rows.dtype, plan.columns.dtype, plan.slot().dtype} == {torch.int64}
        assert ((plan.rows > 0).sum(1) == r_w).all() and ((plan.columns > 0).sum(1) == r_h).all()
        assert plan.rows.min() >= 0 and plan.rows.max() <= RIGHT
        assert small.shape == (2, *plan.after.grid, 4)
        assert (plan.layout, plan.removed) == (scope, (r_h, r_w))
        assert plan.after.grid == method.after(layout).grid
        assert not plan.after.has_pads
        assert plan.slot().min() >= 0 and plan.slot().max() < plan.after.grid[0] * plan.after.grid[1]


@each_case
def test_equal_tokens_merge_without_loss(layout, variant, rate):
    """What is restored reduces to itself where every token equals those it went with."""
    method = Cubist(rate, variant)
    _, plan = reduce(features(layout.grid), method, layout)
    y = torch.randn(1, *plan.after.grid, 4, generator=torch.Generator().manual_seed(2))
    x = plan.unmerge(y)
    small, again = method.reduce(x, layout)
    assert torch.equal(again.unmerge(small), x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_value_everywhere(variant):
    """All edges tie, and whichever merge, the value stays; no pad brings a zero in."""
    layout, method = LAYOUTS["demo"], Cubist(0.5, variant)
    x = torch.full((1, 32, 32, 3), -2.0)
    small, plan = method.reduce(x, layout)
    assert torch.equal(plan.unmerge(small), x)


@each_case
def test_an_image_is_reduced_alike_in_any_batch(layout, variant, rate):
    method, x = Cubist(rate, variant), features(layout.grid, images=3)
    together, plan = reduce(x, method, layout)
    for image in range(3):
        small, alone = reduce(x[image : image + 1], method, layout)
        assert torch.equal(small[0], together[image])
        assert torch.equal(alone.slot()[0], plan.slot()[image])


def test_two_sources_of_one_target_both_count():
    """The released code loses one of the two."""
    line = torch.tensor([[[9.0, 0, 0], [1, 8, -3], [2, -7, 1], [3, 1, 2], [0, 0, 9]]])
    joins = torch.tensor([[RIGHT, LEFT]])
    assert merge_lines(line, joins, 2).tolist() == [[[9, 0, 0], [3, 8, -3], [0, 0, 9]]]
    assert line_slots(joins, 5).tolist() == [[0, 1, 1, 1, 2]]
    # And from features: 1 and 3 point where 2 does.
    line = torch.tensor([[[1.0, 0, 0], [0, 5, 1], [0, 4, 4], [0, -1, 6], [-1, -1, 0]]])
    assert line_joins(line, 2, None).tolist() == [[RIGHT, LEFT]]
    assert merge_lines(line, joins, 2)[0, 1].tolist() == [0, 5, 6]


def test_a_target_wins_a_tie_of_magnitudes():
    line = torch.tensor([[[1.0], [-1.0], [1.0]]])
    for joins, expected in ((LEFT, [1, 1]), (RIGHT, [1, 1])):
        assert merge_lines(line, torch.tensor([[joins]]), 1).flatten().tolist() == expected


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
    assert method.after(layout) == Layout((side, side), 14 - lines)


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
    assert method.after(layout) == Layout(grid, 14)


def test_both_sides_lose_the_same_fraction():
    assert Cubist(0.4375, "global").lines(Layout((32, 64))) == (8, 16)
    assert Cubist(0.75, "global").lines(Layout((5, 8))) == (2, 4)
    assert Cubist(0.25, "global").lines(Layout((1, 12))) == (0, 3)


@each_case
def test_no_other_grid_is_nearer_to_the_rate(layout, variant, rate):
    method = Cubist(rate, variant)
    H, W = layout.grid
    off = [
        abs(1 - np.prod(Cubist(other, variant).after(layout).grid) / (H * W) - rate)
        for other in np.linspace(0, VARIANTS[variant], 60)
    ]
    assert abs(1 - np.prod(method.after(layout).grid) / (H * W) - rate) <= min(off) + 1e-9


def test_windows_of_an_encoder_without_windows_are_the_whole_grid():
    layout, x = LAYOUTS["odd"], features((9, 7))
    assert Cubist(0.5).after(layout) == Cubist(0.5, "global").after(layout)
    assert torch.equal(reduce(x, Cubist(0.5), layout)[0], reduce(x, Cubist(0.5, "global"), layout)[0])


@pytest.mark.parametrize(("rate", "lines"), [(0.12, 2), (0.26, 3)])
def test_border_windows_of_sam_lose_pads_only(rate, lines):
    layout = LAYOUTS["sam"]
    x = features(layout.grid)
    small, plan = reduce(x, Cubist(rate), layout)
    assert plan.removed == (lines, lines)
    real = 4 * (14 - lines) + 8  # four inner windows and what is real of the border one
    pads = np.ones((5 * (14 - lines),) * 2, bool)
    pads[:real, :real] = False
    assert np.array_equal(small[0].abs().amax(-1).numpy() == 0, pads)
    corner = plan.slot()[0].view(64, 64)[56:, 56:]
    assert len(set(corner.flatten().tolist())) == 64
    assert torch.equal(small[0, real - 8 : real, real - 8 : real], torch.tensor(x[0, 56:, 56:], dtype=torch.float32))


@each_case
def test_no_real_token_turns_into_a_pad(layout, variant, rate):
    """A pad takes no real value away, wherever it has to go."""
    x = np.where(features(layout.grid) > 0, 1.0, -1.0) * np.array([1, 2, 3, 4])
    small, plan = reduce(x, Cubist(rate, variant), layout)
    assert np.array_equal(plan.unmerge(small).abs().numpy(), np.abs(x))


def test_half_precision_keeps_its_type_and_decides_in_single():
    layout, method = LAYOUTS["demo"], Cubist(0.5)
    x = torch.tensor(features(layout.grid), dtype=torch.float16)
    small, plan = method.reduce(x, layout)
    expected, same = method.reduce(x.float(), layout)
    assert small.dtype == torch.float16
    assert torch.equal(small.float(), expected)
    assert torch.equal(plan.slot(), same.slot())


ONNX_CASES = {
    "windows": (Layout((6, 10), 4), "window", 0.5),
    "sam's pads": (Layout((20, 20), 14), "window", 0.6),
    "whole": (Layout((9, 7)), "global", 0.4),
    "half of all": (Layout((8, 8)), "global", 0.75),
}


@pytest.fixture(scope="module", params=ONNX_CASES.values(), ids=ONNX_CASES)
def exported(request):
    """A reduction and its inverse, traced for two images: layout, method, x, graph."""
    layout, variant, rate = request.param
    method = Cubist(rate, variant)
    x = torch.tensor(features(layout.grid, images=2), dtype=torch.float32)

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
    H, W = plan.after.grid
    small = torch.zeros(len(x), H * W, x.shape[-1])
    for image, slots in enumerate(plan.slot().tolist()):
        for slot, token in zip(slots, x[image].flatten(0, 1)):
            small[image, slot] = torch.where(token.abs() > small[image, slot].abs(), token, small[image, slot])
    return small.view(len(x), H, W, -1)


def test_parts_are_the_first_fields():
    assert GridPlan.parts == tuple(field.name for field in dataclasses.fields(GridPlan))[:2] == ("rows", "columns")


def test_a_method_describes_itself():
    method = Cubist()
    assert (method.rate, method.variant) == (0.5, next(iter(Cubist.VARIANTS)))
    assert Cubist.VARIANTS == VARIANTS
    assert (Cubist.NAME, Cubist.KIND) == ("cubist", "grid")
    assert Cubist.PROTECTS and "2509.21764" in Cubist.SOURCE
    assert method.macs(LAYOUTS["sam"], 768) == 0
    assert hash(method) == hash(Cubist(0.5, "window"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.rate = 0.1
