"""The backends: runtimes that turn our ONNX files into something that runs. One file each, one line here.

Which engine of a folder this machine runs is decided in one place, `choose_engines`; which backend builds, in
`choose_backend`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from structsam_export.errors import unknown_name

if TYPE_CHECKING:
    from structsam_export.backends.base import Backend, BenchRunner, Engine

# In order of preference where several can run what a folder holds.
BACKENDS = {
    "tensorrt": "structsam_export.backends.tensorrt:TensorRT",
    "tensorrt-rtx": "structsam_export.backends.tensorrt_rtx:TensorRTRTX",
    "openvino": "structsam_export.backends.openvino:OpenVINO",
    "onnxruntime": "structsam_export.backends.onnxruntime:OnnxRuntime",
}


@dataclass(frozen=True)
class EnginePair:
    """Encoder and decoder of one backend, one version and one target; models without masks have no decoder."""

    encoder: Engine
    decoder: Engine | None

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines there are, the encoder first."""
        return (self.encoder,) if self.decoder is None else (self.encoder, self.decoder)

    @property
    def backend(self) -> Backend:
        """The backend that built them."""
        return backend(self.encoder.backend)


def backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    module, symbol = BACKENDS[name].split(":")
    made: Backend = getattr(import_module(module), symbol)()
    return made


def choose_backend(requested: str) -> Backend | None:
    """The backend to build with; None for "none", or for "auto" where nothing can build.

    "auto" takes TensorRT where it and a GPU are here, else TensorRT-RTX, which needs none. OpenVINO is for CPUs and is
    asked for by name.

    Raises:
        UsageError: unknown name.
        MissingRuntimeError: the backend asked for is not installed, or needs a GPU that is not here.
    """
    if requested == "none":
        return None
    if requested != "auto":
        found = backend(requested)
        found.check_build()
        return found
    full, rtx = backend("tensorrt"), backend("tensorrt-rtx")
    if full.installed() and full.runs_here():
        return full
    return rtx if rtx.installed() else None


def engines_of(engines: Iterable[Engine], *, alone: bool = False) -> list[EnginePair]:
    """Pairs of one backend, version and target, in the order of their encoders; engines without a partner are left
    out, but for encoders that are meant to stand `alone`."""
    found = list(engines)
    decoders = {(e.backend, e.version, e.sm): e for e in found if e.part == "decoder"}
    keys = {(e.backend, e.version, e.sm): e for e in found if e.part == "encoder"}
    if alone:
        return [EnginePair(encoder, None) for encoder in keys.values()]
    return [EnginePair(encoder, decoders[key]) for key, encoder in keys.items() if key in decoders]


def choose_engines(engines: Sequence[Engine], asked: str | None = None, *, alone: bool = False) -> EnginePair | None:
    """The pair that this machine runs, by preference of `BACKENDS` and then the one built last; None if there is none.

    Args:
        engines: of one export folder.
        asked: name of a backend; only its engines are looked at.
        alone: the export is of a model without a decoder.
    """
    pairs = [pair for pair in engines_of(engines, alone=alone) if asked in (None, pair.encoder.backend)]
    for name in BACKENDS:
        own = [pair for pair in pairs if pair.encoder.backend == name]
        fitting = [pair for pair in own if pair.backend.fits(pair.encoder)]
        if fitting:
            return fitting[-1]
    return None


def bench_runners() -> dict[str, tuple[str, BenchRunner]]:
    """Every way to time a file: runner -> (its backend, what it is)."""
    return {name: (key, how) for key in BACKENDS for name, how in backend(key).RUNNERS.items()}
