"""The search over schedules against brute force, and what it is fed: shrinking, halves, texts of schedules."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.geometry import GEOMETRIES
from structsam_export.methods.mlp import MergedMLP, ResidualConsistency
from structsam_export.schedule import resolve
from structsam_export.tune.finalists import Curve, Table, at, choose, first_finalists, further_finalists
from structsam_export.tune.measure import errors, halves, spread
from structsam_export.tune.search import at_random, cheapest, front, safest, shrunk
from structsam_export.tune.space import DENSE, KEEP, MERGE, Choice, Space, ranges, read_off
from structsam_export.tune.steps import Budget, singles

B = GEOMETRIES["vit_b"]


def every(costs, losses):
    """All schedules by counting: (cost, loss)."""
    numbers = product(*(range(len(row)) for row in costs))
    return [(sum(map(list.__getitem__, costs, n)), sum(map(list.__getitem__, losses, n))) for n in numbers]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("blocks", [3, 5])
def test_the_optimum_of_every_budget_is_found(seed, blocks):
    """Three (five) blocks with up to five options each, losses below zero among them."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, blocks)
    costs = [[0.0, *(-rng.uniform(0, 0.1, n - 1)).tolist()] for n in sizes]
    losses = [[0.0, *rng.normal(0.003, 0.004, n - 1).tolist()] for n in sizes]
    points, all_of_them = front(costs, losses, 0), every(costs, losses)
    for point in points:  # a point's figures are those of its choices
        assert point.cost == pytest.approx(sum(costs[b][i] for b, i in enumerate(point.picks)))
        assert point.loss == pytest.approx(sum(losses[b][i] for b, i in enumerate(point.picks)))
    for budget in rng.uniform(-0.3, 0.0, 10):
        if fit := [loss for cost, loss in all_of_them if cost <= budget]:
            assert safest(points, budget).loss == pytest.approx(min(fit))
    for budget in rng.uniform(-0.01, 0.02, 10):
        if fit := [cost for cost, loss in all_of_them if loss <= budget]:
            assert cheapest(points, budget).cost == pytest.approx(min(fit))


def test_random_schedules_are_of_equal_cost_and_the_optimum_beats_them_all():
    rng = np.random.default_rng(1)
    costs = [[0.0, *(-rng.uniform(0, 0.1, 4)).tolist()] for _ in range(6)]
    losses = [[0.0, *rng.uniform(0, 0.01, 4).tolist()] for _ in range(6)]
    drawn = at_random(costs, -0.25, 0.02, 50)
    assert len(set(drawn)) == 50 and drawn == at_random(costs, -0.25, 0.02, 50) != at_random(costs, -0.25, 0.02, 50, 1)
    summed = [(sum(map(list.__getitem__, costs, n)), sum(map(list.__getitem__, losses, n))) for n in drawn]
    assert all(abs(cost + 0.25) <= 0.02 for cost, _ in summed)
    points = front(costs, losses, 0)
    assert all(safest(points, cost).loss <= loss + 1e-12 for cost, loss in summed)
    assert at_random([[0.0, -0.1]], -0.5, 0.01, 3) == []


def test_steps_of_cost_lose_little_and_keep_the_front_small():
    """Twelve blocks with six options: two milliards of schedules."""
    rng = np.random.default_rng(0)
    costs = [[0.0, *(-rng.uniform(0, 0.05, 5)).tolist()] for _ in range(12)]
    losses = [[0.0, *rng.uniform(0, 0.01, 5).tolist()] for _ in range(12)]
    coarse, fine = front(costs, losses), front(costs[:5], losses[:5], 0)
    assert len(coarse) < 6000
    same = front(costs[:5], losses[:5])
    for budget in np.linspace(-0.2, 0, 9):
        assert safest(same, budget).loss <= safest(fine, budget - 5e-4).loss + 1e-12


def test_a_budget_that_nothing_keeps_gives_the_nearest():
    points = front([[0.0, -0.2]], [[0.01, 0.02]])
    assert safest(points, -0.9).cost == -0.2 and cheapest(points, 0.0).loss == 0.01


def test_shrinking_is_the_normal_posterior():
    """Against the mean of the product of two normal densities on a grid."""
    x = np.linspace(-0.1, 0.1, 200_001)
    density = np.exp(-((x - 0.02) ** 2) / (2 * 0.01**2) - (x - 0.005) ** 2 / (2 * 0.004**2))
    assert shrunk(0.02, 0.01, 0.005, 0.004) == pytest.approx(float((x * density).sum() / density.sum()), abs=1e-9)
    assert shrunk(0.02, 0.01, 0.005, 0.0) == 0.005 and shrunk(0.02, 0.0, 0.005, 0.004) == 0.02


@dataclass(frozen=True)
class Named:
    name: str
    group: str


