"""The merge methods: one file each, one line here.

A method is a frozen dataclass with `rate` and `variant`; it turns tokens into a `MergePlan` and knows no model.
The class also states NAME, VARIANTS (default first), MAX_RATE, PROTECTS and SOURCE.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from structsam_export.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from structsam_export.methods.plan import MergePlan
    from structsam_export.methods.tokens import Layout, Tokens

METHODS = {
    "none": "structsam_export.methods.none:NoMerge",
    "structsam": "structsam_export.methods.structsam:StructSAM",
}


class Method(Protocol):
    """What `patch` needs of a method; `removed`, and with it every shape, depends on the layout alone."""

    NAME: ClassVar[str]
    VARIANTS: ClassVar[tuple[str, ...]]
    MAX_RATE: ClassVar[float]
    PROTECTS: ClassVar[str]
    SOURCE: ClassVar[str]

    @property
    def rate(self) -> float: ...
    @property
    def variant(self) -> str: ...
    def removed(self, layout: Layout) -> int: ...
    def plan(self, tokens: Tokens) -> MergePlan: ...
    def macs(self, layout: Layout, head_dim: int) -> int: ...


def method_class(name: str) -> Any:
    """The class behind a name.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    module, symbol = METHODS[name].split(":")
    return getattr(import_module(module), symbol)


def make_method(name: str, rate: float | None = None, variant: str | None = None) -> Method:
    """A configured method; `None` means the method's own default.

    Raises:
        UsageError: unknown name or variant, or a rate outside [0, MAX_RATE].
    """
    cls = method_class(name)
    if variant is not None and variant not in cls.VARIANTS:
        raise UsageError(f"Method '{name}' has no variant '{variant}'. Its variants: {', '.join(cls.VARIANTS)}.")
    if rate is not None and name == "none":
        rate = None  # the dense model has no rate; scripts that loop over methods may still pass one
    if rate is not None and not 0 <= rate <= cls.MAX_RATE:
        raise UsageError(
            f"Rate {rate:g} is out of range for method '{name}': it removes between 0 and {cls.MAX_RATE:g} "
            f"of the tokens. Pass --rate {cls.MAX_RATE:g} or less."
        )
    given = {"rate": rate, "variant": variant}
    made: Method = cls(**{k: v for k, v in given.items() if v is not None})
    return made
