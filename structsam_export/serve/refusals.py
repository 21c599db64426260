"""What a client is told when it does not get what it asked for."""

from __future__ import annotations

from collections.abc import Mapping

from structsam_export.errors import (
    ImageError,
    MissingRuntimeError,
    NoImageError,
    StructSAMError,
    UsageError,
)


class Refused(Exception):
    """A request that is answered with a status and a reason.

    Args:
        status: HTTP's.
        reason: a sentence for a person.
        headers: to go with it.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


class Gone(Exception):
    """The client has left; nobody reads an answer."""


def refusal_of(error: StructSAMError) -> Refused | None:
    """An error of ours as an answer; None: it is the server's own trouble."""
    kinds: tuple[tuple[type[StructSAMError], int], ...] = (
        (NoImageError, 404),
        (UsageError, 422),
        (ImageError, 400),
        (MissingRuntimeError, 501),
    )
    for kind, status in kinds:
        if isinstance(error, kind):
            return Refused(status, str(error))
    return None


def busy(seconds: float, what: str) -> Refused:
    """429, with when to come again."""
    after = max(1, min(60, round(seconds)))
    return Refused(429, f"{what} Come again in {after} s.", {"Retry-After": str(after)})
