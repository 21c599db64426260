"""Which differences between two runtimes are ties, what a graph computes with another's decisions, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import tiny_encoder
from graphs import run, traced

from structsam_export.methods import make_method
from structsam_export.methods.base import MergeMethod
from structsam_export.methods.cubist import GridPlan
from structsam_export.methods.mlp import KeepPlan, ResidualConsistency
from structsam_export.methods.plan import MergePlan, SplitPlan, on_all_windows
from structsam_export.methods.sparsesam import KeyPlan, SparseSAM
from structsam_export.patch import patched
from structsam_export.rewrite import rewrite
from structsam_export.roles import Decision
from structsam_export.tokens import Tokens, WindowGrid
from structsam_export.trace import decision_names, encoder_with_decisions, trace_encoder
from structsam_export.validate.decisions import (
    GIVEN,
    agreement,
    decided,
    expose,
    first_image,
    merged_tokens,
    names_of,
    readable,
    ties,
    unstable,
)
from structsam_export.validate.parity import compare, same_decisions
from structsam_export.validate.stages import Inputs, Reference, Stage, decisions_for

LINE = WindowGrid((2, 4))  # ToMe: tokens 0, 2, 4, 6 join one of 1, 3, 5, 7
NAME = "plan.0"
PLANS = {NAME: MergePlan}
# Where each token of the line points, in degrees: 0 lies in the middle of 1 and 3, the others beside one of them.
DEGREES = (45.0, 0.0, 100.0, 90.0, 185.0, 180.0, 265.0, 270.0)


def outputs(plan, name=NAME):
    """A plan as a stage outputs it."""
    return {f"{name}.{part}": getattr(plan, part).numpy() for part in plan.PARTS}


def directions(degrees):
    """Tokens (1, 2, 4, 2) that point in these directions."""
    turn = torch.tensor([math.radians(d) for d in degrees], dtype=torch.float64)
    return torch.stack([turn.cos(), turn.sin()], -1).float().view(1, *LINE.shape, 2)


def tome_decision(degrees, rate=0.5):
    """ToMe's decision on these tokens, as the host records it."""
    method, features = make_method("tome", rate), directions(degrees)

    def choose(given):
        return method.plan(Tokens(given, LINE))

    return Decision(choose(features), choose, (features,))


def moved(plan, token, destination):
    """The same plan, but `token` joins another destination."""
    slot = plan.slot.clone()
    slot[0, token] = plan.slot[0, destination]
    return replace(plan, slot=slot)


