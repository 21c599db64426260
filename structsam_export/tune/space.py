"""What can be chosen for each block, and the configuration that a choice for every block makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from structsam_export.config import ExportConfig
from structsam_export.geometry import EncoderGeometry
from structsam_export.job import Job
from structsam_export.macs import paper_macs, scheduled_macs
from structsam_export.methods import method_class
from structsam_export.methods.base import MergeMethod
from structsam_export.models import LoadedModel
from structsam_export.schedule import Request

MERGE, KEEP = "merge", "residual-consistency"
STEP = 0.05  # of rates that the search may choose between those that were tried


@dataclass(frozen=True, order=True)
class Choice:
    """What one block does: a rate (0: dense attention) and an MLP policy ("none": dense MLP)."""

    rate: float = 0.0
    mlp: str = "none"

    @property
    def text(self) -> str:
        """For tables and pictures: ".75", ".75 merge", "0 residual-consistency"."""
        shown = f"{self.rate:g}".removeprefix("0") if self.rate else "0"
        return shown if self.mlp == "none" else f"{shown} {self.mlp}"


DENSE = Choice()


@dataclass(frozen=True)
class Space:
    """One method's choices: `options[i]` lists those of block i, the dense one first.

    `base.mlp_density` is the share of tokens through the MLPs that follow residual consistency, the same in all blocks.
    Rates of `between` are not tried: what they do is read off between those that are (`read_off`).
    """

    base: ExportConfig
    options: tuple[tuple[Choice, ...], ...]
    between: frozenset[float] = frozenset()

    @property
    def method(self) -> str:
        """METHOD:VARIANT."""
        return f"{self.base.method}:{self.base.variant}"

    def tried(self, choice: Choice) -> bool:
        """Whether a choice is tried. A rate with residual consistency is not: the two are taken to add up."""
        return choice != DENSE and not (choice.rate and choice.mlp == KEEP) and choice.rate not in self.between

    def config(self, choices: Sequence[Choice]) -> ExportConfig:
        """The configuration in which block i does `choices[i]`; schedules that do alike have one text."""
        if all(choice == DENSE for choice in choices):
            return replace(self.base, method="none", variant=None, rate=None, mlp="none", mlp_density=None)
        rates = by_value({i: c.rate for i, c in enumerate(choices) if c.rate})
        mlps = by_value({i: c.mlp for i, c in enumerate(choices) if c.mlp != "none"})
        rate = ",".join(f"{value:g}:{layers}" for value, layers in rates) or None
        mlp = ",".join(f"{value}:{layers}" for value, layers in mlps) or "none"
        density = self.base.mlp_density if KEEP in mlp else None
        made = replace(self.base, rate=rate, mlp=mlp, mlp_density=density)
        return made if rate else replace(made, method="none", variant=None)

    def single(self, block: int, choice: Choice) -> ExportConfig:
        """`choice` in one block, all others dense."""
        return self.config([choice if i == block else DENSE for i in range(len(self.options))])


def by_value(values: Mapping[int, float | str]) -> list[tuple[float | str, str]]:
    """(value, its blocks as text) in the order of values, largest first; blocks as "0-2,5"."""
    found: dict[float | str, list[int]] = {}
    for block, value in sorted(values.items()):
        found.setdefault(value, []).append(block)
    return [(value, ranges(found[value])) for value in sorted(found, key=str, reverse=True)]


def ranges(blocks: Iterable[int]) -> str:
    """Blocks in order as text: 0, 1, 2, 5 -> "0-2,5"."""
    parts = []
    for _, run in groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
        members = [block for _, block in run]
        parts.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else f"{members[0]}")
    return ",".join(parts)


def space_of(base: ExportConfig, rates: Sequence[float], mlps: Sequence[str], loaded: LoadedModel) -> Space:
    """Everything a method can do in each block of a model.

    Args:
        base: its method, variant and density.
        rates: rates to try; those above the variant's largest become that. Multiples of `STEP` between them are
            choices, too.
        mlps: policies to try besides dense MLPs.
        loaded: the model.
    """
    cls, geometry = method_class(base.method), loaded.geometry
    most = cls.VARIANTS[base.variant or next(iter(cls.VARIANTS))]
    tried = {min(rate, most) for rate in rates}
    between = frozenset(rate for rate in finer() if min(tried) < rate < max(tried)) - tried
    allowed = sorted(tried | between)
    first = geometry.global_layers[0] if geometry.global_layers else geometry.depth
    options = []
    for block in range(geometry.depth):
        found = [DENSE, *(Choice(rate) for rate in allowed)]
        if MERGE in mlps and issubclass(cls, MergeMethod):
            found += [Choice(rate, MERGE) for rate in allowed]
        if KEEP in mlps and block > first and geometry.windows[block]:
            found += [Choice(rate, KEEP) for rate in (0.0, *allowed)]
        options.append(tuple(found))
    return Space(base, tuple(options), between)


def finer() -> list[float]:
    """Multiples of `STEP` below 1."""
    return [round(STEP * i, 6) for i in range(1, round(1 / STEP))]


def read_off(known: Mapping[Choice, float], choice: Choice, power: bool = False) -> float:
    """The value of a choice, or what it is between those of the next rates with its MLP policy.

    Args:
        known: values by choice.
        choice: one of them, or one whose rate lies between two of theirs.
        power: values grow with a power of the rate, as disagreements about do; otherwise on straight lines.
    """
    import numpy as np

    if choice in known:
        return known[choice]
    rates = sorted(other.rate for other in known if other.mlp == choice.mlp and other.rate)
    values = [known[Choice(rate, choice.mlp)] for rate in rates]
    if power and min(values) > 0:
        return float(np.exp(np.interp(np.log(choice.rate), np.log(rates), np.log(values))))
    return float(np.interp(choice.rate, rates, values))


def job_of(config: ExportConfig, loaded: LoadedModel) -> Job:
    """A configuration resolved for evaluation, in FP32."""
    return Job.of_model(Request.of(replace(config, precision="fp32")), loaded)


def macs_ratio(config: ExportConfig, geometry: EncoderGeometry) -> float:
    """MACs of the encoder, as the papers count them, as a share of the unpatched model's."""
    return scheduled_macs(geometry, Request.of(config).resolve(geometry)) / paper_macs(geometry)
