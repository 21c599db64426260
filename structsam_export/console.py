"""Progress and messages on stderr, so that stdout stays free for `--json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_console: Console | None = None
_interrupted = False


def console() -> Console:
    """The one console of the process; writes to stderr."""
    global _console
    if _console is None:
        from rich.console import Console

        _console = Console(stderr=True, highlight=False)
    return _console


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
    with console().status(f"{title} ...") as status:

        def say(progress: str) -> None:
            stop_if_interrupted()
            status.update(f"{title} {progress} ...")

        yield say
    stop_if_interrupted()
    console().print(f"[green]\u2713[/green] {title} [dim]{time.perf_counter() - began:.1f} s[/dim]")


@contextmanager
def progress(*, download: bool = False) -> Iterator[Progress]:
    """A progress bar; with `download` it shows bytes and speed."""
    from rich import progress as rich_progress

    columns: list[rich_progress.ProgressColumn] = [
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
    ]
    if download:
        columns += [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
    else:
        columns += [rich_progress.MofNCompleteColumn()]
    columns.append(rich_progress.TimeRemainingColumn())
    with rich_progress.Progress(*columns, console=console(), transient=True) as bar:
        yield bar
