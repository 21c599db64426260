"""Rules by which StructSAM could choose cells and destinations: each a method of its own, with the published MACs.

Of a cell's four tokens, `energy` is the gradient's and `spread` the root of the mean squared distance to their mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from selection_rules.package import METHODS, StructSAM, Tokens, gradient_energy, group_by_cell, rows_by_cell


def energies(tokens: Tokens) -> torch.Tensor:
    """Gradient energy of every cell's tokens, float32 (B, C, 4)."""
    return group_by_cell(gradient_energy(tokens.features, tokens.grid, "sobel"), tokens.grid.window_shape)


def distances(tokens: Tokens) -> torch.Tensor:
    """Squared distance of every cell's tokens to their mean, float32 (B, C, 4)."""
    of_cell = rows_by_cell(tokens.grid.partition(tokens.features.float()), tokens.grid.window_shape)
    return (of_cell - of_cell.mean(2, keepdim=True)).square().sum(-1)


def spread(tokens: Tokens) -> torch.Tensor:
    """Spread of every cell, float32 (B, C)."""
    return distances(tokens).mean(-1).sqrt()


@dataclass(frozen=True)
class Medoid(StructSAM):
    """The others join the token that is nearest to their mean."""

    NAME: ClassVar[str] = "medoid"

    def ranked(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        return super().ranked(tokens)[0], distances(tokens).argmin(-1)


@dataclass(frozen=True)
class TimesSpread(StructSAM):
    """Steepest token's energy times spread: flat cells whose tokens are alike merge first."""

    NAME: ClassVar[str] = "times-spread"

    def ranked(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        rank, lowest = super().ranked(tokens)
        return rank * spread(tokens), lowest


@dataclass(frozen=True)
class TimesSpreadMedoid(Medoid, TimesSpread):
    """Both."""

    NAME: ClassVar[str] = "times-spread-medoid"


@dataclass(frozen=True)
class Spread(StructSAM):
    """Spread alone: no gradient across the cell's border counts."""

    NAME: ClassVar[str] = "spread"

    def ranked(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        return spread(tokens), super().ranked(tokens)[1]


@dataclass(frozen=True)
class Mean(StructSAM):
    """The mean of the four tokens' energies instead of the largest."""

    NAME: ClassVar[str] = "mean"

    def ranked(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        cells = energies(tokens)
        return cells.mean(-1), cells.argmin(-1)


@dataclass(frozen=True)
class Random(StructSAM):
    """Cells at random, the same for all images."""

    NAME: ClassVar[str] = "random"

    def ranked(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        rank, lowest = super().ranked(tokens)
        draw = torch.Generator().manual_seed(7919 * rank.shape[0] + rank.shape[1])
        return torch.rand(rank.shape, generator=draw), lowest


def proportional(rule: type[StructSAM], name: str) -> type[StructSAM]:
    """The rule with proportional attention: a merged cell counts as four tokens."""

    def plan(self: StructSAM, tokens: Tokens) -> Any:
        return replace(rule.plan(self, tokens), proportional=True)

    return type(name, (rule,), {"NAME": name, "plan": plan})


Proportional = proportional(StructSAM, "proportional")
MedoidProportional = proportional(Medoid, "medoid-proportional")
TimesSpreadProportional = proportional(TimesSpread, "times-spread-proportional")
SpreadProportional = proportional(Spread, "spread-proportional")

RULES = (
    *(Medoid, TimesSpread, TimesSpreadMedoid, Spread, Mean, Random),
    *(Proportional, MedoidProportional, TimesSpreadProportional, SpreadProportional),
)


def register() -> list[str]:
    """Make the rules known as methods; their names."""
    METHODS.update({rule.NAME: f"selection_rules.rules:{name}" for name, rule in globals().items() if rule in RULES})
    return [rule.NAME for rule in RULES]
