"""Prompt-aware StructSAM: what belongs to the prompt stays whole, at counts that no prompt changes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import torch
from conftest import tiny_encoder
from graphs import run

from structsam_export.errors import UsageError
from structsam_export.methods import METHODS, PROMPT_AWARE, make_method
from structsam_export.methods.energy import gradient_energy
from structsam_export.methods.plan import MergePlan, SplitPlan
from structsam_export.patch import patched, prompted, recording
from structsam_export.roles import WindowGroup
from structsam_export.tokens import Tokens, WindowGrid, prompt_region
from structsam_export.trace import decision_names, encoder_with_decisions, trace_encoder
from structsam_export.validate.decisions import GIVEN, decided, expose

GLOBAL, WINDOWS = WindowGrid((64, 64)), WindowGrid((64, 64), 14)
LAYOUTS = {
    "sam-global": GLOBAL,
    "sam-window": WINDOWS,
    "demo-global": WindowGrid((32, 32)),
    "demo-window": WindowGrid((32, 32), 12),
    "odd": WindowGrid((9, 7)),
    "one window": WindowGrid((8, 8), 8),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
# In tokens of the 64x64 grid: x0 y0 x1 y1. Grown by one token they touch at most 7x7 cells and four windows.
SMALL = {
    "inside a window": (3.2, 4.7, 8.1, 9.9),
    "over a corner of windows": (11.0, 25.0, 17.0, 31.0),
    "at the edge": (58.0, 0.0, 64.0, 5.5),
    "partly outside": (-9.0, 60.0, 4.0, 80.0),
    "a point": (41.5, 20.5, 41.5, 20.5),
}
each_box = pytest.mark.parametrize("box", SMALL.values(), ids=SMALL)


def aware(rate=0.5):
    return make_method("structsam", rate, prompt_aware=True)


def region_of(box, layout, patch=16, images=1):
    return prompt_region(torch.tensor([box]) * patch, layout.shape, patch).repeat(images, 1, 1)


def tokens_of(layout, region=None, images=1, seed=0):
    """Random features; their gradients lie close together, as a trained block's do."""
    features = torch.randn(images, *layout.shape, 8, generator=torch.Generator().manual_seed(seed))
    return Tokens(features, layout, region)


def plan_of(rate, layout, region=None, **options):
    tokens = tokens_of(layout, region, **options)
    return aware(rate).plan(tokens), tokens


def destinations(plan):
    """(calls, N), dense calls too."""
    return plan.assignment({part: getattr(plan, part).numpy() for part in plan.PARTS}, 0)


