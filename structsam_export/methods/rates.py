"""`--rate`: one fraction for all layers, or a fraction for each group of layers ("0.3:0-5,0.6:6-11")."""

from __future__ import annotations

from dataclasses import dataclass

from structsam_export.errors import UsageError, shortened


@dataclass(frozen=True)
class Rates:
    """A parsed `--rate`: `everywhere`, or `groups` of (fraction, layers as text) in the order given."""

    everywhere: float | None = None
    groups: tuple[tuple[float, str], ...] = ()


def parse_rate(text: str | float | None) -> Rates:
    """Read a rate.

    Args:
        text: a number, a number as text, or "RATE:LAYERS,RATE:LAYERS,..." where LAYERS is a list such as 0-5 or 0,2,7
            (or a preset of `--layers`); None for the method's default.

    Raises:
        UsageError: not a number where one belongs.
    """
    if text is None or isinstance(text, (int, float)):
        return Rates(None if text is None else float(text))
    if ":" not in text:
        return Rates(number(text, text))
    groups: list[tuple[float, list[str]]] = []
    for part in text.split(","):
        rate, colon, layers = part.partition(":")
        if colon:
            groups.append((number(rate, text), [layers.strip()]))
        elif groups:
            groups[-1][1].append(part.strip())
        else:
            raise cannot_read(text)
    return Rates(groups=tuple((rate, ",".join(layers)) for rate, layers in groups))


def number(part: str, text: str) -> float:
    """A number as text.

    Raises:
        UsageError: no number; `text` is the whole rate, for the message.
    """
    try:
        return float(part)
    except ValueError:
        raise cannot_read(text) from None


def cannot_read(text: str) -> UsageError:
    """The error for a rate that says nothing."""
    return UsageError(
        f"Cannot read rate '{shortened(text)}'. Pass a fraction (0.5), or fractions by layers (0.3:0-5,0.6:6-11)."
    )
