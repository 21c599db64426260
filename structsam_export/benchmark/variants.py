"""What is benchmarked: folders and ONNX files of encoders, each on one or more runners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from structsam_export.backends import backend, bench_runners
from structsam_export.errors import ArtifactError, UsageError, unknown_name
from structsam_export.folder import ExportFolder
from structsam_export.graphs import load

EAGER = "eager"
EAGER_TITLE = "the PyTorch model of an export folder, patched as exported (--method none: stock)"


def runners() -> dict[str, str]:
    """Every runner -> what it runs."""
    return {EAGER: EAGER_TITLE} | {name: how.title for name, (_, how) in bench_runners().items()}


@dataclass(frozen=True)
class Variant:
    """One row of the table: `file` is an ONNX file or engine; with runner "eager", its export folder."""

    name: str
    runner: str
    file: Path
    onnx: Path

    def spec(self) -> dict[str, Any]:
        """Plain values for the process that runs it."""
        return {k: str(v) for k, v in asdict(self).items()}


def variants_of(targets: Sequence[str], chosen: Sequence[str]) -> list[Variant]:
    """Every target on every runner, in the order given.

    Args:
        targets: output folders or ONNX files of encoders, each as PATH or NAME=PATH.
        chosen: names of `runners()`; one that some targets have nothing for is left out there, if they have others.

    Raises:
        UsageError: an unknown runner, or two targets of one name.
        ArtifactError: a target that is no folder of ours and no ONNX file, or has nothing for a runner.
    """
    for runner in chosen:
        if runner not in runners():
            raise unknown_name("runner", runner, runners())
    check_runtimes(chosen)
    found = [v for text in targets for v in _of_target(*named(text), list(dict.fromkeys(chosen)))]
    names = [v.name for v in found]
    if doubled := next((n for n in names if names.count(n) > 1), None):
        raise UsageError(f"Two targets are called '{doubled}'. Name them: NAME=PATH.")
    return found


def named(text: str) -> tuple[str, Path]:
    """A target PATH or NAME=PATH as name and path; without NAME, the folder's name, and that of a file in it."""
    name, equals, path = text.partition("=")
    if equals and name and not Path(text).exists():
        return name, Path(path)
    target = Path(text)
    inside = target.suffix == ".onnx"
    return ("/".join(target.absolute().parts[-2:]) if inside else target.absolute().name), target


def check_runtimes(chosen: Sequence[str]) -> None:
    """Refuse runners this machine cannot run.

    Raises:
        MissingRuntimeError: a device is missing, or the runtime is not installed.
    """
    known = bench_runners()
    for runner in chosen:
        if runner != EAGER:
            name, how = known[runner]
            backend(name).check_options(how.options)


def _of_target(name: str, target: Path, chosen: Sequence[str]) -> Iterator[Variant]:
    """One target on every runner."""
    known = bench_runners()
    for runner in chosen:
        label = name if len(chosen) == 1 else f"{name} {runner}"
        if target.is_dir():
            onnx, file = _in_folder(target, runner)
        elif target.is_file() and runner != EAGER and known[runner][1].onnx:
            load(target)  # nothing that runtimes would die of
            onnx = file = target
        elif target.is_file():
            raise ArtifactError(f"{target}: runner '{runner}' needs an export folder. Use --runner ort-cpu.")
        else:
            raise ArtifactError(f"{target} does not exist. Pass an export folder or an ONNX file.")
        yield Variant(label, runner, file, onnx)


def _in_folder(path: Path, runner: str) -> tuple[Path, Path]:
    """(ONNX encoder, what the runner runs) of an export folder, both with the hash its manifest gives."""
    folder = ExportFolder.read(path)
    if runner == EAGER:
        return folder.fp32_encoder(), path
    name, how = bench_runners()[runner]
    onnx, pair = folder.onnx("encoder"), folder.engines_here(name)
    if how.onnx and (pair is None or how.options.precision not in (None, pair.encoder.sm)):
        # FP16 has no kernels on a CPU: its FP32 reference runs there.
        onnx = folder.fp32_encoder() if how.fp32 else onnx
        return onnx, onnx
    if pair is None:
        raise ArtifactError(f"{path} has no {name} engine for this machine. Run: structsam-export build {path}")
    return folder.fp32_encoder() if how.fp32 else onnx, folder.verified(pair.encoder.file)
