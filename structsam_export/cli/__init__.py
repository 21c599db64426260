"""The command line: parse, one library call, print. Results go to stdout, everything else to stderr.

One module for each idea: `stages`, `parity`, `speed`, `quality`, `tuning`, `masks`, `packs`, `lists`; `options` and
`show` are common to them.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from structsam_export import __version__, supervise
from structsam_export.cli.endings import check_streams, ended, unbroken
from structsam_export.cli.lists import doctor, methods
from structsam_export.cli.masks import predict
from structsam_export.cli.packs import pack
from structsam_export.cli.parity import validate
from structsam_export.cli.quality import evaluate, sweep
from structsam_export.cli.serving import serve
from structsam_export.cli.speed import bench
from structsam_export.cli.stages import build, export, rewrite, trace
from structsam_export.cli.tuning import tune
from structsam_export.console import interrupt


class DefaultToExport(click.Group):
    """`structsam-export --method ...` means `structsam-export export --method ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ("--help", "-h", "--version"):
            args = ["export", *args]
        return super().parse_args(ctx, args)

    def make_context(self, *arguments: Any, **given: Any) -> click.Context:
        with unbroken():  # --help
            return super().make_context(*arguments, **given)

    def invoke(self, ctx: click.Context) -> Any:
        with unbroken():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the pipeline, not of the alphabet


@click.group(cls=DefaultToExport, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Make Segment Anything faster and prove it: patch -> trace -> rewrite -> build -> validate.

    Without a command, 'export' runs; its options are listed by 'structsam-export export --help'.

    \b
    Example:
      structsam-export --method structsam --rate 0.5
    """


COMMANDS = (
    *(export, trace, rewrite, build, validate, bench, evaluate, sweep, tune, predict, serve, pack, methods, doctor),
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point: the one place where errors become messages and exit codes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a killed run cleans up as an interrupted one does
        signal.signal(number, interrupt)
    sys.exit(ended(run))


def run() -> int:
    """The command of the process' arguments; its exit code.

    Raises:
        OutputError: standard output is closed.
    """
    supervise.begin()
    check_streams()
    if supervise.wanted(sys.argv[1:]):
        return supervise.supervised(sys.argv[1:])
    status = cli.main(standalone_mode=False)
    sys.stdout.flush()
    return status if isinstance(status, int) else 0
