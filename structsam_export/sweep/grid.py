"""Which configurations a sweep tries: methods (with an MLP policy or without) x rates x layers, less what cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.methods import METHODS, method_class
from structsam_export.methods.mlp import make_mlp

if TYPE_CHECKING:
    from structsam_export.job import Job
    from structsam_export.models import LoadedModel

ALL = "all"


class Form(NamedTuple):
    """A method's variant, and the MLP policy (`methods.mlp.MLPS`) that goes with it."""

    method: str
    variant: str
    mlp: str = "none"


@dataclass(frozen=True)
class Grid:
    """What `--methods`, `--rates` and `--layers` say; `notes` tells what was left out, and why.

    Args:
        forms: variants with their MLP policies.
        rates: fractions of tokens removed.
        layers: as in `ExportConfig.layers`; None for the method's own.
    """

    forms: tuple[Form, ...]
    rates: tuple[float, ...]
    layers: tuple[str | None, ...]

    def configs(self, base: ExportConfig) -> tuple[list[ExportConfig], list[str]]:
        """A configuration for each combination that the variant's largest rate allows, and notes on the others.

        Raises:
            UsageError: none is left.
        """
        made, notes = [], []
        for name, variant, mlp in self.forms:
            most = method_class(name).VARIANTS[variant]
            if beyond := [f"{rate:g}" for rate in self.rates if rate > most]:
                notes.append(f"{name} {variant} goes to rate {most:g} only: {', '.join(beyond)} left out.")
            form = replace(base, method=name, variant=variant, mlp=mlp)
            made += [replace(form, layers=x, rate=r) for x in self.layers for r in self.rates if r <= most]
        if not made:
            raise UsageError(f"{' '.join(notes)} Nothing is left to try. Pass lower --rates.")
        return made, notes


def parse(methods: str, rates: str, layers: str) -> Grid:
    """Read the three lists.

    Args:
        methods: "all", or names separated by commas: METHOD for all its variants, METHOD:VARIANT for one. Each may be
            followed by +MLP, an MLP policy at its own density, as in structsam:cell+residual-consistency.
        rates: fractions separated by commas.
        layers: sets of blocks separated by commas: all, last5, global, or numbers joined by + as in 0+3+6-8. "all" is
            what a method does without `--layers` (every block; cubist: from a quarter of the depth on).

    Raises:
        UsageError: unknown method, variant or MLP policy, a rate that is none, or an empty list.
    """
    forms = [form for part in parts(methods, "methods") for form in forms_of(part)]
    sets = [None if part == ALL else part.replace("+", ",") for part in parts(layers, "layers")]
    fractions = [fraction(part) for part in parts(rates, "rates")]
    return Grid(tuple(dict.fromkeys(forms)), tuple(dict.fromkeys(fractions)), tuple(dict.fromkeys(sets)))


def parts(text: str, option: str) -> list[str]:
    """The parts of a list of an option."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise UsageError(f"Cannot read --{option} '{text}'. Separate its parts by single commas.")
    return found


def forms_of(part: str) -> list[Form]:
    """The forms that one part of `--methods` names."""
    names, plus, mlp = part.partition("+")
    if plus:
        make_mlp(mlp)  # refuses an unknown name
    return [Form(name, variant, mlp or "none") for name, variant in variants_of(names)]


def variants_of(part: str) -> list[tuple[str, str]]:
    """(method, variant) of all, METHOD or METHOD:VARIANT."""
    if part == ALL:
        return [(name, variant) for name in METHODS if name != "none" for variant in method_class(name).VARIANTS]
    name, _, variant = part.partition(":")
    cls = method_class(name)
    if name == "none":
        raise UsageError("The unpatched model is always there to compare with. Leave 'none' out of --methods.")
    if variant and variant not in cls.VARIANTS:
        raise UsageError(f"Method '{name}' has no variant '{variant}'. Its variants: {', '.join(cls.VARIANTS)}.")
    return [(name, own) for own in ([variant] if variant else cls.VARIANTS)]


def fraction(part: str, option: str = "rates") -> float:
    """A fraction of an option, between 0 and 1, both excluded."""
    from structsam_export.methods.rates import number

    found = number(part, part)
    if not 0 < found < 1:
        raise UsageError(f"{part} is no fraction of the tokens. Pass --{option} between 0 and 1, such as 0.25,0.5.")
    return found


def jobs_of(configs: Sequence[ExportConfig], loaded: LoadedModel) -> tuple[list[Job], list[str]]:
    """Configurations resolved against one model, and notes on those that its blocks do not allow.

    Raises:
        UsageError: blocks the encoder does not have, no configuration is left, or two of them are the same.
    """
    from structsam_export.job import Job
    from structsam_export.patch import resolve_layers
    from structsam_export.schedule import Request

    geometry = loaded.geometry
    for spec in {config.layers for config in configs} - {None}:
        resolve_layers(str(spec), geometry.depth, geometry.global_layers)
    jobs, notes = [], []
    for config in configs:
        try:
            jobs.append(Job.of_model(Request.of(replace(config, precision="fp32")), loaded))
        except UsageError as error:  # a method that does not go with these blocks: no reason to stop the others
            notes.append(f"{config.method} {config.variant or ''} {config.layers or ''} left out: {error}")
    if not jobs:
        raise UsageError(f"Nothing is left to try. {notes[0]}")
    labels = [job.label for job in jobs]
    if doubled := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"Two configurations are called '{doubled}'. Leave one of them away.")
    return jobs, list(dict.fromkeys(notes))