def reordered(plan, seed=0):
    """The same decision with slots and sources listed in another order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(plan.pos.shape, generator=generator).argsort(1)
    sources = plan.sources.gather(1, torch.rand(plan.sources.shape, generator=generator).argsort(1))
    return replace(plan, pos=plan.pos.gather(1, order), slot=order.argsort(1).gather(1, plan.slot), sources=sources)


def random_tokens(layout, images=2, seed=0):
    return Tokens(torch.randn(images, *layout.shape, 6, generator=torch.Generator().manual_seed(seed)), layout)


@pytest.mark.parametrize("layout", [WindowGrid((8, 8)), WindowGrid((10, 6), 4)], ids=["global", "windows"])
@pytest.mark.parametrize("name", ["structsam", "tome", "pitome"])
def test_slots_in_another_order_are_the_same_decision(name, layout):
    plan = make_method(name, 0.5).plan(random_tokens(layout))
    other = reordered(plan)
    assert not torch.equal(plan.pos, other.pos)
    assert np.array_equal(decided(outputs(plan), NAME, type(plan)), decided(outputs(other), NAME, type(plan)))
    assert np.array_equal(decided(outputs(plan), NAME, type(plan)), plan.destination())


def test_a_token_that_joins_another_destination_is_another_decision():
    plan = tome_decision(DEGREES).plan
    mine, other = decided(outputs(plan), NAME, type(plan)), decided(outputs(moved(plan, 4, 7)), NAME, type(plan))
    assert np.argwhere(mine != other).tolist() == [[0, 4]]
    assert (mine[0, 4], other[0, 4]) == (5, 7)


def test_keys_and_kept_tokens_are_sets():
    keys = {"plan.2.keys": np.array([[5, 1, 3], [0, 2, 4]])}
    assert decided(keys, "plan.2", KeyPlan, tokens=6).tolist() == [[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]]
    keep = {"mlp.2.keep": np.array([[6, 0]]), "mlp.2.slot": np.array([[1, 2, 2, 2, 2, 2, 0, 2]])}
    assert decided(keep, "mlp.2", KeepPlan).tolist() == [[1, 0, 0, 0, 0, 0, 1, 0]]


def test_a_grid_decides_for_every_odd_token_of_rows_and_columns():
    grid = {"grid.2.rows": np.array([[0, 1], [2, 0]]), "grid.2.columns": np.array([[2], [1], [0]])}
    grid |= {"grid.2.row_values": np.array([[[0], [2]]]), "grid.2.column_values": np.array([[[1]]])}
    assert decided(grid, "grid.2", GridPlan).tolist() == [[0, 1, 2, 0, 2, 1, 0, 0, 2, 1]]


def test_calls_that_stay_dense_keep_every_token():
    """Two images of four calls, two of which merge; written call by call."""
    order, generator = np.array([[2, 0, 3, 1], [1, 3, 0, 2]]), np.random.default_rng(0)
    target = generator.integers(0, 5, (4, 5))
    expected = [list(range(5)) for _ in range(8)]
    for image, (first, second) in enumerate([(3, 1), (0, 2)]):
        expected[4 * image + first] = target[2 * image].tolist()
        expected[4 * image + second] = target[2 * image + 1].tolist()
    assert on_all_windows(target, order).tolist() == expected


def test_the_order_of_equal_calls_is_no_decision():
    """Dense calls listed in another order, merging calls with their plans in another order: the same."""
    merging = make_method("tome", 0.5).plan(random_tokens(LINE, images=2))
    order = torch.tensor([[2, 0, 3, 1]])
    swapped = MergePlan(*(t.flip(0) for t in (merging.pos, merging.slot, merging.sources)), merging.groups)
    plan, same = SplitPlan(order, 2, merging), SplitPlan(torch.tensor([[0, 2, 1, 3]]), 2, swapped)
    other = SplitPlan(torch.tensor([[2, 0, 1, 3]]), 2, merging)
    assert np.array_equal(decided(outputs(plan), NAME, type(plan)), decided(outputs(same), NAME, type(plan)))
    assert not np.array_equal(decided(outputs(plan), NAME, type(plan)), decided(outputs(other), NAME, type(plan)))


def test_names_of_all_decisions_in_order():
    made = dict.fromkeys(["image_embeddings", "grid.2.rows", "grid.2.columns", "plan.10.pos", "plan.10.slot"])
    assert names_of(made) == ["grid.2", "plan.10"]


def test_tokens_that_share_a_slot():
    target = np.array([[0, 0, 2, 3, 3, 3], [0, 1, 2, 3, 4, 5]])
    assert merged_tokens(target).tolist() == [[True, True, False, True, True, True], [False] * 6]


def test_agreement_is_the_share_of_equal_decisions():
    """One of eight tokens differs, in one of two photos."""
    plan = tome_decision(DEGREES).plan
    photo, other = outputs(plan), outputs(moved(plan, 4, 7))
    assert agreement([photo, photo], [photo, photo], PLANS) == {NAME: 1.0}
    assert agreement([photo, photo], [photo, other], PLANS) == {NAME: 1 - 1 / 16}


def test_one_key_of_a_hundred_is_one_percent():
    """A key at the other end of the grid moves all others along the sorted list; they are still visited."""
    grid = {"image_embeddings": np.zeros((1, 3, 10, 20))}
    mine, other = (grid | {f"{NAME}.keys": np.arange(i, 100 + i)[None]} for i in (0, 1))
    assert agreement([mine], [other], {NAME: KeyPlan})[NAME] == 1 - 2 / 200


def ties_of(decision, other):
    return ties([{NAME: decision}], [outputs(decision.plan)], [outputs(other)])


def test_equal_decisions_are_counted_and_nothing_else():
    decision = tome_decision(DEGREES)
    assert ties_of(decision, reordered(decision.plan)) == {"differ": 0, "ties": 0, "of": 8, "by_name": {}}


@pytest.mark.parametrize("off", [0.0, 1e-6, -1e-6], ids=["equal", "one first", "the other first"])
def test_destinations_equal_to_rounding_are_a_tie(off):
    """Degrees; 1e-6 of them are 2e-8 in similarity."""
    decision = tome_decision((45.0 + off, *DEGREES[1:]))
    other = moved(decision.plan, 0, 1 if decision.plan.destination()[0, 0] == 3 else 3)
    one = {"differ": 1, "ties": 1}
    assert ties_of(decision, other) == {**one, "of": 8, "by_name": {NAME: one}}


@pytest.mark.parametrize(("token", "destination"), [(4, 7), (6, 5), (2, 1)])
def test_a_destination_that_no_small_change_explains_is_no_tie(token, destination):
    decision = tome_decision(DEGREES)
    found = ties_of(decision, moved(decision.plan, token, destination))
    assert (found["differ"], found["ties"]) == (1, 0)


def test_a_tie_does_not_excuse_another_token():
    decision = tome_decision(DEGREES)
    tied = moved(decision.plan, 0, 1 if decision.plan.destination()[0, 0] == 3 else 3)
    found = ties_of(decision, moved(tied, 4, 7))
    assert (found["differ"], found["ties"]) == (2, 1)


def test_almost_a_tie_is_none():
    """A hundredth of a degree is far beyond rounding, and beyond the noise."""
    decision = tome_decision((45.01, *DEGREES[1:]))
    assert decision.plan.destination()[0, 0] == 3
    assert ties_of(decision, moved(decision.plan, 0, 1))["ties"] == 0


def test_sources_that_tie_for_the_last_place():
    """At rate 3/8 three of four sources merge: 2 and 4 lie equally far from their destinations, 6 and 0 are sure."""
    decision = tome_decision((1.0, 0.0, 100.0, 90.0, 190.0, 180.0, 271.0, 270.0), rate=0.375)
    plan = decision.plan
    left = ({2, 4} - set(plan.sources[0].tolist())).pop()
    noise = unstable(decision, decided(outputs(plan), NAME, type(plan)))
    assert np.flatnonzero(noise[0]).tolist() == [2, 4]
    joined = 6 - left
    swapped = plan.pos.clone()
    swapped[plan.pos == left] = joined
    slot = plan.slot.clone()
    slot[0, joined], slot[0, left] = plan.slot[0, left], plan.slot[0, {2: 3, 4: 5}[left]]
    other = replace(plan, pos=swapped, slot=slot)
    found = ties_of(decision, other)
    assert (found["differ"], found["ties"]) == (2, 2)


def test_photos_and_layers_are_added_up():
    decision = tome_decision(DEGREES)
    tied = moved(decision.plan, 0, 1 if decision.plan.destination()[0, 0] == 3 else 3)
    wrong = moved(decision.plan, 4, 7)
    taken = {"plan.0": decision, "plan.1": decision}

    def photo(first, second):
        return outputs(first, "plan.0") | outputs(second, "plan.1")

    mine = photo(decision.plan, decision.plan)
    found = ties([taken, taken], [mine, mine], [photo(tied, decision.plan), photo(tied, wrong)])
    assert found == {
        "differ": 3,
        "ties": 2,
        "of": 32,
        "by_name": {"plan.0": {"differ": 2, "ties": 2}, "plan.1": {"differ": 1, "ties": 0}},
    }


def test_noise_is_small_and_the_same_every_time():
    seen = []
    features = torch.randn(1, 4, 4, 3, generator=torch.Generator().manual_seed(0)) * 7
    decision = Decision(None, lambda x, region: seen.append((x, region)), (features, "region"))
    for seed in (0, 0, 1):
        decision.again(1e-3, seed)
    moves = [(x - features) / features.std() for x, _ in seen]
    assert torch.equal(moves[0], moves[1]) and not torch.equal(moves[0], moves[2])
    assert -1.001e-3 < moves[0].min() < -0.5e-3 and 0.5e-3 < moves[0].max() < 1.001e-3
    assert [region for _, region in seen] == ["region"] * 3


def test_the_first_image_of_a_batch():
    """Two images; windows of the first image come first."""
    calls, images = np.arange(8)[:, None], np.ones((2, 5))
    first = first_image({"image_embeddings": np.zeros((2, 3, 4, 4)), "plan.0.pos": calls, "plan.1.pos": images})
    assert {key: value.shape for key, value in first.items()} == {
        "image_embeddings": (1, 3, 4, 4),
        "plan.0.pos": (4, 1),
        "plan.1.pos": (1, 5),
    }
    assert first["plan.0.pos"].ravel().tolist() == [0, 1, 2, 3]


# Graphs that are given decisions.


@dataclass(frozen=True)
class Forced(MergeMethod):
    """Merges by a plan made elsewhere."""

    NAME = "forced"

    made: Any = None

    def removed(self, layout):
        return self.made.sources.shape[1]

    def plan(self, tokens):
        return self.made


@dataclass(frozen=True)
class ForcedKeys(SparseSAM):
    made: Any = None

    def plan(self, rank, layout, batch, device=None):
        return self.made


@dataclass(frozen=True)
class ForcedKeep(ResidualConsistency):
    made: Any = None

    def plan(self, rank, grid):
        return self.made


def photos(seed, count=2):
    return torch.randn(count, 3, 96, 96, generator=torch.Generator().manual_seed(seed))


@cache
def sparse_model():
    """Block 1 (global) with SparseSAM, block 2 with the MLP on half of the tokens."""
    encoder = tiny_encoder(image=(96, 96))
    with patched(encoder, SparseSAM(0.6), [1], ResidualConsistency(0.5)), TemporaryDirectory() as folder:
        trace_encoder(encoder, 96, Path(folder) / "encoder.onnx", batch=2)
        return onnx.load(Path(folder) / "encoder.onnx")


CASES = {
    "merging": (lambda: traced("structsam", "bsm", (0, 1), 2), lambda: ({0: MERGING, 1: MERGING}, None)),
    "keys and kept tokens": (sparse_model, lambda: ({1: SparseSAM(0.6)}, ResidualConsistency(0.5))),
}
MERGING = make_method("structsam", 0.5, "bsm")
each_case = pytest.mark.parametrize(("model", "blocks"), CASES.values(), ids=CASES)


def eager(blocks, mlp, image):
    """Outputs by name, and the decisions."""
    encoder, history = tiny_encoder(image=(96, 96)), []
    with patched(encoder, blocks, mlp=mlp):
        names = decision_names(encoder)
        made = encoder_with_decisions(encoder, history)(image)
    return {name: t.numpy() for name, t in zip(["image_embeddings", *names], made)}, history[0]


def forced(blocks, mlp, decisions):
    """The same blocks, bound to these decisions."""
    bound = {}
    for index, method in blocks.items():
        made = decisions[f"plan.{index}"].plan
        bound[index] = ForcedKeys(method.rate, made=made) if isinstance(made, KeyPlan) else Forced(made=made)
    if mlp is not None:
        mlp = ForcedKeep(mlp.density, made=next(d.plan for d in decisions.values() if isinstance(d.plan, KeepPlan)))
    return bound, mlp


def kinds(decisions):
    """Kind of plan of each decision."""
    return {name: type(decision.plan) for name, decision in decisions.items()}


def given_model(model, plans):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    expose(copy, plans, given=True)
    return copy


@each_case
def test_a_graph_given_pytorchs_decisions_computes_pytorchs_embedding(model, blocks):
    want, decisions = eager(*blocks(), photos(0))
    names = [name for name in want if name != "image_embeddings"]
    given = given_model(model(), kinds(decisions))
    assert {i.name for i in given.graph.input} == {"image", *names}
    assert {o.name for o in given.graph.output} == {"image_embeddings", *(name + GIVEN for name in names)}
    found = run(given, {"image": photos(0).numpy()} | {name: want[name] for name in names})
    assert np.abs(found["image_embeddings"] - want["image_embeddings"]).max() < 1e-5
    assert all(np.array_equal(found[name + GIVEN], want[name]) for name in names)


def given_foreign_decisions(model, blocks):
    """A graph's outputs for some images with the decisions of others; both decisions, and those of the others whole."""
    own, _ = eager(*blocks, photos(0))
    foreign, decisions = eager(*blocks, photos(1))
    names = [name for name in own if name != "image_embeddings"]
    found = run(
        given_model(model, kinds(decisions)), {"image": photos(0).numpy()} | {name: foreign[name] for name in names}
    )
    return {key.removesuffix(GIVEN): value for key, value in found.items()}, own, foreign, decisions