def slot_sets(plan, layout):
    """Every group of tokens that share a slot, as sets of (row, column) of the grid; pads left out."""
    (h, w), (_, across), (H, W) = layout.window_shape, layout.window_counts, layout.shape
    found = []
    for call, row in enumerate(destinations(plan)[: layout.windows]):
        groups = {}
        for token, destination in enumerate(row):
            place = (call // across * h + token // w, call % across * w + token % w)
            if place[0] < H and place[1] < W:
                groups.setdefault(int(destination), set()).add(place)
        found += [group for group in groups.values() if len(group) > 1]
    return found


def places(region):
    return {(r, c) for r, c in region[0].nonzero().tolist()}


def cells_of(grid):
    return [
        {(r + i, c + j) for i in (0, 1) for j in (0, 1)}
        for r in range(0, grid[0] - 1, 2)
        for c in range(0, grid[1] - 1, 2)
    ]


def slow_region(box, grid, patch):
    """Tokens whose patch meets the box grown by one token, or the square of two tokens around a point."""
    x0, y0, x1, y1 = box
    grow = 2 * patch if (x0, y0) == (x1, y1) else patch
    made = np.zeros(grid, np.float32)
    for r in range(grid[0]):
        for c in range(grid[1]):
            across = c * patch < x1 + grow and (c + 1) * patch > x0 - grow
            made[r, c] = across and r * patch < y1 + grow and (r + 1) * patch > y0 - grow
    return made


BOXES = [
    (100.0, 60.0, 180.0, 130.0),
    (96.0, 64.0, 176.0, 128.0),  # along the patches
    (-50.0, -10.0, 20.0, 300.0),
    (150.0, 100.0, 900.0, 900.0),
    (-500.0, 20.0, -300.0, 60.0),  # outside altogether
    (33.0, 70.0, 33.0, 110.0),  # no width
    (81.5, 40.25, 81.5, 40.25),  # points
    (0.0, 0.0, 0.0, 0.0),
    (-80.0, 64.0, -80.0, 64.0),
    (0.0, 0.0, 224.0, 160.0),
]


@pytest.mark.parametrize("patch", [16, 8])
def test_the_region_of_a_prompt(patch):
    found = prompt_region(torch.tensor(BOXES), (10, 14), patch)
    assert found.shape == (len(BOXES), 10, 14) and found.dtype == torch.float32
    for box, region in zip(BOXES, found.numpy()):
        assert np.array_equal(region, slow_region(box, (10, 14), patch)), box


def test_a_point_is_a_square_of_five_tokens():
    region = prompt_region(torch.tensor([[88.0, 72.0, 88.0, 72.0]]), (10, 14), 16)[0]
    assert torch.equal(region.nonzero().unique(), torch.tensor([2, 3, 4, 5, 6, 7]))
    assert region.sum() == 25


def test_whole_pixels_are_a_prompt_too():
    boxes = torch.tensor([[100, 60, 180, 130]])
    assert torch.equal(prompt_region(boxes, (10, 14), 16), prompt_region(boxes.float(), (10, 14), 16))


# Whole layers.


FITS = [("sam-global", 0.25), ("sam-global", 0.5), ("sam-global", 0.7), ("sam-window", 0.25), ("sam-window", 0.5)]


@each_box
@pytest.mark.parametrize(("where", "rate"), FITS)
def test_a_box_that_fits_is_not_touched_by_any_merge(where, rate, box):
    """It touches at most four windows, and nine stay dense at rate 0.5."""
    layout = LAYOUTS[where]
    region = region_of(box, layout)
    plan, _ = plan_of(rate, layout, region)
    protected = places(region)
    merged = slot_sets(plan, layout)
    assert sum(len(group) - 1 for group in merged) > 0
    assert not any(group & protected for group in merged)


@pytest.mark.parametrize("rate", [0.5, 0.6, 0.75])
@pytest.mark.parametrize("box", [(10.0, 5.0, 40.0, 60.0), (0.0, 0.0, 64.0, 64.0), (30.3, 30.3, 33.9, 33.9)])
def test_a_protected_cell_merges_only_if_no_free_one_is_left(box, rate):
    region = region_of(box, GLOBAL)
    protected, merged = places(region), slot_sets(plan_of(rate, GLOBAL, region)[0], GLOBAL)
    cells = cells_of(GLOBAL.shape)
    assert all(group in cells for group in merged)
    free = [cell for cell in cells if not cell & protected]
    touched = [group for group in merged if group & protected]
    assert len(touched) == max(0, int(rate * 4096 / 3) - len(free))
    if touched:
        assert all(cell in merged for cell in free)


def steepest_of(tokens):
    """The steepest token of every cell of a grid that has no windows."""
    energy = gradient_energy(tokens.features, tokens.grid, "sobel").view(tokens.grid.shape).tolist()
    return [max(energy[r][c] for r, c in cell) for cell in cells_of(tokens.grid.shape)]


@pytest.mark.parametrize("box", [(0.0, 0.0, 64.0, 64.0), (8.0, 0.0, 64.0, 64.0), (0.0, 0.0, 0.0, 0.0)])
def test_the_flattest_cells_merge_free_ones_before_protected_ones(box):
    region = region_of(box, GLOBAL)
    plan, tokens = plan_of(0.6, GLOBAL, region)
    cells, steepest, protected = cells_of(GLOBAL.shape), steepest_of(tokens), places(region)
    order = sorted(range(len(cells)), key=lambda i: (bool(cells[i] & protected), steepest[i]))
    expected = {frozenset(cells[i]) for i in order[: int(0.6 * 4096 / 3)]}
    assert {frozenset(group) for group in slot_sets(plan, GLOBAL)} == expected


def window_order(tokens):
    """Windows with most of the prompt first, then those with the steepest tokens on average."""
    layout = tokens.grid
    held = layout.partition(tokens.region.unsqueeze(-1)).sum((1, 2)).tolist()
    structure = gradient_energy(tokens.features, layout, "sobel").double().mean(1).tolist()
    return sorted(range(layout.windows), key=lambda i: (-held[i], -structure[i]))


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("box", [*SMALL.values(), (1.0, 2.0, 40.0, 25.0), (-500.0, -500.0, -400.0, -400.0)])
def test_windows_with_most_of_the_prompt_stay_dense(rate, box):
    region = region_of(box, WINDOWS)
    plan, tokens = plan_of(rate, WINDOWS, region)
    dense = aware(rate).dense_windows(WINDOWS)
    assert isinstance(plan, SplitPlan) and plan.dense == dense
    assert set(plan.order[0, :dense].tolist()) == set(window_order(tokens)[:dense])
    for call, row in enumerate(destinations(plan)):
        alone = (row == np.arange(196)).sum()
        assert alone == (196 if call in plan.order[0, :dense].tolist() else 49)


def test_windows_inside_the_prompt_are_told_apart_by_their_structure():
    """Sixteen windows lie wholly inside, and nine stay dense; over a few images."""
    for seed in range(8):
        plan, tokens = plan_of(0.5, WINDOWS, region_of((0.0, 0.0, 64.0, 64.0), WINDOWS), seed=seed)
        assert plan.dense == 9
        assert set(plan.order[0, :9].tolist()) == set(window_order(tokens)[:9])


def test_no_slot_holds_the_prompt_and_its_surroundings():
    """While cells, or dense windows, are left."""
    for layout in (GLOBAL, WINDOWS):
        for box in SMALL.values():
            region = region_of(box, layout)
            protected = places(region)
            for group in slot_sets(plan_of(0.5, layout, region)[0], layout):
                assert not group & protected or group <= protected


@each_layout
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
def test_counts_do_not_depend_on_the_prompt(layout, rate):
    method = aware(rate)
    if not method.removed(layout):
        return
    regions = [None, *(region_of(box, layout, patch=4) for box in SMALL.values()), torch.ones(1, *layout.shape)]
    plans = [plan_of(rate, layout, region)[0] for region in regions]
    assert {type(plan) for plan in plans} == {SplitPlan if method.dense_windows(layout) else MergePlan}
    assert len({tuple(getattr(plan, part).shape for part in plan.PARTS) for plan in plans}) == 1
    counts = sum(group.windows * (layout.tokens - group.queries) for group in method.window_groups(layout))
    for plan in plans:
        merged = destinations(plan) != np.arange(layout.tokens)
        assert merged.sum() == counts


@each_layout
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.6, 0.75])
def test_the_effective_rate_is_within_one_call_of_the_rate(layout, rate):
    method, h, w = aware(rate), *layout.window_shape
    groups = [(group.windows, group.queries) for group in method.window_groups(layout)]
    assert sum(calls for calls, _ in groups) == layout.windows
    short = layout.windows * layout.tokens * rate - sum(calls * (layout.tokens - n) for calls, n in groups)
    assert short > -1e-6
    most = 3 * (h // 2) * (w // 2)  # of one call
    assert short < (most if layout.window else 3) or groups == [(layout.windows, layout.tokens - most)]


def test_windows_at_the_highest_rate_all_merge():
    plan, _ = plan_of(0.75, WINDOWS, torch.ones(1, 64, 64))
    assert isinstance(plan, MergePlan)
    assert aware(0.75).window_groups(WINDOWS) == [WindowGroup(25, 49, 49)]


def test_too_low_a_rate_for_one_window_removes_nothing():
    assert aware(0.02).removed(WINDOWS) == 0
    assert aware(0.02).window_groups(WINDOWS) == [WindowGroup(25, 196, 196)]


@each_layout
def test_no_prompt_is_a_prompt_that_meets_nothing(layout):
    outside = torch.zeros(1, *layout.shape)
    a, b = (plan_of(0.5, layout, region)[0] for region in (None, outside))
    assert np.array_equal(destinations(a), destinations(b))


def test_no_prompt_on_the_whole_grid_is_structsam():
    plan, tokens = plan_of(0.5, GLOBAL)
    assert torch.equal(plan.destination(), make_method("structsam", 0.5).plan(tokens).destination())


@each_layout
def test_two_images_with_two_prompts_are_planned_as_each_alone(layout):
    region = torch.cat([region_of(SMALL["inside a window"], layout), region_of(SMALL["a point"], layout, patch=2)])
    both, tokens = plan_of(0.5, layout, region, images=2)
    alone = [aware(0.5).plan(Tokens(tokens.features[i : i + 1], layout, region[i : i + 1])) for i in range(2)]
    assert np.array_equal(destinations(both), np.concatenate([destinations(plan) for plan in alone]))


def test_dense_and_merged_windows_go_back_to_their_places():
    """`SplitPlan.through` against a loop over all calls."""
    region = torch.cat([region_of(box, WINDOWS) for box in (SMALL["at the edge"], SMALL["a point"])])
    plan, _ = plan_of(0.5, WINDOWS, region, images=2)
    x = torch.randn(50, 196, 3, generator=torch.Generator().manual_seed(1))
    seen = []

    def compute(tokens, pos):
        seen.append((tokens.shape, None if pos is None else pos.shape))
        return tokens * 2 + (0 if pos is None else 1)

    found = plan.through(x, compute)
    assert seen == [((18, 196, 3), None), ((32, 49, 3), (32, 49))]
    for call, row in enumerate(destinations(plan)):
        image, number = divmod(call, 25)
        if number in plan.order[image, :9].tolist():
            assert torch.equal(found[call], x[call] * 2)
            continue
        for destination in set(row.tolist()):
            group = torch.tensor(row == destination)
            want = (x[call, group].mean(0) * 2 + 1).expand(int(group.sum()), -1)
            assert torch.allclose(found[call, group], want, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in PROMPT_AWARE])