def test_halves_share_no_image_and_every_group_is_in_both():
    samples = [Named(f"{group}{i}", group) for group, n in (("a", 8), ("b", 3), ("c", 1)) for i in range(n)]
    chosen, held = halves(samples)
    assert not {s.name for s in chosen} & {s.name for s in held} and len(chosen) + len(held) == 12
    assert [sum(s.group == g for s in chosen) for g in "abc"] == [4, 2, 1]
    assert halves(samples[::-1]) == (chosen, held)  # whatever the order
    assert sorted(s.group for s in spread(chosen, 4)) == ["a", "a", "b", "c"]
    assert len(spread(chosen, 99)) == 7


def test_means_are_over_images_and_errors_are_theirs():
    values = [0.0, 0.2, 0.5]
    mean, error = errors(np.asarray([values]))
    assert mean[0] == pytest.approx(0.7 / 3) and error[0] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert errors(np.asarray([[0.2]]))[1] == [0]


@pytest.mark.parametrize("true", [True, False])
def test_the_curve_finds_what_noisy_losses_follow_from(true):
    """Two hundred schedules whose squared disagreement is 1.4 times its blocks', and whose loss is half of it."""
    rng = np.random.default_rng(0)
    sums = rng.uniform(0.001, 0.05, 200)
    apart = np.sqrt(1.4 * sums)
    exact = apart**2 / 2 if true else apart
    losses = exact + rng.normal(0, 0.002, 200)
    sums[::7] = np.nan
    curve = Curve.through(sums, apart, losses, np.full(200, 0.002), true)
    assert curve.growth == pytest.approx(1.4) and curve.loss == pytest.approx(0.5 if true else 1, rel=0.02)
    assert curve.spread < 5e-4
    assert curve.predicted(0.02) == pytest.approx(0.014 if true else np.sqrt(0.028), rel=0.02)
    assert curve.total(curve.predicted(0.02)) == pytest.approx(0.02)
    near = np.array(curve.drawn(apart, losses, np.full(200, 0.002)))
    assert np.abs(near - exact).mean() < 0.2 * np.abs(losses - exact).mean()
    assert curve.drawn(apart[:1], losses[:1], np.zeros(1)) == pytest.approx(losses[:1])


def test_rates_between_those_that_are_tried_are_read_off():
    """Disagreements that are a power of the rate, and losses and costs on a line, are found exactly."""
    rates, more = (0.25, 0.5, 0.75), (0.3, 0.4, 0.7)
    options = (DENSE, *map(Choice, sorted((*rates, *more))), Choice(0.0, KEEP), Choice(0.4, KEEP))
    space = Space(ExportConfig(method="structsam", precision="fp32"), (options,), frozenset(more))
    tried = [choice for choice in options if space.tried(choice)]
    assert tried == [*map(Choice, rates), Choice(0.0, KEEP)] and list(singles(space)) == [(0, c) for c in tried]
    values = {space.single(0, c): (np.array([0.02 * c.rate]), np.array([0.3 * c.rate**1.7])) for c in tried}
    values[space.single(0, Choice(0.0, KEEP))] = np.array([0.01]), np.array([0.04])
    table = Table.of(space, singles(space), values, [[0.0] * len(options)])
    for choice, loss, apart in zip(options, table.losses[0], table.apart[0]):
        keep = choice.mlp == KEEP
        assert loss == pytest.approx(0.02 * choice.rate + 0.01 * keep)
        assert apart == pytest.approx(np.hypot(0.3 * choice.rate**1.7, 0.04 * keep))
    assert read_off({Choice(0.2): 1.0, Choice(0.6): 3.0}, Choice(0.5)) == pytest.approx(2.5)
    assert read_off({Choice(0.2): 0.0, Choice(0.6): 3.0}, Choice(0.5), power=True) == pytest.approx(2.25)


@pytest.mark.parametrize("seed", range(10))
def test_finalists_are_the_best_that_keep_to_the_budget(seed):
    """Three blocks with three choices, against all 27 schedules; costs are whole hundredths."""
    rng = np.random.default_rng(seed)
    options = (DENSE, Choice(0.25), Choice(0.5))
    costs = [[0.0, *sorted(-rng.integers(1, 12, 2) / 100, reverse=True)] for _ in range(3)]
    apart = [[0.0, *rng.uniform(0.01, 0.1, 2)] for _ in range(3)]
    table = Table(Space(ExportConfig(method="structsam", precision="fp32"), (options,) * 3), apart, apart, costs)
    curve = Curve(growth=2.0, loss=0.5)
    merging = [picks for picks in product(range(3), repeat=3) if any(picks)]
    cost = {picks: sum(costs[b][i] for b, i in enumerate(picks)) for picks in merging}
    loss = {picks: 0.5 * 2 * sum(apart[b][i] ** 2 for b, i in enumerate(picks)) for picks in merging}

    found = at(table, Budget(macs=0.9), curve, shift=0.01)
    fit = [picks for picks in merging if cost[picks] <= -0.11 + 1e-9]
    assert loss[found.picks] == pytest.approx(min(map(loss.get, fit or [min(merging, key=cost.get)])))
    found = at(table, Budget(loss=0.008), curve, shift=0.0)
    fit = [picks for picks in merging if loss[picks] <= 0.008]
    assert cost[found.picks] == pytest.approx(min(map(cost.get, fit or [min(merging, key=loss.get)])))
    assert at(table, Budget(macs=0.9), curve, 0.0, step=2).cost >= at(table, Budget(macs=0.9), curve, 0.0, step=-2).cost


