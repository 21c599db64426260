"""What is evaluated: a model in PyTorch, or the files of an output folder on ONNX Runtime or a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from structsam_export.errors import ArtifactError, MissingRuntimeError, unknown_name

if TYPE_CHECKING:
    from structsam_export.artifact import Manifest
    from structsam_export.evaluate.protocols import Case
    from structsam_export.models import LoadedModel
    from structsam_export.pipeline import Job
    from structsam_export.schedule import Schedule
    from structsam_export.validate.masks import Decoder

RUNNERS = ("eager", "ort", "engine")
DENSE = "dense"  # the unpatched model, which differences are taken to
# Options that change files or speed, but no mask.
IRRELEVANT = ("schema", "checkpoint", "precision", "form", "backend", "target", "opset", "batch", "images")


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
        from structsam_export.validate.masks import torch_decoder

        encoder, prompt_aware = self.loaded.sam.image_encoder, bool(self.schedule and self.schedule.prompt_aware)
        # Patched for this image only: the next model may need the same weights unpatched.
        with self.schedule.patched(encoder) if self.schedule else nullcontext():
            return decoded(case, self.embedding, torch_decoder(self.loaded.sam), prompt_aware)

    def embedding(self, image: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Image embedding (1, C, h, w) of an image (1, 3, S, S), for a box (1, 4) if the encoder takes one."""
        import torch

        from structsam_export.patch import prompted

        encoder = self.loaded.sam.image_encoder
        boxes = None if box is None else torch.as_tensor(box)
        with torch.no_grad(), prompted(encoder, boxes):
            return np.asarray(encoder(torch.as_tensor(image)))


@dataclass
class Exported:
    """An exported encoder and decoder behind active polygraphy runners; `batch` images an encoder call."""

    name: str
    identity: dict[str, Any]
    size: int
    preprocessing: str
    encoder: Any
    decoder: Any
    batch: int = 1
    prompt_aware: bool = False

    def logits(self, case: Case) -> np.ndarray:
        """Low-resolution logits of every prompt, float32 (K, h, w)."""
        from structsam_export.validate.masks import runner_decoder

        return decoded(case, self.embedding, runner_decoder(self.decoder), self.prompt_aware)

    def embedding(self, image: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Image embedding (1, C, h, w) of an image (1, 3, S, S), for a box (1, 4) if the encoder takes one."""
        feed = {"image": image} if box is None else {"image": image, "boxes": box}
        outputs = self.encoder.infer({k: np.repeat(v, self.batch, 0) for k, v in feed.items()})
        return np.array(outputs["image_embeddings"])[:1]  # a copy: runners reuse their buffers


def decoded(case: Case, embed: Any, decode: Decoder, prompt_aware: bool) -> np.ndarray:
    """Logits (K, h, w) of all prompts: one encoder call an image, or one a prompt where the encoder knows it."""
    from structsam_export.build import PROMPTS

    K = len(case.coords)
    if prompt_aware:
        each = [(embed(case.image, case.boxes[i : i + 1]), slice(i, i + 1)) for i in range(K)]
    else:
        embedding, most = embed(case.image, None), PROMPTS[-1]  # engines take so many prompts at once
        each = [(embedding, slice(i, i + most)) for i in range(0, K, most)]
    return np.concatenate([decode(e, case.coords[part], case.labels[part]) for e, part in each])


def identity_of(job: Job) -> dict[str, Any]:
    """What determines the masks of a job's patched model."""
    config = {k: v for k, v in job.config.to_dict().items() if k not in IRRELEVANT}
    return {"runner": "eager", "weights": job.loaded.sha256, "preprocessing": job.loaded.spec.preprocessing, **config}


def label_of(job: Job) -> str:
    """A short name for the rows of tables: method, options and rate, and a precision other than FP32."""
    return job.name.removeprefix(f"{job.config.model}-").removesuffix("-fp32")


def dense_predictor(loaded: LoadedModel) -> Predictor:
    """The unpatched model."""
    weights = {"weights": loaded.sha256, "preprocessing": loaded.spec.preprocessing}
    return Eager(DENSE, {"runner": "eager", "method": "none", **weights}, loaded)


def eager_predictors(job: Job) -> list[Predictor]:
    """The unpatched model and, unless the method is "none", the patched one; they share their weights."""
    dense = dense_predictor(job.loaded)
    if job.config.method == "none":
        return [dense]
    label = label_of(replace(job, config=replace(job.config, precision="fp32")))  # whatever was exported
    return [dense, Eager(label, identity_of(job), job.loaded, job.schedule)]


@contextmanager
def exported_predictor(job: Job, folder: Path, manifest: Manifest, runner: str) -> Iterator[Predictor]:
    """The files of an output folder, active for the length of the `with` block.

    ONNX Runtime's CPU provider computes FP16 in FP32 and knows no BF16: there, an encoder that rounds whatever it
    stores takes their place (`precision.emulated`), the worst case of an engine.

    Raises:
        MissingRuntimeError: runner "engine" without a GPU.
        ArtifactError: a file is missing or was changed, or the folder has no engine for this GPU.
    """
    from structsam_export.validate.runners import engine_runner, ort_runner

    config = manifest.config
    with ExitStack() as active:
        if runner == "engine":
            backend, names = engines_here(folder, manifest)
            paths = [manifest.verified(folder, name) for name in names]
            runners = [engine_runner(path, backend, path.name) for path in paths]
        else:
            names = ["encoder.onnx", "decoder.onnx"]
            paths = [manifest.verified(folder, name) for name in names]
            if config.precision != "fp32":
                from structsam_export.precision import emulated

                rounding = Path(active.enter_context(TemporaryDirectory(prefix="structsam-evaluate-"))) / names[0]
                emulated(paths[0], rounding)
                paths[0] = rounding
            runners = [ort_runner(path, path.name) for path in paths]
        files = {n: manifest.files[n]["sha256"] for n in (*names, *(f"{n}.data" for n in names)) if n in manifest.files}
        encoder, decoder = (active.enter_context(r) for r in runners)
        yield Exported(
            f"{label_of(job)} {runner}",
            {"runner": runner, "files": files},
            job.loaded.geometry.image_size,
            job.loaded.spec.preprocessing,
            encoder,
            decoder,
            batch=config.batch,
            prompt_aware=config.prompt_aware,
        )


def engines_here(folder: Path, manifest: Manifest) -> tuple[str, list[str]]:
    """Backend and file names of the encoder's and the decoder's engine for this machine's GPU.

    Raises:
        MissingRuntimeError: no GPU, or the runtime is not installed.
        ArtifactError: the folder has no engines for it.
    """
    from structsam_export.build import choose_backend, current_sm

    check_runner("engine")
    sm = current_sm()
    for backend in dict.fromkeys(e["backend"] for e in manifest.engines):
        here = {e["part"]: e["file"] for e in manifest.engines if e["backend"] == backend and e["sm"] == sm}
        if set(here) == {"encoder", "decoder"}:
            choose_backend(backend)
            return backend, [here["encoder"], here["decoder"]]
    raise ArtifactError(f"{folder} has no engines for this GPU ({sm}). Run: structsam-export build {folder}")


def check_runner(runner: str) -> None:
    """Refuse what this machine cannot run.

    Raises:
        UsageError: unknown runner.
        MissingRuntimeError: no GPU for "engine".
    """
    from structsam_export.build import has_gpu

    if runner not in RUNNERS:
        raise unknown_name("runner", runner, RUNNERS)
    if runner == "engine" and not has_gpu():
        raise MissingRuntimeError("--runner engine needs a GPU, and no CUDA device is here. Use --runner ort.")
