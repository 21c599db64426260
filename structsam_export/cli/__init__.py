"""The command line: parse, one library call, print. Results go to stdout, everything else to stderr.

One module for each idea: `stages`, `speed`, `quality`, `masks`, `lists`; `options` and `show` are common to them.
"""

from __future__ import annotations

import io
import signal
import sys

import click

from structsam_export import __version__
from structsam_export.cli.lists import doctor, methods
from structsam_export.cli.masks import predict
from structsam_export.cli.packs import pack
from structsam_export.cli.quality import evaluate, sweep
from structsam_export.cli.speed import bench
from structsam_export.cli.stages import build, export, rewrite, trace, validate
from structsam_export.console import interrupt, printable
from structsam_export.errors import INTERRUPTED, StructSAMError


class DefaultToExport(click.Group):
    """`structsam-export --method ...` means `structsam-export export --method ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ("--help", "-h", "--version"):
            args = ["export", *args]
        return super().parse_args(ctx, args)

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


for command in (export, trace, rewrite, build, validate, bench, evaluate, sweep, predict, pack, methods, doctor):
    cli.add_command(command)


def main() -> None:
    """Entry point: the one place where errors become messages and exit codes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a killed run cleans up as an interrupted one does
        signal.signal(number, interrupt)
    try:
        status = cli.main(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        said = str(error) or str(error.__cause__ or "")  # click puts an Abort around an interrupt
        click.echo(said or "Interrupted; nothing was left behind.", err=True)
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(printable(shown.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except StructSAMError as error:
        click.echo(printable(f"Error: {error}"), err=True)
        sys.exit(error.exit_code)
