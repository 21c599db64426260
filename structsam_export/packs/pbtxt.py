"""Protobuf text format, as Triton reads its `config.pbtxt`, from plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Name(str):
    """A name of an enumeration, which stands without quotes."""


def text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message: text, numbers, truth values, messages, and lists of these (repeated fields)."""
    return "".join(line + "\n" for key, value in message.items() for line in field(key, value, indent))


def field(key: str, value: Any, indent: str) -> Iterator[str]:
    """The lines of one field."""
    if isinstance(value, Mapping):
        yield f"{indent}{key} {{\n{text(value, indent + '  ')}{indent}}}"
    elif isinstance(value, (list, tuple)):
        if any(isinstance(item, Mapping) for item in value):
            for item in value:
                yield from field(key, item, indent)
        else:
            yield f"{indent}{key}: [ {', '.join(map(scalar, value))} ]"
    else:
        yield f"{indent}{key}: {scalar(value)}"


def scalar(value: Any) -> str:
    """One value."""
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else str(value)
