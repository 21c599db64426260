"""Progress and messages on stderr, so that stdout stays free for `--json`.

Whatever comes from a file or from the command line goes to a terminal through `printable` (plain text), `markup` (a
part of a line of rich's), `echo` (a line on stdout) or `note` (a line on stderr).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_console: Console | None = None
_interrupted = False


def console() -> Console:
    """The one console of the process; writes to stderr."""
    global _console
    if _console is None:
        _console = terminal(stderr=True, highlight=False, emoji=False)
    return _console


def terminal(**options: Any) -> Console:
    """A console of rich's that raises BrokenPipeError where nobody reads, instead of ending the process with 1."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Terminal(**options)


def printable(text: object) -> str:
    """Text as a terminal may have it: line breaks and tabs stay, other control and format characters are spelt out.

    So are halves of surrogate pairs, which Python makes of file names that are not UTF-8 and which cannot be printed.
    """
    import unicodedata

    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown

    def spelt(character: str) -> str:
        kept = character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs"
        return character if kept else character.encode("unicode_escape").decode("ascii")

    return "".join(spelt(character) for character in shown)


def markup(text: object) -> str:
    """`printable` for a line with rich's markup: brackets are brackets."""
    from rich.markup import escape

    return escape(printable(text))


def echo(text: object = "") -> None:
    """A line on stdout, `printable`."""
    import click

    click.echo(printable(text))


def note(text: object) -> None:
    """A line on stderr, `printable`, without markup and not broken: names in it are to be copied."""
    console().print(printable(text), markup=False, soft_wrap=True)


def interrupt(*_: object) -> None:
    """Handler of SIGINT and SIGTERM: raises KeyboardInterrupt, and remembers it.

    Libraries that catch everything (polygraphy does while it imports) would otherwise swallow a Ctrl-C for good.
    """
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt again if one was swallowed."""
    if _interrupted:
        raise KeyboardInterrupt


@contextmanager
def stage(title: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner while the body runs, then one line with the time it took.

    Yields a function that shows how far the body is, e.g. "2/7".
    """
    import time

    began = time.perf_counter()
    stop_if_interrupted()
    title = markup(title)
    with console().status(f"{title} ...") as status:

        def say(progress: str) -> None:
            stop_if_interrupted()
            status.update(f"{title} {markup(progress)} ...")

        yield say
    stop_if_interrupted()
    console().print(f"[green]\u2713[/green] {title} [dim]{time.perf_counter() - began:.1f} s[/dim]")


@contextmanager
def progress(*, download: bool = False) -> Iterator[Progress]:
    """A progress bar; with `download` it shows bytes and speed."""
    from rich import progress as rich_progress

    columns: list[rich_progress.ProgressColumn] = [
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
    ]
    if download:
        columns += [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
    else:
        columns += [rich_progress.MofNCompleteColumn()]
    columns.append(rich_progress.TimeRemainingColumn())
    with rich_progress.Progress(*columns, console=console(), transient=True) as bar:
        yield bar