def test_other_methods_have_no_such_form(name):
    with pytest.raises(UsageError, match=f"Method '{name}' has no --prompt-aware form. Methods that do: structsam"):
        make_method(name, prompt_aware=True)


def test_the_similarity_variant_has_no_such_form():
    with pytest.raises(UsageError, match="no variant 'bsm'"):
        make_method("structsam", 0.5, "bsm", prompt_aware=True)


# In an encoder.


def eager(encoder, image, boxes):
    """Outputs by name of an encoder that is patched already."""
    made = encoder_with_decisions(encoder)(image, boxes)
    return {name: t.numpy() for name, t in zip(["image_embeddings", *decision_names(encoder)], made)}


def images(encoder, count=1):
    side = encoder.img_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_an_encoder_leaves_what_its_prompt_shows_alone():
    """In every layer: 16x16 tokens, windows of 4, block 1 global; boxes in pixels."""
    encoder = tiny_encoder(image=(256, 256))
    box = torch.tensor([[40.0, 72.0, 56.0, 88.0]])
    protected = places(prompt_region(box, (16, 16), 16))
    assert len(protected) == 16
    with patched(encoder, aware(0.5), range(3)), recording(encoder) as decisions:
        with prompted(encoder, box):
            encoder(images(encoder))
        for i, layout in enumerate((WindowGrid((16, 16), 4), WindowGrid((16, 16)), WindowGrid((16, 16), 4))):
            merged = slot_sets(decisions[f"plan.{i}"].plan, layout)
            assert sum(len(group) - 1 for group in merged) == [120, 126, 120][i]
            assert not any(group & protected for group in merged)


