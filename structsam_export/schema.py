"""What plain values from a JSON file may be, checked once, before anything is made of them.

A form is one of

    a type          such a value; `bool` is no `int`, an `int` is a `float`, numbers are finite, text has no zero byte
    None            null
    (form, ...)     one of these
    [form]          a list of such values
    {str: form}     an object of such values, under any names
    {"name": form}  an object; these keys, where present, are such values
    a function      takes the value and returns what is wrong with it, or None
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import isfinite
from typing import Any

from structsam_export.errors import shortened

LARGEST = 2**53  # of a whole number: beyond, JSON readers disagree


class Misfit(Exception):
    """A value that is not of its form; the message says where and why."""


def check(value: Any, form: Any, where: str) -> None:
    """Compare a value with its form.

    Args:
        value: plain values, as `json.loads` gives them.
        form: see the module.
        where: what the value is called in a message.

    Raises:
        Misfit: the first value that is not of its form.
    """
    if isinstance(form, tuple):
        if not any(fits(value, one) for one in form):
            raise Misfit(f"{where} is {shown(value)}, not {' or '.join(map(named, form))}")
    elif isinstance(form, list):
        check(value, list, where)
        for i, item in enumerate(value):
            check(item, form[0], f"{where}[{i}]")
    elif isinstance(form, dict):
        check(value, dict, where)
        every = form.get(str)
        for key, item in value.items():
            if every is not None or key in form:
                check(item, every if every is not None else form[key], f"{where}.{shortened(key)}")
    elif form is None or isinstance(form, type):
        if not _is(value, form):
            raise Misfit(f"{where} is {shown(value)}, not {named(form)}")
    elif wrong := form(value):
        raise Misfit(f"{where} is {shown(value)}, {wrong}")


def fits(value: Any, form: Any) -> bool:
    """Whether a value is of a form."""
    try:
        check(value, form, "")
    except Misfit:
        return False
    return True


def require(value: Any, names: Collection[str], where: str) -> None:
    """Compare the keys of a value with those it has to have.

    Raises:
        Misfit: no object, or a key is missing.
    """
    check(value, dict, where)
    if missing := [name for name in names if name not in value]:
        raise Misfit(f"{where} lacks '{missing[0]}'")


def between(low: int, high: int) -> Callable[[Any], str | None]:
    """The form of whole numbers from `low` to `high`."""
    return lambda value: None if _is(value, int) and low <= value <= high else f"not a number from {low} to {high}"


def share(value: Any) -> str | None:
    """The form of numbers above 0 and below 1."""
    return None if _is(value, float) and 0 < value < 1 else "not a number between 0 and 1"


def one_of(*names: str) -> Callable[[Any], str | None]:
    """The form of certain texts."""
    return lambda value: None if isinstance(value, str) and value in names else f"not one of {', '.join(names)}"


def digest(value: Any) -> str | None:
    """The form of a SHA-256."""
    right = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
    return None if right else "not a SHA-256"


def named(form: Any) -> str:
    """A form in words."""
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
    if form is None:
        return "null"
    return words.get(form, "a list") if isinstance(form, type) else "what belongs there"


def shown(value: Any) -> str:
    """A value for a message, however large or deep it is."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return shortened(repr(value))


def _is(value: Any, form: Any) -> bool:
    if form is None:
        return value is None
    if isinstance(value, bool):
        return form is bool
    if form is float:
        return isinstance(value, float) and isfinite(value) or _is(value, int)
    if form is int:
        return isinstance(value, int) and abs(value) <= LARGEST
    if form is str:
        return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, form)