@each_case
def test_a_graph_follows_decisions_it_would_not_take_itself(model, blocks):
    """The embedding is that of an eager encoder bound to the same decisions."""
    found, own, _, decisions = given_foreign_decisions(model(), blocks())
    want, _ = eager(*forced(*blocks(), decisions), photos(0))
    assert np.abs(want["image_embeddings"] - own["image_embeddings"]).max() > 1e-2
    assert np.abs(found["image_embeddings"] - want["image_embeddings"]).max() < 1e-5


@pytest.mark.parametrize(("model", "blocks"), CASES.values(), ids=CASES)
def test_a_graph_says_what_it_would_have_decided_itself(model, blocks):
    """Its first decision, which nothing before was decided for."""
    found, own, foreign, decisions = given_foreign_decisions(model(), blocks())
    first = names_of(own)[0]
    kind = kinds(decisions)[first]
    assert np.array_equal(decided(found, first, kind), decided(own, first, kind))
    assert not np.array_equal(decided(found, first, kind), decided(foreign, first, kind))


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory):
    """An encoder after rewriting: decisions are no outputs any more, weights lie beside the file."""
    folder = tmp_path_factory.mktemp("rewritten")
    with TemporaryDirectory() as raw, pytest.MonkeyPatch.context() as patch:
        patch.setattr("structsam_export.rewrite.INLINE_LIMIT", 0)
        patch.setattr("structsam_export.rewrite.weights.LARGE", 0)
        model = onnx.ModelProto()
        model.CopyFrom(traced("structsam", "bsm", (0, 1), 2))
        beside = {"location": "raw.onnx.data", "save_as_external_data": True, "size_threshold": 0}
        onnx.save(model, Path(raw) / "raw.onnx", **beside)
        rewrite(Path(raw) / "raw.onnx", folder / "encoder.onnx", keep_outputs=("image_embeddings",))
    return folder / "encoder.onnx"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def io_of(path):
    """Names of inputs and outputs."""
    graph = onnx.load(path, load_external_data=False).graph
    return [i.name for i in graph.input], [o.name for o in graph.output]


