"""What a backend is: a runtime that turns our ONNX files into something that runs."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import MissingRuntimeError, UsageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Shape = tuple[int, ...]
# Input -> smallest, typical and largest shape; only inputs with dynamic axes are listed.
Profile = Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class Engine:
    """A file that a backend built; `executed` stays False until it has run on the machine it was built for.

    Args:
        file: its name in the export folder.
        part: "encoder" or "decoder".
        backend: name of the backend.
        version: the runtime's version.
        sm: what it was built for: an SM such as "sm86", or a precision on a CPU such as "bf16".
        sha256, bytes: of the file.
        options: the builder's.
    """

    file: str
    part: str
    backend: str
    version: str
    sm: str
    sha256: str
    bytes: int
    options: dict[str, Any] = field(default_factory=dict)
    executed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Engine:
        """Inverse of `to_dict`; keys of other versions are left out.

        Raises:
            TypeError: a field is missing.
        """
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


@dataclass(frozen=True)
class RunOptions:
    """How a file is run; a backend reads what it has a use for.

    Args:
        provider: ONNX Runtime's: "cpu", "cuda" or "tensorrt".
        precision: OpenVINO's: "f32", "bf16" or "f16"; None: what the file was written for, else the CPU's fastest.
        outputs: tensors inside the graph to output as well, where the backend `TELLS_DECISIONS`.
        threads: of the CPU; None: all.
        cuda_graph: the whole engine is captured once and replayed (TensorRT-RTX).
        profile: folder for ONNX Runtime's profile; None: no profile.
    """

    provider: str = "cpu"
    precision: str | None = None
    outputs: tuple[str, ...] = ()
    threads: int | None = None
    cuda_graph: bool = False
    profile: Path | None = None


DEFAULT = RunOptions()


@dataclass(frozen=True)
class BenchRunner:
    """One way to time a file: what `bench --runner NAME` runs.

    Args:
        title: what it runs, for help texts.
        options: go to `Backend.runner`.
        onnx: it runs ONNX files, not engines of an export folder.
        fp32: of an export folder it runs the FP32 encoder, because the device has no kernels for lower precisions or
            chooses the precision itself.
    """

    title: str
    options: RunOptions = DEFAULT
    onnx: bool = False
    fp32: bool = False


class Runner(ABC):
    """A loaded graph or engine; use it in a `with` block.

    `inputs` maps input names to shapes, with 0 for dynamic sizes; `seconds` is how long the last `infer` took.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = 0.0
        self.inputs: dict[str, Shape] = {}

    @abstractmethod
    def open(self) -> None:
        """Load, and fill in `inputs`."""

    @abstractmethod
    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; arrays of their own, which later calls leave alone."""

    @abstractmethod
    def close(self) -> None:
        """Free what `open` loaded."""

    def profile(self) -> list[dict[str, Any]]:
        """Times of the operators of all calls so far, as ONNX Runtime lists them; empty if the runtime tells none."""
        return []

    def __enter__(self) -> Runner:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backend(ABC):
    """A runtime. Everything the product knows about one is in its class; `BACKENDS` has one line for each."""

    NAME: ClassVar[str]
    MODULE: ClassVar[str]  # what is imported
    INSTALL: ClassVar[str]  # the command that installs it
    BUILDS: ClassVar[bool] = True  # whether it makes files of its own from ONNX
    FROM_FP32: ClassVar[bool] = False  # whether it builds from the FP32 graph and chooses the precision itself
    TELLS_DECISIONS: ClassVar[bool] = False  # whether `runner(outputs=...)` can read tensors inside an engine
    FORM: ClassVar[str] = "portable"  # of the FP32 graph that its runtime is given (`rewrite.FORMS`)
    BY_PROFILE: ClassVar[bool] = False  # whether engines take no other dynamic shapes than their profile's
    CONCURRENT: ClassVar[bool] = False  # whether several threads may call `infer` of one runner at once
    RUNNERS: ClassVar[dict[str, BenchRunner]] = {}

    def installed(self) -> bool:
        """Whether the runtime's Python module can be found; it is not imported."""
        return importlib.util.find_spec(self.MODULE) is not None

    @abstractmethod
    def version(self) -> str:
        """Version of the installed runtime."""

    def check_installed(self) -> None:
        """Refuse a backend that is not here.

        Raises:
            MissingRuntimeError: with the command that installs it.
        """
        if not self.installed():
            raise MissingRuntimeError(
                f"Backend '{self.NAME}' is not installed. Run: {self.INSTALL} (structsam-export doctor shows what is "
                "here)."
            )

    def check_build(self) -> None:
        """Refuse to build where that cannot work.

        Raises:
            MissingRuntimeError: not installed, or a device is missing.
        """
        self.check_installed()

    @abstractmethod
    def check_run(self) -> None:
        """Refuse to run where that cannot work.

        Raises:
            MissingRuntimeError: not installed, or a device is missing.
        """

    def runs_here(self) -> bool:
        """Whether this machine can run what the backend builds."""
        try:
            self.check_run()
        except MissingRuntimeError:
            return False
        return True

    def check_options(self, options: RunOptions) -> None:
        """Refuse options that cannot work on this machine.

        Raises:
            MissingRuntimeError: a device or a library is missing.
        """
        self.check_run()

    @abstractmethod
    def targets(self, text: str) -> tuple[str, ...]:
        """What to build for: "auto", or a list separated by commas.

        Raises:
            UsageError: a target the backend does not know.
            MissingRuntimeError: a target that needs a device that is not here.
        """

    @abstractmethod
    def build(self, onnx: Path, folder: Path, part: str, target: str, profile: Profile) -> Engine:
        """Build one file into `folder`; it appears only once it is complete.

        Args:
            onnx: the graph, verified.
            folder: where the file goes.
            part: "encoder" or "decoder", the first word of the file's name.
            target: one of `targets`.
            profile: shapes of inputs with dynamic axes.

        Raises:
            ArtifactError: the backend refuses the graph.
        """

    @abstractmethod
    def fits(self, engine: Engine) -> bool:
        """Whether an engine of this backend was built for this machine and the installed version."""

    @abstractmethod
    def runner(self, path: Path, label: str, options: RunOptions = DEFAULT) -> Runner:
        """A file of this backend (or, where it reads ONNX itself, an ONNX file) as a runner.

        Args:
            path: as `ExportFolder.verified` returned it: engines are code.
            label: name of the runner.
            options: how to run it.

        Raises:
            MissingRuntimeError: `check_options` refuses them.
        """

    def reads_onnx(self) -> bool:
        """Whether `runner` also takes ONNX files."""
        return any(how.onnx for how in self.RUNNERS.values())

    def decided_runner(self, onnx: Path, engine: Engine) -> Runner:
        """An ONNX file in the precision of an engine, for graphs that take decisions as inputs."""
        raise NotImplementedError(f"{self.NAME} runs no ONNX files")

    def precision(self, engine: Engine, exported: str) -> str:
        """The precision an engine computes in: the graph's own, unless the backend chooses another one."""
        return exported

    def load_plugins(self, packed: Path) -> None:
        """Load an archive of `plugin_library`, so that graphs with our operators are built with its plugins.

        Raises:
            UsageError: the backend has no plugins.
            ArtifactError: it refuses the library.
        """
        raise UsageError(f"--plugin-library is for TensorRT and TensorRT-RTX. Leave it away for --backend {self.NAME}.")

    @abstractmethod
    def can(self) -> str:
        """What the backend can do on this machine, in a few words."""


def parts_of(text: str, known: Sequence[str], backend: str) -> tuple[str, ...]:
    """The parts of a list of targets.

    Raises:
        UsageError: one that is not known.
    """
    targets = tuple(part.strip().lower() for part in text.split(","))
    if wrong := [t for t in targets if t not in known]:
        raise UsageError(f"Unknown target '{wrong[0]}' for {backend}. Choose from: {', '.join(known)}.")
    return targets
