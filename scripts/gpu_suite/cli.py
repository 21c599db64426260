"""The command: options, wheels, then the suite."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import tempfile
from pathlib import Path

from gpu_suite import Options, wheels
from gpu_suite.steps import plan
from gpu_suite.suite import Suite

BACKENDS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


def arguments(about: str) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_suite_results"), help="folder of the results")
    parser.add_argument("--models", default="demo,vit_b", help="default: %(default)s")
    parser.add_argument("--methods", default="none,structsam", help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=0.5, help="of every method; default: %(default)s")
    parser.add_argument("--random", action="store_true", help="random weights for every model but demo")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="MODEL=PATH", help="may be repeated")
    parser.add_argument("--photos", type=int, default=3, help="photos for parity; default: %(default)s")
    parser.add_argument("--runs", type=int, default=100, help="timed runs, at least 50; default: %(default)s")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all steps; default: %(default)s")
    parser.add_argument("--work", type=Path, help="keep exports and engines here; default: a temporary folder")
    parser.add_argument("--plugin-library", default="", metavar="PATH", help="for engines with plugins")
    parser.add_argument("--plugin-kernels", default="", metavar="DIR", help="of the library (scripts/plugin_kernels)")
    parser.add_argument("--wheels", type=Path, help="install the wheels of this folder first")
    parser.add_argument("--split", action="store_true", help="only cut large wheels of --wheels into parts")
    parser.add_argument("--dry-run", action="store_true", help="all that needs no GPU, small")
    given = parser.parse_args()
    if given.runs < 50:
        parser.error("--runs must be at least 50: a p99 of fewer means nothing")
    if given.split and not given.wheels:
        parser.error("--split needs --wheels")
    if wrong := [text for text in given.checkpoint if "=" not in text]:
        parser.error(f"--checkpoint {wrong[0]}: pass MODEL=PATH")
    return given


def options_of(given: argparse.Namespace, work: str) -> Options:
    """The options that steps see; a dry run is small: the demo model, one merging method, one photo."""
    models, methods = (tuple(dict.fromkeys(text.split(","))) for text in (given.models, given.methods))
    if given.dry_run:
        merging = [m for m in methods if m != "none"][:1]
        models, methods = ("demo",), (*(m for m in methods if m == "none"), *merging)
    checkpoints = dict(text.split("=", 1) for text in given.checkpoint)
    photos = 1 if given.dry_run else given.photos
    numbers = (photos, given.runs, given.dry_run)
    plugins = (given.plugin_library, given.plugin_kernels)
    return Options(work, models, methods, given.rate, given.random, checkpoints, *numbers, *plugins)


def main(about: str) -> None:
    """Run the command; `about` heads its help."""
    given = arguments(about)
    if given.split:
        for part in wheels.split(given.wheels):
            print(part)
        return
    with tempfile.TemporaryDirectory(prefix="gpu_suite-") as temporary:
        work = (given.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        suite = Suite(options_of(given, str(work)), given.output, given.budget)
        given.output.mkdir(parents=True, exist_ok=True)
        if given.wheels:
            try:
                suite.record("wheels", "ok", 0.0, wheels.install(given.wheels, work / "wheels"), {})
            except (OSError, ValueError, RuntimeError) as error:
                suite.record("wheels", f"failed: {error}", 0.0, None, {})
            importlib.invalidate_caches()
        backends = [name for name, module in BACKENDS.items() if importlib.util.find_spec(module)]
        suite.run(plan(suite.options, backends))
    print(given.output / "gpu_suite.md")
    if suite.lacks_gpu():
        raise SystemExit("No CUDA device here, so nothing was measured. Pass --dry-run to do what needs none.")