READ = dict.fromkeys(["plan.0", "plan.1", "plan.2"], MergePlan)
NAMES = ["plan.0.pos", "plan.0.slot", "plan.0.sources", "plan.1.pos", "plan.1.slot", "plan.1.sources"]


def test_decisions_that_are_no_outputs_can_be_read(rewritten):
    """The copy shares the file of weights, and is deleted afterwards."""
    before = contents(rewritten.parent)
    assert set(before) == {"encoder.onnx", "encoder.onnx.data"}
    with readable(rewritten, READ) as copy:
        inside = contents(rewritten.parent)
        assert len(inside.pop(copy.name)) < len(before["encoder.onnx"]) + 4096
        assert inside == before
        assert io_of(copy) == (["image"], ["image_embeddings", *NAMES])
        found = run(onnx.load(copy), {"image": photos(0).numpy()})
    assert contents(rewritten.parent) == before
    want, _ = eager({0: MERGING, 1: MERGING}, None, photos(0))
    assert all(
        np.array_equal(decided(found, name, MergePlan), decided(want, name, MergePlan)) for name in ("plan.0", "plan.1")
    )


def test_decisions_that_are_no_outputs_can_be_given(rewritten):
    """To a graph for two images; PyTorch saw one."""
    before, (want, _) = contents(rewritten.parent), eager({0: MERGING, 1: MERGING}, None, photos(0, count=1))
    feed = {"image": photos(0, count=1).repeat(2, 1, 1, 1).numpy()}
    with readable(rewritten, READ, given=True) as copy:
        assert io_of(copy) == (["image", *NAMES], ["image_embeddings", *(name + GIVEN for name in NAMES)])
        found = run(onnx.load(copy), feed | decisions_for(copy, want, feed))
    assert contents(rewritten.parent) == before
    assert np.abs(found["image_embeddings"] - want["image_embeddings"]).max() < 1e-5


