"""The encoder and the decoder of an export folder, loaded: on a backend, or in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from structsam_export.backends import BACKENDS, backend
from structsam_export.backends.base import DEFAULT, Runner, RunOptions
from structsam_export.errors import ArtifactError, PromptError, UsageError, unknown_name
from structsam_export.folder import ExportFolder
from structsam_export.runtime.decoding import decoder_feed
from structsam_export.runtime.features import Features, features_of, joined, rows
from structsam_export.runtime.limits import PromptLimits
from structsam_export.runtime.prompts import POINTS, PROMPTS

if TYPE_CHECKING:
    from structsam_export.backends.base import Backend

EAGER = "eager"
CHOICES = ("auto", *BACKENDS, EAGER)
# PyTorch stays out of this room: a function (folder, checkpoint) -> context of two runners, found when it is asked for.
EAGER_RUNNERS = "structsam_export.eager:folder_runners"


class Decoded(NamedTuple):
    """`low_res` float32 (P, M, 4h, 4w), logits; `iou` float32 (P, M)."""

    low_res: np.ndarray
    iou: np.ndarray


@dataclass
class ExportedModel:
    """An encoder and a decoder in open runners.

    Args:
        encoder, decoder: the runners.
        size: side of the encoder's square in pixels.
        low_res_shape: (4h, 4w) of the decoder's logits.
        preprocessing: how it is filled (`runtime.images.prepare`).
        batch: images an encoder call takes.
        prompt_aware: whether the encoder also takes a box, so that an embedding belongs to one prompt.
        backend: what runs them.
        by_profile: whether the decoder takes only as many points as an engine's profile says.
        concurrent: whether several threads may decode at once; else they take turns.
        mask_threshold: logits above it are the object (`Sam.mask_threshold`).
        image_format: order of colours in images.
        limits: what prompts it takes; None: all that SAM does.
    """

    encoder: Runner
    decoder: Runner
    size: int
    low_res_shape: tuple[int, int]
    preprocessing: str = "sam"
    batch: int = 1
    prompt_aware: bool = False
    backend: str = "onnxruntime"
    by_profile: bool = False
    concurrent: bool = False
    mask_threshold: float = 0.0
    image_format: str = "RGB"
    limits: PromptLimits | None = None
    close: Callable[[], None] = lambda: None
    _encoding: AbstractContextManager[object] = field(default_factory=Lock, repr=False)
    _decoding: AbstractContextManager[object] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._decoding = nullcontext() if self.concurrent else Lock()

    @property
    def device(self) -> str:
        """Where the arrays that go in and come out are, whatever computes."""
        return "cpu"

    def encode(self, images: np.ndarray, boxes: np.ndarray | None = None) -> Features:
        """Features of prepared images (N, 3, S, S), for boxes (N, 4) in encoder pixels where the encoder
        takes them; N is any number, the export's batch is filled up.
        """
        feed = {"image": images} if boxes is None else {"image": images, "boxes": boxes}
        found = []
        for first in range(0, len(images), self.batch):
            part = {name: value[first : first + self.batch] for name, value in feed.items()}
            missing = self.batch - len(part["image"])
            full = {name: np.concatenate([v, v[-1:].repeat(missing, 0)]) for name, v in part.items()}
            with self._encoding:
                features = features_of(self.encoder.infer(full))
            found.append(rows(features, slice(self.batch - missing)))
        return joined(found)

    def decode(
        self,
        features: Features,
        coords: np.ndarray,
        labels: np.ndarray,
        masks: np.ndarray | None = None,
        *,
        hq_token_only: bool = False,
    ) -> Decoded:
        """All masks of P prompts on the features of one image.

        Args:
            features: float32.
            coords, labels: float32 (P, K, 2) in encoder pixels and int64 (P, K), padding points included.
            masks: logits (P, 1, 4h, 4w) float32 of an earlier call.
            hq_token_only: of a SAM-HQ, its own mask alone.

        Raises:
            PromptError: more or fewer points than an engine or the model takes, or a mask where it takes none.
        """
        if self.limits is not None:
            self.limits.check(labels, masks)
        if self.by_profile and not POINTS[0] <= coords.shape[1] <= POINTS[-1]:
            raise PromptError(
                f"Engines take {POINTS[0]} to {POINTS[-1]} points a prompt, padding point and box corners included, "
                f"not {coords.shape[1]}. Use fewer, or --backend onnxruntime."
            )
        most = PROMPTS[-1]  # engines take so many at once
        parts = [slice(i, i + most) for i in range(0, len(coords), most)]
        feeds = [
            decoder_feed(
                features, coords[p], labels[p], None if masks is None else masks[p], hq_token_only=hq_token_only
            )
            for p in parts
        ]
        each = [self._decode(feed) for feed in feeds]
        return Decoded(np.concatenate([d.low_res for d in each]), np.concatenate([d.iou for d in each]))

    def _decode(self, feed: dict[str, np.ndarray]) -> Decoded:
        with self._decoding:
            found = self.decoder.infer(feed)
        return Decoded(found["low_res_masks"], found["iou_predictions"])


def open_model(
    folder: ExportFolder, backend_name: str = "auto", options: RunOptions = DEFAULT, checkpoint: str | None = None
) -> ExportedModel:
    """Load the model of an export folder; call its `close` when done.

    Args:
        folder: its files are verified before they are loaded.
        backend_name: a name in `BACKENDS`; "eager": the patched model in PyTorch; "auto": the folder's engines for this
            machine, and ONNX Runtime where there are none.
        options: how a backend runs the files.
        checkpoint: for "eager": where the weights are now.

    Raises:
        UsageError: unknown name.
        MissingRuntimeError: the backend is not installed, or its device is not here.
        ArtifactError: a file is missing or was changed, or the folder has no engines for this machine.
    """
    if backend_name not in CHOICES:
        raise unknown_name("backend", backend_name, CHOICES)
    if checkpoint is not None and backend_name != EAGER:
        raise UsageError(f"A checkpoint is read by backend '{EAGER}' only. Leave it away, or use that backend.")
    folder.require("decoder")
    active = ExitStack()
    with active:
        if backend_name == EAGER:
            module, symbol = EAGER_RUNNERS.split(":")
            runners = getattr(import_module(module), symbol)(folder, checkpoint)
            encoder, decoder = active.enter_context(runners)
            name, by_profile, concurrent = EAGER, False, True
        else:
            chosen, paths, options = _files(folder, backend_name, options)
            opened = [active.enter_context(chosen.runner(path, path.name, options)) for path in paths]
            encoder, decoder = opened
            name, by_profile, concurrent = chosen.NAME, chosen.BY_PROFILE, chosen.CONCURRENT
        height, width = folder.geometry["grid"]
        limits = folder.manifest.model.get("prompts")
        return ExportedModel(
            encoder,
            decoder,
            size=int(folder.geometry["image_size"]),
            low_res_shape=(4 * height, 4 * width),
            preprocessing=folder.preprocessing,
            batch=folder.config.batch,
            prompt_aware=folder.config.prompt_aware,
            backend=name,
            by_profile=by_profile,
            concurrent=concurrent,
            limits=None if limits is None else PromptLimits(**limits),
            close=active.pop_all().close,
        )
    raise AssertionError("an ExitStack swallows nothing here")


def _files(folder: ExportFolder, name: str, options: RunOptions) -> tuple[Backend, list[Path], RunOptions]:
    """Backend, encoder and decoder to load, and how."""
    asked = None if name == "auto" else name
    if asked is not None:
        backend(asked).check_run()
    pair = folder.engines_here(asked)
    if pair is not None and options.precision in (None, pair.encoder.sm):
        # An engine's own precision is in its file.
        return pair.backend, [folder.verified(e.file) for e in pair.engines], options
    chosen = backend(asked or "onnxruntime")
    if not chosen.reads_onnx():
        raise ArtifactError(
            f"{folder.path} has no {name} engines for this machine. Run: structsam-export build {folder.path} "
            f"--backend {name}"
        )
    # CPUs have no kernels for graphs in lower precisions, and OpenVINO types the FP32 graph itself.
    fp32 = chosen.FROM_FP32 or options.provider == "cpu"
    encoder = folder.fp32_encoder() if fp32 else folder.onnx("encoder")
    return chosen, [encoder, folder.onnx("decoder")], options
