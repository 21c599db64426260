"""`validate`: an export's stages compared again, by people or by CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from structsam_export.cli.options import Command, folder_argument, image_option, json_option, options
from structsam_export.cli.show import check_file, show_report
from structsam_export.console import echo, note
from structsam_export.errors import ParityError, UsageError

if TYPE_CHECKING:
    from structsam_export.report.baseline import Verdict

file = click.Path(path_type=Path)
ci_options = options(
    click.option("--baseline", type=file, metavar="REPORT", help="Stored report: fail (3) where this one is worse."),
    click.option("--update-baseline", is_flag=True, help="Store this report as --baseline instead, if it passed."),
    click.option(
        "--max-slowdown",
        type=click.FloatRange(min=0, min_open=True),
        metavar="FACTOR",
        help="Also fail where an encoder's time, over unpatched PyTorch's, grew by more.",
    ),
    click.option("--junit", type=file, metavar="FILE", help="Write every check as JUnit XML."),
    click.option("--summary", type=file, metavar="FILE", help="Append a Markdown summary, as for GITHUB_STEP_SUMMARY."),
)


@click.command(cls=Command)
@folder_argument
@image_option
@click.option("--checkpoint", metavar="PATH", help="Where the weights are now. Default: where they were.")
@click.option(
    "--unmerged-latency",
    is_flag=True,
    help="Also time the unmerged model on ONNX Runtime; exported beside FOLDER first, if it is not there.",
)
@ci_options
@json_option
def validate(
    folder: Path,
    images: tuple[str, ...],
    checkpoint: str | None,
    unmerged_latency: bool,
    baseline: Path | None,
    update_baseline: bool,
    max_slowdown: float | None,
    junit: Path | None,
    summary: Path | None,
    as_json: bool,
) -> None:
    """Compare FOLDER's stages again.

    Stage validate only; it writes the report anew. With --baseline also against a stored report.

    \b
    Example:
      structsam-export validate engines/mine --baseline ci/mine.json --junit parity.xml
    """
    from structsam_export.pipeline import validate_folder
    from structsam_export.report.baseline import check_photos, judge

    if baseline is None and (update_baseline or max_slowdown is not None):
        needs = "--update-baseline" if update_baseline else "--max-slowdown"
        raise UsageError(f"{needs} needs the file of the stored report. Pass --baseline REPORT.")
    for path, option in ((junit, "--junit"), (summary, "--summary")):
        check_file(path, option)
    stored = None if baseline is None else opened(baseline, folder, update_baseline)
    if unmerged_latency:
        from structsam_export.benchmark.baselines import baselines_of

        baselines_of(str(folder), checkpoint)
    report = validate_folder(folder, images, checkpoint)
    if stored is not None and baseline is not None:
        check_photos(report, stored, baseline)
    verdict = judge(report, stored, None if stored is None else baseline, max_slowdown)
    write_files(report, verdict, folder, junit, summary)
    if baseline is not None and update_baseline and report["passed"]:
        store(report, baseline)
    tell(report, verdict, folder, as_json)


def opened(baseline: Path, folder: Path, update: bool) -> dict[str, Any] | None:
    """The stored report, refused before minutes of work; None where it is to be replaced."""
    from structsam_export.folder import ExportFolder
    from structsam_export.report.baseline import check_replaceable, check_same, read_baseline

    if update:
        check_file(baseline, "--baseline")
        check_replaceable(baseline)
        return None
    stored = read_baseline(baseline)
    manifest = ExportFolder.read(folder).manifest
    check_same(manifest.model["sha256"], manifest.config.to_dict(), stored, baseline)
    return stored


def write_files(
    report: dict[str, Any], verdict: Verdict, folder: Path, junit: Path | None, summary: Path | None
) -> None:
    """What CI shows; written before the verdict is raised."""
    from structsam_export.report.junit import write_junit
    from structsam_export.report.summary import append_summary
    from structsam_export.report.summary import summary as text

    name = folder.resolve().name
    if junit is not None:
        write_junit(junit, verdict, name)
    if summary is not None:
        append_summary(summary, text(report, verdict, name))


def store(report: dict[str, Any], baseline: Path) -> None:
    """Make a report the baseline."""
    import json

    from structsam_export.files import atomic

    with atomic(baseline) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    note(f"{baseline} holds this report now.")


def tell(report: dict[str, Any], verdict: Verdict, folder: Path, as_json: bool) -> None:
    """Print the verdict.

    Raises:
        ParityError: a gate does not hold, or a number is worse than the baseline allows; the message names them.
    """
    compared = verdict.baseline is not None
    worse = "; ".join(map(str, verdict.worse))
    found = {**report, "baseline": verdict.to_dict()} if compared else report
    try:
        show_report(found, folder, as_json)
    except ParityError as error:
        raise ParityError(f"{error} Against the baseline: {worse}." if worse else str(error)) from None
    if worse:
        raise ParityError(f"Worse than {verdict.baseline}: {worse}.")
    if compared and not as_json:
        judged = sum(check.limit is not None for check in verdict.checks)
        echo(f"  nothing is worse than {verdict.baseline} by more than it may: {judged} numbers")