@pytest.mark.parametrize("given", [False, True])
def test_the_copy_is_deleted_after_an_exception(rewritten, given):
    before = contents(rewritten.parent)
    with pytest.raises(ZeroDivisionError), readable(rewritten, READ, given=given):
        raise ZeroDivisionError
    assert contents(rewritten.parent) == before


@pytest.mark.parametrize("given", [False, True])
def test_a_constant_is_read_but_never_given(given):
    """Rewriting folds what depends on no image."""
    copy = onnx.ModelProto()
    copy.CopyFrom(traced("structsam", "bsm", (0, 1), 2))
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(3), "plan.9.keys"))
    expose(copy, {"plan.9": KeyPlan}, given=given)
    assert [i.name for i in copy.graph.input] == ["image"]
    assert run(copy, {"image": photos(0).numpy()})["plan.9.keys"].tolist() == [0, 1, 2]


# The verdict.


def stage_of(plan, embedding=1.0, mask=64, batch=1):
    """A stage of one photo: an 8x8 mask with its first `mask` pixels set, and an embedding whose largest value is 1."""
    made = np.linspace(-0.5, 1, 2 * 4 * 4, dtype=np.float32).reshape(1, 2, 4, 4)
    made[0, 0, 0, 0] += embedding - 1
    repeated = {key: np.concatenate([value] * batch) for key, value in ({} if plan is None else outputs(plan)).items()}
    drawn = (np.arange(64) < mask).reshape(1, 8, 8)
    return Stage("made", [{"image_embeddings": np.repeat(made, batch, 0)} | repeated], [drawn], [0.1])


