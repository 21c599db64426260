"""Shapes of a checkpoint's tensors, checked: files may claim anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_SIZE, DEEPEST = 1 << 16, 256


class Unreadable(Exception):
    """Why an architecture cannot be read."""


def shape(state: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor of so many axes, each of a credible size.

    Raises:
        Unreadable: there is none of that name, or of that shape.
    """
    if name not in state:
        raise Unreadable(f"they have no {name}")
    shape = tuple(state[name].shape)
    if len(shape) != axes or not all(1 <= size <= LARGEST_SIZE for size in shape):
        raise Unreadable(f"{name} has shape {shape}")
    return shape


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbered parts there are: from 0 on, none left out."""
    numbers = {int(found[1]) for name in state if (found := re.match(pattern, name)) and len(found[1]) < 6}
    if not numbers or numbers != set(range(len(numbers))) or len(numbers) > DEEPEST:
        shown = ", ".join(map(str, sorted(numbers)[:16])) or "none"
        parts = pattern.replace(r"(\d+)", "N").replace("\\", "").rstrip(".")
        raise Unreadable(f"of {parts} they have {shown}")
    return len(numbers)
