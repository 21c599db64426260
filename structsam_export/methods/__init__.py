"""The methods: one file each, one line here.

A method is a frozen dataclass (`base.Method`) that knows no model: it says what blocks do, what that saves, and which
plans are decided from an image. There are three kinds so far, each a subclass that a new method may build on or ignore:

    base.MergeMethod       tokens merge around attention, `MergePlan` for the windows of each block
    sparsesam.SparseSAM    all tokens stay, each attends to fewer keys, `KeyPlan`
    cubist.Cubist          from one block on, the whole encoder runs on a smaller grid, `GridPlan`
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from structsam_export.errors import UsageError, unknown_name
from structsam_export.methods.base import Method

__all__ = ["METHODS", "PROMPT_AWARE", "Method", "load", "make_method", "method_class", "parameter"]

METHODS = {
    "none": "structsam_export.methods.none:NoMerge",
    "structsam": "structsam_export.methods.structsam:StructSAM",
    "gradtome": "structsam_export.methods.gradtome:GradToMe",
    "tome": "structsam_export.methods.tome:ToMe",
    "tomesd": "structsam_export.methods.tomesd:ToMeSD",
    "pitome": "structsam_export.methods.pitome:PiToMe",
    "vidtome": "structsam_export.methods.vidtome:VidToMe",
    "algm": "structsam_export.methods.algm:ALGM",
    "cubist": "structsam_export.methods.cubist:Cubist",
    "sparsesam": "structsam_export.methods.sparsesam:SparseSAM",
}
# The classes behind `--prompt-aware`, which plan with the prompt.
PROMPT_AWARE = {"structsam": "structsam_export.methods.prompt_aware:PromptAwareStructSAM"}


def method_class(name: str) -> type[Method]:
    """The class behind a name.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return load(METHODS[name])


def load(target: str) -> type[Method]:
    """The class at "module:Class"."""
    module, symbol = target.split(":")
    cls: type[Method] = getattr(import_module(module), symbol)
    return cls


def make_method(
    name: str,
    rate: float | None = None,
    variant: str | None = None,
    compat: str | None = None,
    prompt_aware: bool = False,
    **params: Any,
) -> Method:
    """A configured method; `None` means the method's own default.

    Args:
        name: a key of METHODS.
        rate: fraction of tokens removed.
        variant: a key of the method's VARIANTS.
        compat: one of the method's COMPAT, to reproduce published behaviour.
        prompt_aware: protect what the prompt shows; structsam only.
        params: the method's own parameters, as numbers or text.

    Raises:
        UsageError: unknown name, variant or parameter, or a value outside its limits.
    """
    cls = method_class(name)
    if prompt_aware:
        if name not in PROMPT_AWARE:
            raise UsageError(f"Method '{name}' has no --prompt-aware form. Methods that do: {', '.join(PROMPT_AWARE)}.")
        cls = load(PROMPT_AWARE[name])
    if variant is not None and variant not in cls.VARIANTS:
        raise UsageError(f"Method '{name}' has no variant '{variant}'. Its variants: {', '.join(cls.VARIANTS)}.")
    if compat is not None and compat not in cls.COMPAT:
        known = f"Its choices: {', '.join(cls.COMPAT)}." if cls.COMPAT else "Leave --compat away."
        raise UsageError(f"Method '{name}' has no --compat '{compat}'. {known}")
    if rate is not None and name == "none":
        rate = None  # the dense model has no rate; scripts that loop over methods may still pass one
    chosen = variant or next(iter(cls.VARIANTS))
    most = cls.VARIANTS[chosen]
    if rate is not None and not 0 <= rate <= most:
        raise UsageError(
            f"Rate {rate:g} is out of range for method '{name}' ({chosen}): it removes between 0 and {most:g} "
            f"of the tokens. Pass --rate {most:g} or less."
        )
    given: dict[str, Any] = {"rate": rate, "variant": variant, "compat": compat}
    own = {key: parameter(cls, key, value) for key, value in params.items()}
    return cls(**{k: v for k, v in given.items() if v is not None}, **own)


def parameter(cls: Any, key: str, value: Any) -> Any:
    """A method's own parameter, checked against its limits and given the type of its default.

    Raises:
        UsageError: unknown, not a number, or outside the limits.
    """
    if key not in cls.PARAMS:
        known = f"Its parameters: {', '.join(cls.PARAMS)}." if cls.PARAMS else "It has none."
        raise UsageError(f"Method '{cls.NAME}' has no parameter '{key}'. {known}")
    limits = cls.PARAMS[key]
    if isinstance(limits[0], str):
        if value not in limits:
            raise UsageError(f"Parameter {key}='{value}' of '{cls.NAME}' is unknown. Choose from: {', '.join(limits)}.")
        return value
    kind = type(cls.__dataclass_fields__[key].default)
    try:
        number = kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"Parameter {key}='{value}' of '{cls.NAME}' is no {kind.__name__} number.") from None
    if not limits[0] <= number <= limits[1]:
        raise UsageError(f"Parameter {key}={value} of '{cls.NAME}' must lie between {limits[0]:g} and {limits[1]:g}.")
    return number
