"""The stages of a run on the photos: what each computes and decides, and the masks it draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.console import stage
from structsam_export.eager import EagerRunner, decoder_of
from structsam_export.hosts import host_of
from structsam_export.patch import decisions_of, reduced_blocks
from structsam_export.runtime.cropped import DataConfig, prepare_cropped
from structsam_export.runtime.decoding import runner_decoder
from structsam_export.runtime.features import EMBEDDING, NAMES, features_of, rows
from structsam_export.runtime.images import Prepared, masks_from_logits, prepare
from structsam_export.runtime.photos import Photo
from structsam_export.runtime.prompts import prompt_arrays, prompt_box
from structsam_export.trace import decision_names, encoder_with_decisions
from structsam_export.validate.decisions import GIVEN, readable

if TYPE_CHECKING:
    from structsam_export.backends.base import Array, Runner
    from structsam_export.models import LoadedModel
    from structsam_export.roles import Plan
    from structsam_export.runtime.decoding import Decoder
    from structsam_export.schedule import Schedule

Outputs = dict[str, Any]  # of one photo, by tensor name: float32 and int64 arrays


@dataclass(frozen=True)
class Inputs:
    """The photos of a run, read and prepared once.

    Args:
        photos: images with their prompts.
        prepared: the same, as an encoder takes them.
        size: side of the encoder's square in pixels.
        prompt_aware: whether the encoder also takes a box.
    """

    photos: Sequence[Photo]
    prepared: Sequence[Prepared]
    size: int
    prompt_aware: bool = False

    @classmethod
    def of(
        cls,
        photos: Sequence[Photo],
        size: int,
        preprocessing: str,
        *,
        prompt_aware: bool,
        data: dict[str, Any] | None = None,
    ) -> Inputs:
        """Prepare photos for an encoder, by its `data` (`DataConfig`, as manifests hold it) where it is of timm.

        Raises:
            ArtifactError: the data cannot be used.
        """
        if data is None:
            made = [prepare(photo.image, size, preprocessing) for photo in photos]
        else:
            made = [prepare_cropped(photo.image, size, DataConfig.from_dict(data)) for photo in photos]
        return cls(photos, made, size, prompt_aware)

    def feeds(self, batch: int) -> list[dict[str, Array]]:
        """Encoder inputs; a batch repeats the photo, and every entry must then come out the same."""
        feeds = []
        for photo, ready in zip(self.photos, self.prepared):
            feed = {"image": np.repeat(ready.tensor, batch, 0)}
            if self.prompt_aware:
                feed["boxes"] = np.repeat(prompt_box(photo.prompts[0], ready.scale), batch, 0)
            feeds.append(feed)
        return feeds

    def masks(self, decode: Decoder, outputs: Sequence[Outputs]) -> list[Array]:
        """Boolean masks (P, h, w) of every photo, from an encoder's outputs; of a batch, the first image counts."""
        drawn = []
        for output, photo, ready in zip(outputs, self.photos, self.prepared):
            coords, labels = prompt_arrays(photo.prompts, ready.scale)
            features = rows(features_of(output), slice(1))
            drawn.append(masks_from_logits(decode(features, coords, labels), ready, self.size))
        return drawn


@dataclass(frozen=True, eq=False)
class Stage:
    """What one stage computed: outputs per photo, masks per photo (P, h, w), seconds per photo.

    A model that draws no masks has none of any photo.
    """

    name: str
    outputs: list[Outputs]
    masks: list[Array]
    seconds: list[float]

    @property
    def embeddings(self) -> list[Array]:
        """Image embeddings (B, C, h, w), or pooled ones (B, C), by photo."""
        return self.tensors(EMBEDDING)

    def tensors(self, name: str) -> list[Array]:
        """One of the encoder's outputs, by photo."""
        return [output[name] for output in self.outputs]

    @property
    def features(self) -> list[str]:
        """Names of what the encoder hands to the decoder."""
        return [name for name in NAMES if name in self.outputs[0]]


@dataclass(frozen=True)
class Reference:
    """The model in PyTorch, unpatched and patched: what everything after is compared with.

    Args:
        inputs: the photos.
        dense, eager: outputs of the unpatched and of the patched model.
        layers: blocks whose attention computes less than the stock one.
        names: tensors of all decisions, in order.
        plans: decision -> class of its plan.
        decisions: per photo, decision -> how PyTorch took it.
    """

    inputs: Inputs
    dense: Stage
    eager: Stage
    layers: tuple[int, ...] = ()
    names: Sequence[str] = ()
    plans: Mapping[str, type[Plan]] = field(default_factory=dict)
    decisions: Sequence[dict[str, Any]] = ()


