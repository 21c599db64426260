"""What there is: `methods`, `doctor`."""

from __future__ import annotations

import click

from structsam_export.cli.options import Command, json_option
from structsam_export.cli.show import print_json, print_table
from structsam_export.console import echo


@click.command(cls=Command)
@json_option
def methods(as_json: bool) -> None:
    """List the methods of merging.

    With their variants and largest rates, the MACs they save on ViT-B at rate 0.5, what they protect, and sources.
    Then which model families they run in: supported (their papers report on it), ours (carried over), or refused.

    \b
    Example:
      structsam-export methods
    """
    from structsam_export.catalogue import COLUMNS, by_host, catalogue, host_table, refusals, table_rows

    rows, hosts = catalogue(), by_host()
    if as_json:
        shown = ("host", "state", "why")
        for row in rows:
            row["hosts"] = [{key: h[key] for key in shown} for h in hosts if h["method"] == row["name"]]
        print_json(rows)
        return
    print_table(COLUMNS, table_rows(rows))
    print_table(*host_table(hosts))
    for why in refusals(hosts):
        echo(f"Refused by {why}")


@click.command(cls=Command)
@json_option
def doctor(as_json: bool) -> None:
    """Tell what this machine can build and run.

    What is installed, what each backend can do here, and what to install for the rest.

    \b
    Example:
      structsam-export doctor
    """
    from structsam_export.doctor import diagnose

    facts = diagnose()
    if as_json:
        print_json(facts)
        return
    echo(f"Python {facts['python']} on {facts['platform']}")
    echo(f"CPU: {facts['cpu']}, {facts['cores']} cores")
    echo(f"GPU: {facts['gpu'] or 'none (engines can be built with tensorrt-rtx, but not run)'}")
    print_table(("package", "version"), list(facts["versions"].items()))
    rows = [(name, row["can"], row["to_do"] or "") for name, row in facts["backends"].items()]
    print_table(("backend", "can", "to do"), rows)
    for problem in facts["problems"]:
        echo(f"Problem: {problem}")