def judged(stage, given=None, decision=None):
    """The row of a report for a stage against PyTorch's."""
    decision = decision or tome_decision(DEGREES)
    eager = stage_of(decision.plan)
    names = [f"{NAME}.{part}" for part in MergePlan.PARTS]
    reference = Reference(Inputs([], [], 64), eager, eager, (0,), names, PLANS, [{NAME: decision}])
    equal = None if given is None else (eager, given)
    return compare(reference, "eager", (eager, stage), equal).to_dict()


@pytest.fixture
def plans():
    """PyTorch's plan, one that differs by a tie, one that differs for no reason."""
    plan = tome_decision(DEGREES).plan
    tied = moved(plan, 0, 1 if plan.destination()[0, 0] == 3 else 3)
    return SimpleNamespace(same=plan, tied=tied, wrong=moved(plan, 4, 7), both=moved(tied, 4, 7))


def test_a_stage_that_computes_and_decides_alike_passes(plans):
    row = judged(stage_of(reordered(plans.same), embedding=1 + 5e-5))
    assert row["passed"]
    assert row["decision_agreement"] == 1 and row["decision_agreement_by_name"] == {NAME: 1.0}
    assert row["max_rel"] == pytest.approx(5e-5, rel=1e-2)
    assert (row["mask_iou_mean"], row["masks"], row["against"]) == (1.0, 1, "eager")
    assert not {"ties", "free_running"} & set(row)


