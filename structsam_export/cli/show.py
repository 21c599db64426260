"""Results on stdout: verdicts, tables, JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from structsam_export.console import echo, printable, terminal
from structsam_export.errors import ParityError, UsageError
from structsam_export.files import check_writable, disk_errors


def show_report(report: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the verdict, or the report as JSON.

    Raises:
        ParityError: the report did not pass; its files stay, marked as failed.
    """
    if as_json:
        print_json(report)
    else:
        from structsam_export.report.summary import quality_line

        macs = report["macs"]
        echo(f"{folder}: {'passed' if report['passed'] else 'FAILED'}")
        echo(
            f"  encoder {macs['dense'] / 1e9:.2f} GMACs -> {macs['graph'] / 1e9:.2f} "
            f"({100 * (macs['graph'] / macs['dense'] - 1):+.1f} %)"
        )
        for name, row in report["parity"].items():
            agreement = row["decision_agreement"]
            decided = "" if agreement is None else f", decisions {agreement:.4%}"
            echo(f"  {name} against {row['against']}: max_rel {row['max_rel']:.1e}{told(row)}{decided}")
            if ties := row.get("ties"):
                echo(
                    f"    with equal decisions; {ties['differ']} of {ties['of']} decisions differ, {ties['ties']} of "
                    f"them ties. Left alone: max_rel {row['free_running']['max_rel']:.1e}{told(row['free_running'])}, "
                    f"decisions {row['free_running']['decision_agreement']:.4%}"
                )
        echo(f"  {quality_line(report['quality'])}")
        echo(f"  report: {folder / 'report.html'}")
    if not report["passed"]:
        failed = ", ".join(name for name, row in report["parity"].items() if not row["passed"])
        raise ParityError(f"Parity failed at: {failed}. The files are kept and marked; see {folder / 'report.html'}.")


def told(row: Mapping[str, Any]) -> str:
    """What a row of parity says of masks, or of the best class."""
    if "mask_iou_mean" in row:
        return f", mask IoU mean {row['mask_iou_mean']:.6f} min {row['mask_iou_min']:.6f}"
    return f", top-1 agreement {row['top1_agreement']:.4f}" if "top1_agreement" in row else ""


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be written, before minutes of work.

    Raises:
        UsageError: a format we do not draw, or no such folder.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"Cannot draw {path}. Pass --plot FILE.png, .svg or .pdf.")
    check_file(path, "--plot")


def check_file(path: Path | None, option: str) -> None:
    """Refuse a file that cannot be written, before minutes of work.

    Raises:
        UsageError: no such folder.
        OutputError: it is a folder, or is not writable.
    """
    if path is None:
        return
    with disk_errors(path, f"pass another {option}"):
        if not path.absolute().parent.is_dir():
            raise UsageError(f"Folder {path.absolute().parent} does not exist. Make it, or pass another {option}.")
    check_writable(path, f"pass another {option}")


def print_json(data: Any) -> None:
    """JSON on stdout."""
    import json

    echo(json.dumps(data, indent=2))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout, as wide as its content."""
    from rich import box
    from rich.table import Table

    table = Table(*map(printable, head), box=box.SIMPLE, pad_edge=False)
    for row in rows:
        table.add_row(*map(printable, row))
    terminal(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)