def test_each_image_of_a_batch_has_its_own_prompt():
    encoder = tiny_encoder(image=(256, 256))
    x, boxes = images(encoder, 2), torch.tensor([[10.0, 20.0, 90.0, 60.0], [200.0, 200.0, 200.0, 200.0]])
    with patched(encoder, aware(0.5), range(3)):
        both = eager(encoder, x, boxes)
        for i in range(2):
            alone = eager(encoder, x[i : i + 1], boxes[i : i + 1])
            assert np.allclose(both["image_embeddings"][i], alone["image_embeddings"][0], atol=1e-5)
        swapped = eager(encoder, x, boxes.flip(0))
    assert not np.allclose(both["image_embeddings"], swapped["image_embeddings"], atol=1e-3)


def test_the_prompt_is_forgotten_afterwards():
    encoder = tiny_encoder(image=(96, 96))
    x, boxes = images(encoder), torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    with patched(encoder, aware(0.5), range(3)):
        without = encoder(x)
        with pytest.raises(ZeroDivisionError), prompted(encoder, boxes):
            assert not torch.allclose(encoder(x), without, atol=1e-4)
            raise ZeroDivisionError
        assert torch.equal(encoder(x), without)


# In ONNX.

PLANS = {"plan.0": SplitPlan, "plan.1": MergePlan}
PROMPTS = {"a box": (0.0, 0.0, 20.0, 30.0), "a point": (75.0, 80.0, 75.0, 80.0)}