@pytest.mark.parametrize(
    "changed", [{"embedding": 1 + 2e-4}, {"mask": 60}, {"embedding": float("nan")}], ids=["embedding", "mask", "nan"]
)
def test_a_stage_that_computes_something_else_fails(plans, changed):
    assert not judged(stage_of(plans.same, **changed))["passed"]
    assert not judged(stage_of(plans.same, **changed), given=stage_of(plans.same, **changed))["passed"]
    assert not judged(stage_of(plans.tied), given=stage_of(plans.tied, **changed))["passed"]


def test_a_stage_whose_decisions_differ_by_ties_only_passes(plans):
    """Left alone it ends far from PyTorch; with equal decisions it does not."""
    row = judged(stage_of(plans.tied, embedding=1.5, mask=60), given=stage_of(plans.tied))
    assert row["passed"]
    assert (row["ties"]["differ"], row["ties"]["ties"], row["ties"]["of"]) == (1, 1, 8)
    assert (row["max_rel"], row["mask_iou_mean"], row["decision_agreement"]) == (0, 1, 7 / 8)
    free = row["free_running"]
    assert free["max_rel"] == pytest.approx(0.5) and free["mask_iou_min"] == free["mask_iou_mean"] == 60 / 64
    assert free["decision_agreement"] == 7 / 8


def test_decisions_that_differ_only_because_earlier_ones_did_are_no_difference(plans):
    """With PyTorch's decisions the graph decides as PyTorch does."""
    row = judged(stage_of(plans.both, embedding=1.5), given=stage_of(plans.same))
    assert row["passed"]
    assert (row["decision_agreement"], row["ties"]["differ"]) == (1, 0)
    assert row["free_running"]["decision_agreement"] == 6 / 8


@pytest.mark.parametrize("kind", ["wrong", "both"])
def test_a_stage_whose_decisions_differ_beyond_ties_fails(plans, kind):
    made = stage_of(getattr(plans, kind))
    row = judged(made, given=made)
    assert not row["passed"]
    assert row["max_rel"] == 0
    assert row["ties"]["differ"] - row["ties"]["ties"] == 1


def test_differences_nobody_looked_into_fail(plans):
    assert not judged(stage_of(plans.tied))["passed"]


def test_a_stage_that_tells_no_decisions_is_judged_by_its_numbers():
    """An engine."""
    assert judged(stage_of(None))["decision_agreement"] is None
    assert judged(stage_of(None))["passed"]
    assert not judged(stage_of(None, mask=60))["passed"]


def test_a_batch_is_judged_by_its_first_decisions_and_all_its_embeddings(plans):
    assert judged(stage_of(plans.same, batch=3))["passed"]
    second = stage_of(plans.same, batch=3)
    second.outputs[0]["image_embeddings"][1] += 0.1
    assert not judged(second)["passed"]


def test_stages_that_decide_alike(plans):
    first = stage_of(plans.same)
    assert same_decisions(first, stage_of(reordered(plans.same), embedding=2, batch=2), PLANS)
    assert not same_decisions(first, stage_of(plans.tied), PLANS)
    assert same_decisions(stage_of(None), stage_of(None, embedding=2), PLANS)