def test_further_finalists_follow_what_the_first_ones_showed():
    """Two methods that promise alike: one's first schedule moves masks twice as far as its blocks said."""
    options = tuple(DENSE if r == 0 else Choice(r) for r in (0.0, 0.2, 0.4, 0.6))
    costs, apart = [[0.0, -0.02, -0.04, -0.06]] * 4, [[0.0, 0.02, 0.04, 0.06]] * 4
    bad, good = (
        Table(Space(ExportConfig(method=name, precision="fp32"), (options,) * 4), apart, apart, costs)
        for name in ("structsam", "algm")
    )
    budget, curve = Budget(loss=0.002), Curve(growth=1.0, loss=0.5)
    first = first_finalists([bad, good], budget, curve, 0.0)
    assert [config.method for config in first] == ["structsam", "algm"]
    sums = [table.point(config).loss for table, config in zip((bad, good), first)]
    assert sums == pytest.approx([0.004, 0.004])
    moved = {first[0]: 2 * sums[0] ** 0.5, first[1]: 0.5 * sums[1] ** 0.5}
    more = further_finalists([bad, good], moved, first[0], budget, curve, 0.0, room=3)
    assert [(config.method, config.rate) for config in more] == [("algm", "0.6:0-3")]  # sum .0144 of .016 that may be
    assert further_finalists([bad, good], moved, first[0], budget, curve, 0.0, room=0) == []
    around = further_finalists([bad, good], moved, first[0], Budget(macs=0.88), curve, 0.0, room=2)
    assert [config.method for config in around] == ["structsam"] * 2 and not set(around) & set(first)


def test_a_curve_of_nothing_keeps_its_defaults():
    none = np.zeros(0)
    assert Curve.through(none, none, none, none, True).predicted(0.3) == pytest.approx(0.3)


def test_what_is_taken_of_the_finalists():
    ratios, losses = [0.8, 0.7, 0.6, 0.5], [0.001, 0.004, 0.012, 0.03]
    assert choose(ratios, losses, Budget(loss=0.01)) == 1
    assert choose(ratios, losses, Budget(macs=0.6)) == 2
    assert choose(ratios, losses, Budget(loss=0.0)) == 0  # the nearest
    assert choose(ratios, losses, Budget(macs=0.4)) == 3


@pytest.mark.parametrize("options", [{}, {"loss": 0.01, "macs": 0.5}, {"macs": 0.0}, {"macs": 1.0}, {"macs": -1.0}])
def test_budgets_that_are_none(options):
    with pytest.raises(UsageError, match="--target-macs"):
        Budget(**options)


def test_the_text_of_a_schedule_means_what_was_chosen():
    """Every choice of every block, read back by the schedule's own reader; no two of them share a name."""
    base = ExportConfig(method="structsam", variant="cell", precision="fp32")
    space = Space(base, ((DENSE,),) * 12)
    rng, names = np.random.default_rng(0), {}
    menu = [
        DENSE,
        Choice(0.5),
        Choice(0.75),
        Choice(0.5, MERGE),
        Choice(0.75, MERGE),
        Choice(0.0, KEEP),
        Choice(0.5, KEEP),
    ]
    for _ in range(200):
        picks = [menu[i] for i in rng.integers(0, len(menu), 12)]
        picks = [c if c.mlp != KEEP or (b > 2 and B.windows[b]) else DENSE for b, c in enumerate(picks)]
        config = space.config(picks)
        made = resolve(config, B)
        found = {b: method.rate for b, method in made.blocks.items() if made.method.NAME != "none"}
        assert found == {b: c.rate for b, c in enumerate(picks) if c.rate}
        kinds = {MERGE: MergedMLP, KEEP: ResidualConsistency}
        policies = {b: type(role.mlp) for b, role in made.roles.items() if role.mlp is not None}
        assert policies == {b: kinds[c.mlp] for b, c in enumerate(picks) if c.mlp != "none"}
        names.setdefault(config.folder_name(config.rate or 0.0), set()).add(tuple(picks))
    assert all(len(alike) == 1 for alike in names.values())


def test_blocks_as_text():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8" and ranges([3]) == "3"