def eager_reference(loaded: LoadedModel, schedule: Schedule, photos: Sequence[Photo]) -> Reference:
    """Run the unpatched and the patched model in PyTorch."""
    size, prompt_aware = loaded.geometry.image_size, schedule.prompt_aware
    data = None if loaded.data is None else loaded.data.to_dict()
    inputs = Inputs.of(photos, size, loaded.spec.preprocessing, prompt_aware=prompt_aware, data=data)
    feeds, encoder = inputs.feeds(1), loaded.sam.image_encoder
    history: list[dict[str, Any]] = []
    given = host_of(encoder).ENCODER_OUTPUTS
    with stage(f"eager PyTorch, unpatched and patched, {len(photos)} photos") as say:
        dense = run(EagerRunner(encoder, given, "dense", ["image"]), feeds, say)
        with schedule.patched(encoder):
            layers, names, plans = reduced_blocks(encoder), decision_names(encoder), decisions_of(encoder)
            module = encoder_with_decisions(encoder, history)
            eager = run(EagerRunner(module, [*given, *names], "eager", list(feeds[0])), feeds, say)
    decode = decoder_of(loaded) if loaded.draws_masks else None
    stages = []
    for name, (outputs, seconds) in (("dense", dense), ("eager", eager)):
        drawn = [] if decode is None else inputs.masks(decode, outputs)
        stages.append(Stage(name, outputs, drawn, seconds))
    return Reference(inputs, stages[0], stages[1], layers, names, plans, history)


def run(
    runner: Runner, feeds: Sequence[Mapping[str, Array]], say: Callable[[str], None]
) -> tuple[list[Outputs], list[float]]:
    """Run a runner over all feeds, telling `say` how far it is; returns the outputs and the seconds each took."""
    outputs, seconds = [], []
    with runner:
        for i, feed in enumerate(feeds):
            say(f"{runner.name} {i + 1}/{len(feeds)}")
            outputs.append(runner.infer(feed))
            seconds.append(runner.seconds)
    return outputs, seconds


@dataclass(frozen=True)
class StageFiles:
    """How one stage is run.

    Args:
        name: of the stage.
        encoder: ONNX file of the encoder, from which a copy with decisions as inputs or outputs is made.
        encoder_runner: that copy -> a runner.
        decoder_runner: makes the runner of the decoder; None where there is none.
        free_runner: makes a runner that also gives the decisions, where that is another file than such a copy.
    """

    name: str
    encoder: Path
    encoder_runner: Callable[[Path], Runner]
    decoder_runner: Callable[[], Runner] | None
    free_runner: Callable[[], Runner] | None = None


def run_stage(reference: Reference, files: StageFiles, batch: int, *, given: bool) -> Stage:
    """Run an encoder and its decoder; `given`: with PyTorch's decisions fed in."""
    feeds: Sequence[Mapping[str, Array]] = reference.inputs.feeds(batch)
    how = " with PyTorch's decisions" if given else ""
    with stage(f"{files.name}{how}") as say:
        if files.free_runner is not None and not given:
            outputs, seconds = run(files.free_runner(), feeds, say)
        else:
            with readable(files.encoder, reference.plans, given=given) as copy:
                if given:
                    taken = zip(feeds, reference.eager.outputs)
                    feeds = [dict(feed) | decisions_for(copy, eager, feed) for feed, eager in taken]
                outputs, seconds = run(files.encoder_runner(copy), feeds, say)
        outputs = [{key.removesuffix(GIVEN): value for key, value in out.items()} for out in outputs]
        # Decisions that rewriting folded into constants, or left out as unused, cannot be read: they are PyTorch's.
        outputs = [repeated(eager, out) | out for eager, out in zip(reference.eager.outputs, outputs)]
    drawn: list[Array] = []
    if files.decoder_runner is not None:
        with files.decoder_runner() as decoder:
            drawn = reference.inputs.masks(runner_decoder(decoder), outputs)
    return Stage(files.name, outputs, drawn, seconds)


def decisions_for(copy: Path, eager: Outputs, feed: Mapping[str, Array]) -> Outputs:
    """PyTorch's decisions of one photo as inputs of a graph, repeated for its batch."""
    from onnx.helper import tensor_dtype_to_np_dtype

    from structsam_export.graphs import load

    kinds = {i.name: i.type.tensor_type.elem_type for i in load(copy).graph.input if i.name not in feed}
    batch = feed["image"].shape[0]
    # Fused operators decide in int32.
    types = {name: tensor_dtype_to_np_dtype(kind) if kind else eager[name].dtype for name, kind in kinds.items()}
    return {name: np.concatenate([eager[name]] * batch).astype(types[name]) for name in kinds}


def repeated(eager: Outputs, outputs: Outputs) -> Outputs:
    """PyTorch's decisions of one image, repeated for the batch of another stage's outputs."""
    batch = outputs[EMBEDDING].shape[0]
    return {name: np.concatenate([value] * batch) for name, value in eager.items() if name not in NAMES}
