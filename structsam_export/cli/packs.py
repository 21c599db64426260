"""What goes into users' programs: `pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from structsam_export.cli.options import Command, json_option, options
from structsam_export.cli.show import print_json, print_table
from structsam_export.console import echo
from structsam_export.errors import UsageError
from structsam_export.packs import PACKS, options_of_packs

pack_options = options(
    *(
        click.option(f"--{name}", f"option_{name}", metavar="|".join(about.choices), help=about.help)
        for name, about in options_of_packs().items()
    )
)


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", required=False, type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", required=False, type=click.Path(path_type=Path))
@click.option("--as", "name", metavar="NAME", help=f"One of {', '.join(PACKS)}.")
@pack_options
@click.option("--list", "listed", is_flag=True, help="List the packs, the programs that read them, and their options.")
@click.option("--force", is_flag=True, help="Replace an earlier pack.")
@json_option
def pack(
    folder: Path | None, output: Path | None, name: str | None, listed: bool, force: bool, as_json: bool, **given: Any
) -> None:
    """Write export DIR for a program.

    A folder OUT that the program loads as it is, with a README of its own.

    \b
    Example:
      structsam-export pack engines/mine packs/mine --as anylabeling
    """
    from structsam_export.packs import write_pack

    if listed:
        list_packs(as_json)
        return
    if folder is None or output is None or name is None:
        raise UsageError("Pass an export folder, the folder to make and --as NAME; 'pack --list' lists the names.")
    chosen = {option.removeprefix("option_"): value for option, value in given.items() if value is not None}
    made = write_pack(folder, output, name, chosen, force=force)
    if as_json:
        print_json(made.manifest)
        return
    for file in made.manifest["files"]:
        echo(made.folder / file)


def list_packs(as_json: bool) -> None:
    """Print the catalogue."""
    from structsam_export.packs import catalogue

    rows = catalogue()
    if as_json:
        print_json(rows)
        return
    shown = [
        (row["name"], row["for"], row["holds"], ", ".join(f"--{k} {'|'.join(v)}" for k, v in row["options"].items()))
        for row in rows
    ]
    print_table(("pack", "for", "holds", "options"), shown)
