"""Stage 4: ONNX -> engine, through polygraphy: TensorRT where it is installed, TensorRT-RTX without any GPU.

Networks are strongly typed: the precision of every tensor is the graph's own. An engine's file name carries part,
backend, version and SM, as it runs on nothing else: `encoder.tensorrt-rtx-1.7.1-sm86.engine`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from structsam_export.artifact import atomic, sha256_of
from structsam_export.console import progress
from structsam_export.errors import ArtifactError, MissingRuntimeError, UsageError
from structsam_export.models.download import cache_dir

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
# Built where no GPU says otherwise: Ampere and Ada, the edge GPUs of desktops and laptops.
PORTABLE_TARGETS = ("sm86", "sm89")
# Prompts P and points K of the decoder: smallest, typical, largest.
PROMPTS, POINTS = (1, 4, 64), (1, 2, 16)


@dataclass(frozen=True)
class Engine:
    """A built engine; `options` are the builder's, `executed` stays False until it has run on a GPU."""

    file: str
    part: str
    backend: str
    version: str
    sm: str
    sha256: str
    bytes: int
    options: dict[str, Any]
    executed: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def installed(backend: str) -> bool:
    """Whether the backend's Python module can be found."""
    return importlib.util.find_spec(MODULES[backend]) is not None


def has_gpu() -> bool:
    """Whether a CUDA device can be used."""
    import torch

    return bool(torch.cuda.is_available())


def choose_backend(requested: str) -> str | None:
    """The backend to build with; None for "none", or for "auto" where nothing is installed.

    Raises:
        MissingRuntimeError: the backend asked for is not installed, or needs a GPU that is not here.
    """
    if requested == "none":
        return None
    if requested == "auto":
        if installed("tensorrt") and has_gpu():
            return "tensorrt"
        return "tensorrt-rtx" if installed("tensorrt-rtx") else None
    if not installed(requested):
        raise MissingRuntimeError(
            f"Backend '{requested}' is not installed. Run: pip install 'structsam-export[{EXTRAS[requested]}]' "
            "(structsam-export doctor shows what is here)."
        )
    if requested == "tensorrt" and not has_gpu():
        raise MissingRuntimeError(
            "TensorRT builds engines on the GPU they run on, and no CUDA device is here. "
            "Use --backend tensorrt-rtx, which builds for a chosen SM without a GPU."
        )
    return requested


def resolve_targets(spec: str, backend: str) -> tuple[str, ...]:
    """SMs to build for: "auto", "current" or a list such as sm86,sm89.

    Raises:
        UsageError: not an SM the backend knows.
        MissingRuntimeError: "current" without a GPU.
    """
    if spec == "auto":
        return ("current",) if has_gpu() else PORTABLE_TARGETS
    targets = tuple(part.strip().lower() for part in spec.split(","))
    if "current" in targets and not has_gpu():
        raise MissingRuntimeError("--target current needs a GPU, and none is here. Name the SM, for example sm86.")
    if backend == "tensorrt" and targets != ("current",):
        raise UsageError("TensorRT builds for the GPU of this machine only. Pass --target current.")
    if backend == "tensorrt-rtx":
        known = known_targets()
        wrong = [t for t in targets if t not in known]
        if wrong:
            raise UsageError(f"Unknown target '{wrong[0]}' for TensorRT-RTX. Choose from: {', '.join(sorted(known))}.")
    return targets


def known_targets() -> set[str]:
    """SMs the installed TensorRT-RTX can build for."""
    import tensorrt_rtx

    names = (n.lower() for n in dir(tensorrt_rtx.ComputeCapability))
    return {n for n in names if n.startswith("sm")} | {"current"}