@cache
def traced_aware():
    """6x6 tokens; blocks 0 (windows of 4, two of four stay dense) and 1 (global)."""
    encoder = tiny_encoder(image=(96, 96))
    with patched(encoder, aware(0.5), (0, 1)), TemporaryDirectory() as folder:
        trace_encoder(encoder, 96, Path(folder) / "encoder.onnx", boxes=True)
        return onnx.load(Path(folder) / "encoder.onnx")


def wanted(prompt):
    encoder = tiny_encoder(image=(96, 96))
    with patched(encoder, aware(0.5), (0, 1)):
        return eager(encoder, images(encoder), torch.tensor([PROMPTS[prompt]])), images(encoder).numpy()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_one_file_answers_every_prompt(prompt):
    want, image = wanted(prompt)
    found = run(traced_aware(), {"image": image, "boxes": np.array([PROMPTS[prompt]], np.float32)})
    assert list(found) == list(want)
    assert np.abs(found["image_embeddings"] - want["image_embeddings"]).max() < 2e-5
    for name in ("plan.0", "plan.1"):
        assert np.array_equal(decided(found, name, PLANS[name]), decided(want, name, PLANS[name]))


def test_prompts_matter():
    (one, _), (other, _) = (wanted(prompt) for prompt in PROMPTS)
    assert np.abs(one["image_embeddings"] - other["image_embeddings"]).max() > 1e-2
    assert not np.array_equal(decided(one, "plan.0", SplitPlan), decided(other, "plan.0", SplitPlan))


def test_the_prompt_is_an_input_and_all_shapes_are_static():
    graph = traced_aware().graph
    assert [(i.name, [d.dim_value for d in i.type.tensor_type.shape.dim]) for i in graph.input] == [
        ("image", [1, 3, 96, 96]),
        ("boxes", [1, 4]),
    ]
    for value in [*graph.output, *graph.value_info]:
        dims = value.type.tensor_type.shape.dim
        assert all(d.HasField("dim_value") and d.dim_value > 0 for d in dims), value.name


def test_operators_that_tensorrt_lacks_are_not_used():
    graph = traced_aware().graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    operators = {node.op_type for node in graph.node}
    assert "TopK" in operators
    assert not operators & {"NonZero", "Compress", "Unique", "If", "Loop", "Scan", "OneHot", "ScatterND"}
    for node in graph.node:
        reduction = [a.s for a in node.attribute if a.name == "reduction"]
        assert not node.op_type.startswith("Scatter") or reduction in ([], [b"none"])
        assert node.op_type != "TopK" or int(values[node.input[1]].item()) <= 3840


def test_a_graph_with_another_prompts_decisions_computes_what_that_prompt_gives():
    """A prompt acts through decisions alone."""
    (want, image), (foreign, _) = wanted("a box"), wanted("a point")
    model, names = onnx.ModelProto(), [name for name in want if name != "image_embeddings"]
    model.CopyFrom(traced_aware())
    expose(model, PLANS, given=True)
    feed = {"image": image, "boxes": np.array([PROMPTS["a box"]], np.float32)}
    found = run(model, feed | {name: foreign[name] for name in names})
    assert np.abs(found["image_embeddings"] - foreign["image_embeddings"]).max() < 2e-5


def test_a_graph_with_another_prompts_decisions_says_its_own():
    (want, image), (foreign, _) = wanted("a box"), wanted("a point")
    model, names = onnx.ModelProto(), [name for name in want if name != "image_embeddings"]
    model.CopyFrom(traced_aware())
    expose(model, PLANS, given=True)
    feed = {"image": image, "boxes": np.array([PROMPTS["a box"]], np.float32)}
    found = run(model, feed | {name: foreign[name] for name in names})
    said = {key.removesuffix(GIVEN): value for key, value in found.items()}
    assert np.array_equal(decided(said, "plan.0", SplitPlan), decided(want, "plan.0", SplitPlan))
