"""A new kind of method is one file and one line: tokens neither merge nor lose keys, but some ask no question.

The toy keeps every token and every key, and computes attention for the queries of tokens with the largest channels
only; all others get nothing from attention. It has a plan of its own, so it is recorded, named in the graph, compared,
counted and drawn.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from conftest import tiny_encoder
from graphs import run

import structsam_export.methods as registry
from structsam_export.catalogue import catalogue
from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.geometry import GEOMETRIES
from structsam_export.hosts import geometry_of
from structsam_export.macs import paper_macs, scheduled_macs
from structsam_export.methods import make_method
from structsam_export.patch import decisions_of, patched, recording
from structsam_export.report.tokens import token_counts
from structsam_export.schedule import resolve
from structsam_export.trace import decision_names, encoder_with_decisions, trace_encoder
from structsam_export.validate.decisions import GIVEN, agreement, expose, ties

TOY = """
from dataclasses import dataclass

import numpy as np
import torch

from structsam_export.methods.base import Method
from structsam_export.methods.plan import groups_of_chosen, rows
from structsam_export.roles import Role, WindowGroup


@dataclass(frozen=True)
class AskPlan:
    asking: torch.Tensor  # (B, k) tokens whose queries are computed
    slot: torch.Tensor  # (B, N) row of each token among them, k without one

    PARTS = ("asking", "slot")
    AT_ONCE = True

    @staticmethod
    def assignment(parts, tokens):
        return (parts["slot"] < parts["asking"].shape[1]).astype(np.int64)

    def token_groups(self, grid):
        return groups_of_chosen(self.asking[0].numpy(), grid.shape)


@dataclass(frozen=True)
class FewQueries(Method):
    variant: str = "largest"

    NAME = "few-queries"
    VARIANTS = {"largest": 0.9}
    PROTECTS = "tokens with large channels"
    SOURCE = "a test"

    def asked(self, grid):
        return grid.tokens - int(grid.tokens * self.rate)

    def role(self, index, geometry, blocks):
        grid = geometry.window_grid(index)
        if grid.window or self.asked(grid) == grid.tokens:
            return None
        return Role(index, grid, self, attend=self.attend, decisions=((f"ask.{index}", AskPlan),))

    def attend(self, step, y):
        grid, x, attn = step.grid, y.flatten(1, 2), step.block.attention
        B, N, D = x.shape
        plan = step.decide("ask", lambda t: self.plan(t.flatten(1, 2), grid), y)
        given = {"q": rows(x, plan.asking), "k": x, "v": x}
        made = (torch.nn.functional.linear(t, *attn.linear(part)) for part, t in given.items())
        q, k, v = (t.unflatten(2, (attn.heads, -1)).transpose(1, 2) for t in made)
        scores = (q @ k.transpose(2, 3)) * attn.scale
        made = attn.output((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, -1, D))
        made = torch.cat([made, torch.zeros_like(made[:, :1])], 1)
        return rows(made, plan.slot).view(y.shape), None

    def plan(self, x, grid):
        k = self.asked(grid)
        asking = torch.topk(x.amax(-1), k, dim=1).indices
        slot = torch.full((x.shape[0], x.shape[1]), k)
        return AskPlan(asking, slot.scatter(1, asking, torch.arange(k).expand(x.shape[0], -1)))

    def token_counts(self, grid, stock):
        N, asked = stock.tokens, self.asked(grid)
        return {"N": N, "n": N, "queries": asked, "effective_rate": round(1 - asked / N, 6)}

    def window_groups(self, grid):
        return [WindowGroup(grid.windows, grid.tokens if grid.window else self.asked(grid), grid.tokens)]
"""
NAME = "ask.1"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The kind at rate 0.5, registered by one line."""
    (tmp_path / "few_queries.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.METHODS, "few-queries", "few_queries:FewQueries")
    return make_method("few-queries", 0.5)


@pytest.fixture
def encoder():
    return tiny_encoder(image=(96, 96))


def image(seed=1):
    return torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(seed))


def eager(encoder, x):
    """Outputs by name, and the decisions."""
    history = []
    made = encoder_with_decisions(encoder, history)(x)
    return {key: t.numpy() for key, t in zip(["image_embeddings", *decision_names(encoder)], made)}, history[0]


def test_it_is_resolved_counted_and_listed_like_any_other(toy):
    geometry = GEOMETRIES["vit_b"]
    schedule = resolve(ExportConfig(method="few-queries"), geometry)
    assert sorted(schedule.roles) == list(geometry.global_layers)
    assert scheduled_macs(geometry, schedule) < paper_macs(geometry)
    assert token_counts(geometry, schedule) == {
        "global": {"N": 4096, "n": 4096, "queries": 2048, "effective_rate": 0.5},
        "window": {"N": 196, "n": 196, "effective_rate": 0.0},
    }
    assert next(row for row in catalogue() if row["name"] == "few-queries")["macs_saved"]["largest"] > 0
    with pytest.raises(UsageError, match="--mlp merge needs a method that merges tokens"):
        resolve(ExportConfig(method="few-queries", mlp="merge"), geometry)
    with_policy = resolve(ExportConfig(method="few-queries", mlp="residual-consistency"), geometry)
    assert [name for role in with_policy.roles.values() for name, _ in role.decisions][:2] == ["ask.2", "mlp.2"]


def test_its_decisions_are_recorded_and_drawn(toy, encoder):
    with patched(encoder, toy, range(3)), recording(encoder) as decisions:
        plans = decisions_of(encoder)
        encoder(image())
    assert list(plans) == list(decisions) == [NAME]
    groups = decisions[NAME].plan.token_groups(geometry_of(encoder).window_grid(1))
    assert groups.shape == (6, 6) and 18 < len(np.unique(groups)) < 36


def test_what_asks_nothing_gets_nothing_from_attention(toy, encoder):
    seen = {}
    encoder.blocks[1].norm2.register_forward_hook(lambda _, given, made: seen.update(after=given[0]))
    encoder.blocks[1].register_forward_pre_hook(lambda _, given: seen.update(before=given[0]))
    with patched(encoder, toy, range(3)), recording(encoder) as decisions:
        encoder(image())
    asks = decisions[NAME].plan.slot.view(1, 6, 6) < 18
    assert torch.equal(seen["after"][~asks], seen["before"][~asks])
    assert not torch.isclose(seen["after"][asks], seen["before"][asks]).all(-1).any()


def test_it_is_traced_compared_and_told_from_ties(toy, encoder, tmp_path):
    with patched(encoder, toy, range(3)):
        plans = decisions_of(encoder)
        want, taken = eager(encoder, image())
        other, _ = eager(encoder, image(2))
        trace_encoder(encoder, 96, tmp_path / "toy.onnx")
    model = onnx.load(tmp_path / "toy.onnx")
    found = run(model, {"image": image().numpy()})
    assert list(found) == ["image_embeddings", "ask.1.asking", "ask.1.slot"]
    assert np.abs(found["image_embeddings"] - want["image_embeddings"]).max() < 1e-5
    assert agreement([want], [found], plans) == {NAME: 1.0}
    assert agreement([want], [other], plans)[NAME] < 1
    counted = ties([taken], [want], [other])
    assert counted["of"] == 36 and counted["differ"] > counted["ties"] == 0
    expose(model, plans, given=True)
    feed = {"image": image().numpy()} | {key: other[key] for key in ("ask.1.asking", "ask.1.slot")}
    given = run(model, feed)
    assert np.array_equal(given["ask.1.slot" + GIVEN], want["ask.1.slot"])
    assert np.abs(given["image_embeddings"] - want["image_embeddings"]).max() > 1e-3
