"""What is evaluated: a model in PyTorch, or the files of an output folder on ONNX Runtime or a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from structsam_export.backends import BACKENDS, EnginePair, backend
from structsam_export.eager import decoder_of, encoder_call
from structsam_export.errors import ArtifactError, MissingRuntimeError, unknown_name
from structsam_export.files import scratch
from structsam_export.folder import PARTS, onnx_name
from structsam_export.runtime.decoding import decode_prompts, runner_decoder
from structsam_export.runtime.model import ExportedModel

if TYPE_CHECKING:
    import numpy as np

    from structsam_export.backends.base import Runner
    from structsam_export.evaluate.protocols import Case
    from structsam_export.folder import ExportFolder
    from structsam_export.job import Job
    from structsam_export.models import LoadedModel
    from structsam_export.runtime.features import Features
    from structsam_export.schedule import Schedule

RUNNERS = ("eager", "ort", "engine")
DENSE = "dense"  # the unpatched model, which differences are taken to
# Options that change files or speed, but no mask.
IRRELEVANT = (
    *(
        "schema",
        "checkpoint",
        "preprocessing",
        "precision",
        "form",
        "plugins",
        "backend",
        "target",
        "opset",
        "batch",
        "images",
    ),
)


class Predictor(Protocol):
    """A model with its prompts decoded.

    `identity` holds plain values that determine its masks; `size` is the side of the encoder's square in pixels and
    `preprocessing` how it is filled (`runtime.images.prepare`).
    """

    name: str
    identity: dict[str, Any]
    size: int
    preprocessing: str

    def logits(self, case: Case) -> np.ndarray:
        """Low-resolution logits of every prompt, float32 (K, h, w)."""


@dataclass
class Eager:
    """A PyTorch model on the CPU; `schedule` None: unpatched. Several may share the weights of one model."""

    name: str
    identity: dict[str, Any]
    loaded: LoadedModel
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        self.size, self.preprocessing = self.loaded.geometry.image_size, self.loaded.spec.preprocessing

    def logits(self, case: Case) -> np.ndarray:
        """Low-resolution logits of every prompt, float32 (K, h, w)."""

        def embed(image: np.ndarray, box: np.ndarray | None) -> Features:
            # Patched for this call only: the next model may need the same weights unpatched.
            with encoder_call(self.loaded, self.schedule, box) as encode:
                return encode(image)

        prompt_aware = bool(self.schedule and self.schedule.prompt_aware)
        return decoded(case, embed, decoder_of(self.loaded), prompt_aware)


@dataclass
class Exported:
    """An exported encoder and decoder."""

    name: str
    identity: dict[str, Any]
    model: ExportedModel

    def __post_init__(self) -> None:
        self.size, self.preprocessing = self.model.size, self.model.preprocessing

    def logits(self, case: Case) -> np.ndarray:
        """Low-resolution logits of every prompt, float32 (K, h, w)."""
        return decoded(case, self.model.encode, runner_decoder(self.model.decoder), self.model.prompt_aware)


def decoded(case: Case, embed: Any, decode: Any, prompt_aware: bool) -> np.ndarray:
    """Logits (K, h, w) of all prompts of a case."""
    return decode_prompts(case.image, case.coords, case.labels, case.boxes, embed, decode, prompt_aware=prompt_aware)


def identity_of(job: Job) -> dict[str, Any]:
    """What determines the masks of a job's patched model."""
    config = {k: v for k, v in job.config.to_dict().items() if k not in IRRELEVANT}
    return {"runner": "eager", "weights": job.loaded.weights, "preprocessing": job.loaded.spec.preprocessing, **config}


def dense_predictor(loaded: LoadedModel) -> Predictor:
    """The unpatched model."""
    weights = {"weights": loaded.weights, "preprocessing": loaded.spec.preprocessing}
    return Eager(DENSE, {"runner": "eager", "method": "none", **weights}, loaded)


def eager_predictors(job: Job) -> list[Predictor]:
    """The unpatched model and, unless the method is "none", the patched one; they share their weights."""
    dense = dense_predictor(job.loaded)
    if job.config.method == "none":
        return [dense]
    fp32 = replace(job, config=replace(job.config, precision="fp32"))  # whatever was exported
    return [dense, Eager(fp32.label, identity_of(job), job.loaded, job.schedule)]


@contextmanager
def exported_predictor(job: Job, folder: ExportFolder, runner: str) -> Iterator[Predictor]:
    """The files of an export folder, open for the length of the `with` block.

    Args:
        job: what the folder was made from.
        folder: its files.
        runner: "ort", "engine" (the one this machine runs, see `ExportFolder.engines_here`) or the name of a backend.

    Raises:
        MissingRuntimeError: no engine can run on this machine.
        ArtifactError: a file is missing or was changed, or the folder has no engine for this machine.
    """
    folder.require("decoder")
    config = folder.config
    with ExitStack() as active:
        if runner == "ort":
            names = [onnx_name(part) for part in PARTS]
            runners = [active.enter_context(r) for r in onnx_runners(folder, active)]
        else:
            pair = engines_for(folder, runner)
            names = [engine.file for engine in pair.engines]
            paths = [folder.verified(name) for name in names]
            runners = [active.enter_context(pair.backend.runner(path, path.name)) for path in paths]
        encoder, decoder = runners
        height, width = job.loaded.geometry.grid
        model = ExportedModel(
            encoder,
            decoder,
            job.loaded.geometry.image_size,
            (4 * height, 4 * width),
            job.loaded.spec.preprocessing,
            config.batch,
            config.prompt_aware,
        )
        yield Exported(f"{job.label} {runner}", {"runner": runner, "files": folder.digests(*names)}, model)


def onnx_runners(folder: ExportFolder, active: ExitStack) -> list[Runner]:
    """Encoder and decoder on ONNX Runtime, not yet open; temporary files live as long as `active`.

    ONNX Runtime's CPU provider computes FP16 in FP32 and knows no BF16: there, an encoder that rounds whatever it
    stores takes its place (`precision.fake_quantised`), the worst case of an engine.
    """
    encoder, decoder = (folder.onnx(part) for part in PARTS)
    if folder.config.precision != "fp32":
        from structsam_export.precision import fake_quantised

        rounding = active.enter_context(scratch("structsam-evaluate-")) / encoder.name
        fake_quantised(encoder, rounding)
        encoder = rounding
    return [backend("onnxruntime").runner(path, path.name) for path in (encoder, decoder)]


def engines_for(folder: ExportFolder, runner: str) -> EnginePair:
    """The engines of a folder that this machine runs.

    Raises:
        MissingRuntimeError: no backend of the folder's engines runs here.
        ArtifactError: the folder has no engines for this machine.
    """
    check_runner(runner)
    pair = folder.engines_here(None if runner == "engine" else runner)
    if pair is None:
        raise ArtifactError(f"{folder.path} has no engines for this machine. Run: structsam-export build {folder.path}")
    return pair


def check_runner(runner: str) -> None:
    """Refuse what this machine cannot run.

    Raises:
        UsageError: unknown runner.
        MissingRuntimeError: no backend that builds engines runs here.
    """
    builders = [name for name in BACKENDS if backend(name).BUILDS]
    if runner not in (*RUNNERS, *builders):
        raise unknown_name("runner", runner, (*RUNNERS, *builders))
    if runner in builders:
        backend(runner).check_run()
    if runner == "engine" and not any(backend(name).runs_here() for name in builders):
        raise MissingRuntimeError(
            "--runner engine needs a GPU or OpenVINO, and neither is here. Use --runner ort, or install OpenVINO: "
            f"{backend('openvino').INSTALL}."
        )
