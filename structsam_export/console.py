"""Progress and messages on stderr, so that stdout stays free for `--json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_console: Console | None = None


def console() -> Console:
    """The one console of the process; writes to stderr."""
    global _console
    if _console is None:
        from rich.console import Console

        _console = Console(stderr=True, highlight=False)
    return _console


@contextmanager
def stage(title: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner while the body runs, then one line with the time it took.

    Yields a function that shows how far the body is, e.g. "2/7".
    """
    import time

    began = time.perf_counter()
    with console().status(f"{title} ...") as status:
        yield lambda progress: status.update(f"{title} {progress} ...")
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
