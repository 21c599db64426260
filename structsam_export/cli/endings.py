"""How a run ends: the message and the exit code of whatever stopped it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from structsam_export.console import printable
from structsam_export.errors import INTERRUPTED, OutputError, StructSAMError
from structsam_export.files import disk_errors
from structsam_export.reading import is_out_of_memory

BROKEN_PIPE = 141  # as a shell names the end by SIGPIPE: whoever read our output has had enough
NO_MEMORY = (
    "Not enough memory. Close other programs, raise the limit (ulimit -v), or pass a smaller --model or --batch."
)


class BrokenPipe(Exception):
    """Nobody reads standard output any more. Click would end with 1 by itself on a BrokenPipeError."""


def ended(run: Callable[[], int]) -> int:
    """Run the command; its exit code, after a message about what stopped it.

    Bugs keep their traceback: whatever is no `StructSAMError` and none of the system's refusals is raised.
    """
    try:
        try:
            with unbroken():
                return run()
        except click.exceptions.Abort as error:  # click puts one around an interrupt
            raise KeyboardInterrupt(str(error) or str(error.__cause__ or "")) from None
        except Exception as error:
            if is_out_of_memory(error):
                raise OutputError(NO_MEMORY) from None
            where = getattr(error, "filename", None) or "standard output"
            with disk_errors(Path(str(where)), "write elsewhere"):
                raise
    except KeyboardInterrupt as error:
        return last_words(str(error) or "Interrupted; nothing was left behind.", INTERRUPTED)
    except BrokenPipe:
        return last_words("", BROKEN_PIPE)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        return last_words(shown.getvalue().rstrip("\n"), error.exit_code)
    except StructSAMError as error:
        return last_words(f"Error: {error}", error.exit_code)


def last_words(text: str, code: int) -> int:
    """Say something on stderr, as far as that is possible; returns `code`."""
    with suppress(OSError):
        if text:
            click.echo(printable(text), err=True)
    # What could not be written must not be tried again while the interpreter ends: it would print a traceback.
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return code
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return code


@contextmanager
def unbroken() -> Iterator[None]:
    """Raise `BrokenPipe` where standard output is a pipe that nobody reads."""
    try:
        yield
    except BrokenPipeError:
        raise BrokenPipe from None


def check_streams() -> None:
    """Make the standard streams such that nothing can go wrong with them later.

    A closed one would be the number of the next file that is opened, and what libraries print would go into it.

    Raises:
        OutputError: standard output is closed, or the current folder has gone.
    """
    closed = sys.stdout is None
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            closed = closed or number == 1
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115, PTH123 (for good)
    if closed:
        sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115, PTH123 (for good)
        raise OutputError("Standard output is closed. Leave it open, or send it to a file or /dev/null.")
    for stream in (sys.stdout, sys.stderr):  # names and signs that the terminal's encoding lacks are spelt out
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        Path.cwd()
    except OSError:
        raise OutputError("The current folder no longer exists. Change to another one.") from None
