"""The command line: parse, one library call, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from structsam_export import __version__
from structsam_export.console import interrupt
from structsam_export.errors import INTERRUPTED, ParityError, StructSAMError, UsageError
from structsam_export.models import MODELS


class DefaultToExport(click.Group):
    """`structsam-export --method ...` means `structsam-export export --method ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ("--help", "-h", "--version"):
            args = ["export", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the pipeline, not of the alphabet


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def apply(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


merge_options = options(
    click.option("--model", default="demo", show_default=True, help=f"One of {', '.join(MODELS)}."),
    click.option("--checkpoint", metavar="PATH", help="Weights; default: bundled, cached or downloaded."),
    click.option("--method", default="structsam", show_default=True, help="Merge method; see 'methods'."),
    click.option("--rate", metavar="RATE", help="Fraction of tokens removed, or by layers: 0.3:0-5,0.6:6-11."),
    click.option("--variant", metavar="NAME", help="Variant of the method."),
    click.option("--layers", metavar="LAYERS", help="all (default), last5, global or a list: 0,3,6-8."),
    click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Parameter of the method; repeatable."),
    click.option("--compat", metavar="thesis", help="Reproduce published behaviour: pads as tokens, Sobel sign bug."),
    click.option("--prompt-aware", is_flag=True, help="The encoder also takes a box and protects what it shows."),
    click.option("--mlp", default="none", show_default=True, help="none, residual-consistency or merge."),
    click.option("--mlp-density", type=float, help="Share of tokens through the MLP (residual-consistency)."),
)
model_options = options(
    merge_options,
    click.option(
        "--precision", default="auto", show_default=True, help="Of the encoder: fp16, fp32, bf16. auto: fp16 if it can."
    ),
    click.option(
        "--form",
        default="portable",
        show_default=True,
        help="What the graph is written for: portable, attention (ONNX's operator, opset 23) or ort-cpu.",
    ),
    click.option("--opset", type=int, default=18, show_default=True, help="ONNX opset."),
    click.option("--batch", type=int, default=1, show_default=True, help="Images per encoder call."),
    click.option("--output", type=click.Path(path_type=Path), help="Folder. Default: engines/<model>-<method>-..."),
    click.option("--force", is_flag=True, help="Replace an earlier export."),
)
build_options = options(
    click.option("--backend", default="auto", show_default=True, help="auto, tensorrt, tensorrt-rtx or none."),
    click.option(
        "--target", default="auto", show_default=True, help="sm86,sm89,... or current. auto: this GPU, else sm86,sm89."
    ),
)
image_option = click.option(
    "--image", "images", multiple=True, metavar="PATH", help="Photo to validate on; repeatable."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON (and nothing else) on stdout.")
folder_argument = click.argument("folder", type=click.Path(path_type=Path))


@click.group(cls=DefaultToExport, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Make Segment Anything faster and prove it: patch -> trace -> rewrite -> build -> validate.

    Without a command, 'export' runs; its options are listed by 'structsam-export export --help'.

    \b
    Example:
      structsam-export --method structsam --rate 0.5
    """


@cli.command()
@model_options
@build_options
@image_option
@json_option
def export(output: Path | None, force: bool, as_json: bool, **given: Any) -> None:
    """Run the whole chain: a checkpoint in, verified engines and a report out.

    \b
    Example:
      structsam-export export --model vit_b --checkpoint sam_vit_b_01ec64.pth --rate 0.5
    """
    from structsam_export.pipeline import export as run

    report, folder = run(config_of(given), output, force=force)
    show_report(report, folder, as_json)


@cli.command()
@model_options
def trace(output: Path | None, force: bool, **given: Any) -> None:
    """Stages patch and trace only: ONNX as traced, in a new output folder.

    \b
    Example:
      structsam-export trace --method structsam --output engines/mine
    """
    from structsam_export.pipeline import trace_only

    click.echo(trace_only(config_of({**given, "backend": "none"}), output, force=force))


@cli.command()
@folder_argument
@click.option("--verbose", is_flag=True, help="Also list near matches that were left alone, and why.")
def rewrite(folder: Path, verbose: bool) -> None:
    """Stage rewrite only: the traced graphs of FOLDER into fast ones.

    \b
    Example:
      structsam-export rewrite engines/mine
    """
    from structsam_export.artifact import Manifest
    from structsam_export.pipeline import precision_stage, rewrite_stage

    manifest = Manifest.read(folder)
    rewrite_stage(folder, manifest)
    precision_stage(folder, manifest)
    for part, counts in manifest.results["rewrite"].items():
        nodes = manifest.results["graph"][part]
        fired = ", ".join(f"{rule} {n}" for rule, n in counts.items())
        click.echo(f"{part}: {nodes['nodes_raw']} -> {nodes['nodes']} nodes ({fired})")
        for reason in manifest.results["rewrite_skipped"][part] if verbose else ():
            click.echo(f"  left alone: {reason}")


@cli.command()
@folder_argument
@build_options
def build(folder: Path, backend: str, target: str) -> None:
    """Stage build only: engines of FOLDER's rewritten graphs.

    \b
    Example:
      structsam-export build engines/mine --backend tensorrt-rtx --target sm120
    """
    from structsam_export.artifact import Manifest
    from structsam_export.build import choose_backend, resolve_targets
    from structsam_export.pipeline import build_stage

    chosen = choose_backend(backend)
    manifest = Manifest.read(folder)
    build_stage(folder, manifest, chosen, resolve_targets(target, chosen) if chosen else ())
    for engine in manifest.engines:
        click.echo(folder / engine["file"])


@cli.command()
@folder_argument
@image_option
@json_option
def validate(folder: Path, images: tuple[str, ...], as_json: bool) -> None:
    """Stage validate only: compare FOLDER's stages again and rewrite its report.

    \b
    Example:
      structsam-export validate engines/mine --image photo.jpg
    """
    from structsam_export.pipeline import validate_folder

    show_report(validate_folder(folder, images), folder, as_json)


@cli.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--runner", "runners", multiple=True, default=("ort-cpu",), show_default=True, help="See below; repeatable."
)
@click.option(
    "--runs",
    "rounds",
    type=click.IntRange(1),
    default=7,
    show_default=True,
    help="Interleaved runs of each, after a warm-up.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads, pinned. Default: all cores.")
@click.option("--baselines", is_flag=True, help="First: the stock encoder as torch.onnx exports it, and rewritten.")
@click.option("--profile", is_flag=True, help="Which operators take the time, and how much of it merging adds.")
@click.option("--reload/--keep", default=None, help="Hold one variant in memory at a time. Default: where not all fit.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw a picture: .png, .svg or .pdf.")
@json_option
def bench(
    targets: tuple[str, ...], runners: tuple[str, ...], baselines: bool, plot: Path | None, as_json: bool, **given: Any
) -> None:
    """Time encoders side by side: output folders or ONNX files, as PATH or NAME=PATH; ratios are to the first.

    Runners: eager, ort-cpu, ort-cuda, tensorrt, tensorrt-rtx, tensorrt-rtx-graph (as one CUDA graph).

    \b
    Example:
      structsam-export bench engines/demo-structsam-r50-fp16 --baselines --profile --plot bench.png
    """
    from structsam_export.benchmark import bench as run
    from structsam_export.benchmark import table, variants_of
    from structsam_export.benchmark.baselines import baselines_of

    if plot is not None:
        check_picture(plot)
    if baselines and (other := next((r for r in runners if not r.startswith("ort")), None)):
        raise UsageError(f"--baselines are ONNX files, and runner '{other}' takes none. Use --runner ort-cpu.")
    variants = variants_of(targets, runners)
    if baselines:  # an export: only after everything else that can be refused
        variants = variants_of([*baselines_of(targets[0]), *targets], runners)
    report = run(variants, **given)
    if plot is not None:
        from structsam_export.benchmark.plot import plot as draw

        draw(report, plot)
    if as_json:
        print_json(report)
        return
    print_table(*table(report))


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--dataset", default="bundled", show_default=True, metavar="NAME|DIR", help="Images with true masks.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Where data sets are kept.")
@click.option("--runner", help="eager, ort or engine. Default: ort with FOLDER, else eager.")
@click.option("--protocol", default="sam", show_default=True, help="sam, or samhq (stretched images, as published).")
@click.option("--prompt", default="box", show_default=True, help="box or point, taken from the true masks.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N images.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read, and list them.")
@click.option("--spectral", is_flag=True, help="Instead: how far each method moves the token graph's spectrum.")
@click.option("--output", type=click.Path(path_type=Path), help="Results folder. Default: evaluations/<dataset>-...")
@click.option("--force", is_flag=True, help="Replace results that were made with other settings.")
@click.option(
    "--csv",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write one line for each image and model.",
)
@merge_options
@json_option
def evaluate(
    folder: Path | None,
    dataset: str,
    root: Path | None,
    limit: int | None,
    spectral: bool,
    csv: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare masks with true ones: mIoU, boundary IoU, Dice, and their differences to the unpatched model.

    FOLDER is an output folder, whose files are run; without it the options describe a model in PyTorch. An interrupted
    run continues where it stopped.

    \b
    Example:
      structsam-export evaluate --dataset coift --method structsam --rate 0.5
    """
    from structsam_export.evaluate import command
    from structsam_export.evaluate import spectral as spectra

    own = {name: given.pop(name) for name in ("runner", "protocol", "prompt", "skip_bad", "output", "force")}
    if folder is not None:
        refuse(given, f"{folder} already says what is evaluated.")
    config = None if folder else config_of(given)
    if csv is not None and not csv.absolute().parent.is_dir():
        raise UsageError(f"Folder {csv.absolute().parent} does not exist. Make it, or pass another --csv.")
    if spectral:
        refuse((*own, "csv"), "--spectral draws no masks.")
        report, table = command.spectral(config, folder, dataset, root=root, limit=limit), spectra.table
    else:
        report, table = command.run(config, folder, dataset, root=root, limit=limit, **own), command.table
    if csv is not None:
        command.write_csv(report, csv)
    if as_json:
        print_json(report)
        return
    print_table(*table(report))


@cli.command()
@json_option
def methods(as_json: bool) -> None:
    """List the methods: variants, largest rates, MACs saved on ViT-B at rate 0.5, what they protect, sources.

    \b
    Example:
      structsam-export methods
    """
    from structsam_export.catalogue import COLUMNS, catalogue, table_rows

    rows = catalogue()
    if as_json:
        print_json(rows)
        return
    print_table(COLUMNS, table_rows(rows))


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Tell what is installed, what each backend can do here, and what to install.

    \b
    Example:
      structsam-export doctor
    """
    from structsam_export.doctor import diagnose

    facts = diagnose()
    if as_json:
        print_json(facts)
        return
    click.echo(f"Python {facts['python']} on {facts['platform']}")
    click.echo(f"GPU: {facts['gpu'] or 'none (engines can be built with tensorrt-rtx, but not run)'}")
    print_table(("package", "version"), list(facts["versions"].items()))
    rows = [(name, row["can"], row["to_do"] or "") for name, row in facts["backends"].items()]
    print_table(("backend", "can", "to do"), rows)


def refuse(names: Iterable[str], why: str) -> None:
    """Refuse options that were written on the command line although they mean nothing there.

    Raises:
        UsageError: with the first of them.
    """
    ctx = click.get_current_context()
    flags = {p.name: p.opts[0] for p in ctx.command.params}
    usual = click.core.ParameterSource.DEFAULT
    if given := [flags[name] for name in names if ctx.get_parameter_source(name) is not usual]:
        raise UsageError(f"{why} Leave {given[0]} away.")


def config_of(given: dict[str, Any]) -> Any:
    """The configuration of a command's options.

    Raises:
        UsageError: a --param that is no NAME=VALUE.
    """
    from structsam_export.config import ExportConfig

    pairs = [text.partition("=") for text in given.pop("params")]
    if wrong := ["".join(pair) for pair in pairs if not (pair[0] and pair[1])]:
        raise UsageError(
            f"Cannot read parameter '{wrong[0]}'. Pass --param NAME=VALUE, for example --param margin=0.5."
        )
    return ExportConfig(**given, params=tuple((name, value) for name, _, value in pairs))


def show_report(report: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the verdict, or the report as JSON.

    Raises:
        ParityError: the report did not pass; its files stay, marked as failed.
    """
    if as_json:
        print_json(report)
    else:
        macs = report["macs"]
        click.echo(f"{folder}: {'passed' if report['passed'] else 'FAILED'}")
        click.echo(
            f"  encoder {macs['dense'] / 1e9:.2f} GMACs -> {macs['graph'] / 1e9:.2f} "
            f"({100 * (macs['graph'] / macs['dense'] - 1):+.1f} %)"
        )
        for name, row in report["parity"].items():
            agreement = row["decision_agreement"]
            decided = "" if agreement is None else f", decisions {agreement:.4%}"
            click.echo(
                f"  {name} against {row['against']}: max_rel {row['max_rel']:.1e}, mask IoU mean "
                f"{row['mask_iou_mean']:.6f} min {row['mask_iou_min']:.6f}{decided}"
            )
            if ties := row.get("ties"):
                click.echo(
                    f"    with equal decisions; {ties['differ']} of {ties['of']} decisions differ, {ties['ties']} of "
                    f"them ties. Left alone: mask IoU mean {row['free_running']['mask_iou_mean']:.6f}, decisions "
                    f"{row['free_running']['decision_agreement']:.4%}"
                )
        click.echo(f"  masks against the unpatched model: IoU {report['quality']['miou_vs_dense']:.4f}")
        click.echo(f"  report: {folder / 'report.html'}")
    if not report["passed"]:
        failed = ", ".join(name for name, row in report["parity"].items() if not row["passed"])
        raise ParityError(f"Parity failed at: {failed}. The files are kept and marked; see {folder / 'report.html'}.")


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be written, before minutes of work.

    Raises:
        UsageError: a format we do not draw, or no such folder.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"Cannot draw {path}. Pass --plot FILE.png, .svg or .pdf.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"Folder {path.absolute().parent} does not exist. Make it, or pass another --plot.")


def print_json(data: Any) -> None:
    """JSON on stdout."""
    import json

    click.echo(json.dumps(data, indent=2))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout, as wide as its content."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=box.SIMPLE, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)


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
        error.show()
        sys.exit(error.exit_code)
    except StructSAMError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
