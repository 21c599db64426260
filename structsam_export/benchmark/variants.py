"""What is benchmarked: folders and ONNX files of encoders, each on one or more runners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError, MissingRuntimeError, UsageError, unknown_name

# Runner -> what it runs.
RUNNERS = {
    "eager": "the PyTorch model of an output folder, patched as exported (--method none: stock)",
    "ort-cpu": "ONNX in FP32 on ONNX Runtime's CPU provider",
    "ort-cuda": "ONNX on ONNX Runtime's CUDA provider, image copied in and embedding out each time",
    "tensorrt": "engine on this GPU, copies in and out each time",
    "tensorrt-rtx": "engine on this GPU, copies in and out each time",
    "tensorrt-rtx-graph": "engine on this GPU replayed as one CUDA graph, copies in and out each time",
}


@dataclass(frozen=True)
class Variant:
    """One row of the table: `file` is an ONNX file or engine; with runner "eager", its output folder."""

    name: str
    runner: str
    file: Path
    onnx: Path

    def spec(self) -> dict[str, Any]:
        """Plain values for the process that runs it."""
        return {k: str(v) for k, v in asdict(self).items()}


def variants_of(targets: Sequence[str], runners: Sequence[str]) -> list[Variant]:
    """Every target on every runner, in the order given.

    Args:
        targets: output folders or ONNX files of encoders, each as PATH or NAME=PATH.
        runners: names of `RUNNERS`.

    Raises:
        UsageError: an unknown runner, or two targets of one name.
        ArtifactError: a target that is no folder of ours and no ONNX file, or has nothing for a runner.
    """
    for runner in runners:
        if runner not in RUNNERS:
            raise unknown_name("runner", runner, RUNNERS)
    check_runtimes(runners)
    runners = list(dict.fromkeys(runners))
    found = [v for text in targets for v in _of_target(*named(text), runners)]
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


def check_runtimes(runners: Sequence[str]) -> None:
    """Refuse runners this machine cannot run.

    Raises:
        MissingRuntimeError: no GPU, or the runtime is not installed.
    """
    from structsam_export.build import choose_backend, has_gpu

    for runner in runners:
        if runner == "ort-cuda":
            import onnxruntime

            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise MissingRuntimeError(
                    "This onnxruntime has no CUDA provider. Run: pip install onnxruntime-gpu (in place of onnxruntime)."
                )
        if runner.startswith("tensorrt"):
            choose_backend(runner.removesuffix("-graph"))
            if not has_gpu():
                raise MissingRuntimeError(f"Runner '{runner}' needs a GPU, and no CUDA device is here. Use ort-cpu.")


def _of_target(name: str, target: Path, runners: Sequence[str]) -> Iterator[Variant]:
    """One target on every runner."""
    for runner in runners:
        label = name if len(runners) == 1 else f"{name} {runner}"
        if target.is_dir():
            onnx, file = _in_folder(target, runner)
        elif target.is_file() and runner.startswith("ort"):
            onnx = file = target
        elif target.is_file():
            raise ArtifactError(f"{target}: runner '{runner}' needs an output folder. Use --runner ort-cpu.")
        else:
            raise ArtifactError(f"{target} does not exist. Pass an output folder or an ONNX file.")
        yield Variant(label, runner, file, onnx)


def _in_folder(folder: Path, runner: str) -> tuple[Path, Path]:
    """(encoder.onnx, what the runner runs) of an output folder, both with the hash its manifest gives."""
    from structsam_export.artifact import Manifest
    from structsam_export.build import current_sm

    manifest = Manifest.read(folder)
    # FP16 has no kernels on a CPU: its FP32 reference runs there.
    reference = "encoder.fp32.onnx" if runner in ("eager", "ort-cpu") else ""
    onnx = manifest.verified(folder, reference if reference in manifest.files else "encoder.onnx")
    if runner == "eager":
        return onnx, folder
    if runner.startswith("ort"):
        return onnx, onnx
    backend = runner.removesuffix("-graph")
    engines = [e["file"] for e in manifest.engines if e["backend"] == backend and e["part"] == "encoder"]
    fitting = [e for e in engines if e.endswith(f"-{current_sm()}.engine")]
    if not fitting:
        raise ArtifactError(f"{folder} has no {backend} engine for this GPU. Run: structsam-export build {folder}")
    return onnx, manifest.verified(folder, fitting[0])
