"""Everything that can go wrong for a user, and the exit code it ends with.

::

    StructSAMError
    |-- UsageError             2   unknown method, layer or variant; rate out of range; output exists
    |   |-- PromptError        2   points, boxes or masks that are no prompt for this picture or model (a ValueError)
    |   `-- NoImageError       2   `Predictor.predict` before `set_image` (a RuntimeError, as SAM raises it)
    |-- ParityError            3   a stage disagrees with the one before (artefacts are kept)
    |-- MissingRuntimeError    4   a runtime that was asked for is not installed or cannot run here
    |-- OutputError            4   output folder not writable, disk full
    `-- BadInputError          5
        |-- CheckpointError    5   missing, corrupt, foreign or mismatching weights
        |-- ImageError         5   unreadable photo
        |-- DatasetError       5   missing, corrupt or mismatching images and masks of a data set
        |-- PrecisionError     5   a graph whose tensors cannot be given other types
        `-- ArtifactError      5   missing or changed ONNX, engine or manifest

Messages say what to do next. Anything that is not a `StructSAMError` is a bug and keeps its traceback (exit 1).
An interrupted run exits with 130 and leaves nothing that looks finished.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
LONGEST = 200  # characters of a value in a message


class StructSAMError(Exception):
    """Base of every error a user can cause or cure; `exit_code` is the process' exit status."""

    exit_code = 1


class UsageError(StructSAMError):
    """The request contradicts itself or the method's limits."""

    exit_code = 2


class PromptError(UsageError, ValueError):
    """Points, boxes or masks that are no prompt."""


class NoImageError(UsageError, RuntimeError):
    """A prediction is asked for before there is an image."""


def shortened(text: object) -> str:
    """A value for a message: the beginning of a long one."""
    shown = str(text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}... ({len(shown)} characters)"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is in no registry: suggests the closest one and lists all."""
    known = list(known)
    close = difflib.get_close_matches(name[:LONGEST], known, 1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UsageError(f"Unknown {kind} '{shortened(name)}'.{hint} Known {kind}s: {', '.join(known)}.")


class ParityError(StructSAMError):
    """A stage does not compute what the stage before it computes."""

    exit_code = 3


class MissingRuntimeError(StructSAMError):
    """A runtime that was asked for is not here."""

    exit_code = 4


class OutputError(StructSAMError):
    """Results cannot be written."""

    exit_code = 4


class BadInputError(StructSAMError):
    """A file the user handed over cannot be used."""

    exit_code = 5


class CheckpointError(BadInputError):
    """Weights are missing, corrupt or of another model."""


class ImageError(BadInputError):
    """A photo cannot be read."""


class DatasetError(BadInputError):
    """Images or masks of a data set are missing, corrupt or do not belong together."""


class PrecisionError(BadInputError):
    """A graph cannot be converted to another precision."""


class ArtifactError(BadInputError):
    """A file of an output folder is missing, or is not the one its manifest describes."""