def build_engine(onnx: Path, folder: Path, part: str, backend: str, target: str, profile: dict[str, Any]) -> Engine:
    """Build one engine into `folder`.

    Args:
        onnx: graph to build; all types are taken from it.
        folder: where the engine goes; the file appears only when it is complete.
        part: "encoder" or "decoder", the first word of the file name.
        backend: "tensorrt" or "tensorrt-rtx".
        target: SM such as "sm86", or "current".
        profile: {input: (min, opt, max) shapes} for inputs with dynamic shapes.

    Raises:
        ArtifactError: the backend refuses the graph.
    """
    use_backend(backend)
    from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    trt = __import__(MODULES[backend])
    version = ".".join(trt.__version__.split(".")[:3])
    sm = current_sm() if target == "current" else target
    shapes = Profile()
    for name, (low, typical, high) in profile.items():
        shapes.add(name, low, typical, high)
    with build_progress(trt, f"{part} for {sm}") as monitor:
        config, options = builder_config(backend, target, sm, [shapes] if profile else None, monitor)
        extra = {"save_timing_cache": str(timing_cache(sm))} if backend == "tensorrt" else {}
        try:
            network = network_from_onnx_path(str(onnx), strongly_typed=True)
            with quiet_stdout():
                engine = engine_bytes_from_network(network, config=config, **extra)
        except PolygraphyException as error:  # what is wrong, TensorRT's own log has printed
            raise ArtifactError(f"{backend} {version} cannot build {onnx} for {sm}: its messages are above.") from error
    name = f"{part}.{backend}-{version}-{sm}.engine"
    with atomic(folder / name) as partial:
        partial.write_bytes(engine)
    path = folder / name
    return Engine(name, part, backend, version, sm, sha256_of(path), path.stat().st_size, options)


def builder_config(backend: str, target: str, sm: str, profiles: Any, monitor: Any) -> tuple[Any, dict[str, Any]]:
    """Polygraphy's builder configuration and the options to note in the manifest."""
    options: dict[str, Any] = {"strongly_typed": True}
    if backend == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        chosen = {"use_gpu": True} if target == "current" else {"compute_capabilities": [(int(sm[2:-1]), int(sm[-1]))]}
        return CreateConfigRTX(profiles=profiles, progress_monitor=monitor, **chosen), {**options, "target": target}
    from polygraphy.backend.trt import CreateConfig

    cache = timing_cache(sm)
    config = CreateConfig(
        profiles=profiles, progress_monitor=monitor, load_timing_cache=str(cache) if cache.exists() else None
    )
    return config, {**options, "timing_cache": cache.name}


def decoder_profile(image_size: int, patch_size: int) -> dict[str, Any]:
    """Shapes of the decoder's dynamic inputs."""
    side = 4 * (image_size // patch_size)
    return {
        "point_coords": tuple((p, k, 2) for p, k in zip(PROMPTS, POINTS)),
        "point_labels": tuple((p, k) for p, k in zip(PROMPTS, POINTS)),
        "mask_input": tuple((p, 1, side, side) for p in PROMPTS),
    }


def use_backend(backend: str) -> None:
    """Point polygraphy at TensorRT or TensorRT-RTX; it decides once, when its backend is first imported.

    Raises:
        UsageError: this process already used the other one.
    """
    from polygraphy import config

    wanted = backend == "tensorrt-rtx"
    if "polygraphy.backend.trt" in sys.modules and wanted != config.USE_TENSORRT_RTX:
        raise UsageError(f"One process can use one TensorRT only. Start a new one for '{backend}'.")
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if wanted else "0"
    config.USE_TENSORRT_RTX = wanted
    hush_polygraphy()


def hush_polygraphy() -> None:
    """Polygraphy's notes would break the progress bar, and its thresholds are not our gates; real errors are raised."""
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = {"": G_LOGGER.CRITICAL}


def current_sm() -> str:
    """SM of the GPU in use, e.g. "sm90"."""
    import torch

    return "sm{}{}".format(*torch.cuda.get_device_capability())


def timing_cache(sm: str) -> Path:
    """TensorRT's tactic timings of earlier builds, shared by all exports of this user on this GPU.

    TensorRT-RTX has none: it picks kernels on the device, at first use.
    """
    root = cache_dir()
    root.mkdir(parents=True, exist_ok=True)
    return root / f"timing-{sm}.cache"


@contextmanager
def build_progress(trt: Any, title: str) -> Iterator[Any]:
    """A progress bar that follows the builder's phases; yields the monitor to hand to it."""
    with progress() as bar:
        tasks: dict[str, Any] = {}

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                name = f"{title}: {phase_name}" if parent_phase is None else f"  {phase_name}"
                tasks[phase_name] = bar.add_task(name, total=num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                bar.update(tasks[phase_name], completed=step)
                return True

            def phase_finish(self, phase_name: str) -> None:
                bar.remove_task(tasks.pop(phase_name))

        yield Monitor()


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what the builder's native code prints to stdout to stderr, so that `--json` stays clean."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
