"""The model in PyTorch: what every other stage is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.backends.base import Runner
from structsam_export.patch import prompted
from structsam_export.runtime.features import features_of

if TYPE_CHECKING:
    from torch import nn

    from structsam_export.backends.base import Array
    from structsam_export.folder import ExportFolder
    from structsam_export.models import LoadedModel
    from structsam_export.runtime.decoding import Decoder
    from structsam_export.runtime.features import Features
    from structsam_export.schedule import Schedule


class EagerRunner(Runner):
    """A PyTorch module on the CPU behind the interface of a runner.

    Args:
        module: a module or function that takes the inputs in the order of `inputs`, and returns one tensor or a tuple.
        outputs: names of what it returns.
        name: of the runner.
        inputs: names of what it takes.
    """

    def __init__(
        self, module: nn.Module | Callable[..., Any], outputs: Sequence[str], name: str, inputs: Sequence[str]
    ) -> None:
        super().__init__(name)
        self.module, self.outputs = module, outputs
        self.inputs = dict.fromkeys(inputs, ())

    def open(self) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to free."""

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        tensors = [torch.as_tensor(feed[name]) for name in self.inputs]
        with torch.no_grad():
            began = time.perf_counter()
            found = self.module(*tensors)
            self.seconds = time.perf_counter() - began
        values = found if isinstance(found, tuple) else (found,)
        return {name: value.numpy() for name, value in zip(self.outputs, values)}


def decoder_of(loaded: LoadedModel) -> Decoder:
    """The model's own prompt encoder and mask decoder, called as its own predictor calls them."""
    from structsam_export.hosts import host_of

    made: Decoder = host_of(loaded.sam.image_encoder).decoder(loaded.sam)
    return made


@contextmanager
def encoder_call(
    loaded: LoadedModel, schedule: Schedule | None, boxes: Array | None = None
) -> Iterator[Callable[[Array], Features]]:
    """The encoder as a function, patched by `schedule` (None: as it is) for the length of the `with` block.

    Args:
        loaded, schedule: the model; several schedules may share its weights, one after the other.
        boxes: float32 (B, 4), the prompt of a prompt-aware encoder.

    Yields:
        image (B, 3, S, S) float32 -> features float32. Patching is no part of a call's time.
    """
    import torch

    from structsam_export.hosts import host_of

    encoder = loaded.sam.image_encoder
    names = host_of(encoder).ENCODER_OUTPUTS
    prompt = None if boxes is None else torch.as_tensor(boxes)

    def call(image: Array) -> Features:
        with torch.no_grad(), prompted(encoder, prompt):
            found = encoder(torch.as_tensor(image))
        return features_of({n: np.asarray(t) for n, t in zip(names, found if isinstance(found, tuple) else (found,))})

    with schedule.patched(encoder) if schedule is not None else nullcontext():
        yield call


@contextmanager
def folder_runners(folder: ExportFolder, checkpoint: str | None = None) -> Iterator[tuple[Runner, Runner]]:
    """What an export folder was made from, as runners with the inputs and outputs of its ONNX files.

    Args:
        folder: the folder.
        checkpoint: where the weights are now; None: where they were.

    Yields:
        encoder (patched) and decoder.

    Raises:
        ArtifactError: the checkpoint is not the one that was exported.
        CheckpointError: it is not there, or cannot be read.
    """
    from structsam_export.hosts import host_of
    from structsam_export.job import Job

    job = Job.of_folder(folder, checkpoint)
    encoder = job.loaded.sam.image_encoder
    host = host_of(encoder)

    def encode(image: Any, boxes: Any = None) -> Any:
        with prompted(encoder, boxes):
            return encoder(image)

    inputs = ("image", "boxes") if job.config.prompt_aware else ("image",)
    decoder = host.decoder_for_export(job.loaded.sam)
    with job.schedule.patched(encoder):
        yield (
            EagerRunner(encode, host.ENCODER_OUTPUTS, "encoder", inputs),
            EagerRunner(decoder.module, decoder.outputs, "decoder", tuple(decoder.inputs)),
        )


def timed_encoder(
    loaded: LoadedModel, schedule: Schedule | None, image: Array, boxes: Array | None = None
) -> Callable[[], float]:
    """A function that runs the encoder once and returns the seconds of that alone; it patches for each call anew.

    One model cannot be patched in two ways at once, so that a comparison of several has to patch in turns.
    """

    def call() -> float:
        with encoder_call(loaded, schedule, boxes) as encode:
            began = time.perf_counter()
            encode(image)
            return time.perf_counter() - began

    return call


def own_copy(loaded: LoadedModel) -> Any:
    """A copy of a model that can be patched by itself."""
    import copy
    from dataclasses import replace

    return replace(loaded, sam=copy.deepcopy(loaded.sam))
