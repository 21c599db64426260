"""The stages of a run on the photos: what each computes and decides, and the masks it draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.console import stage
from structsam_export.patch import decisions_of, reduced_blocks
from structsam_export.runtime.images import Prepared, prepare
from structsam_export.trace import decision_names, encoder_with_decisions
from structsam_export.validate import masks as stage_masks
from structsam_export.validate.decisions import GIVEN, readable
from structsam_export.validate.photos import Photo, prompt_box
from structsam_export.validate.runners import eager_runner, ort_runner, run

if TYPE_CHECKING:
    from structsam_export.models import LoadedModel
    from structsam_export.roles import Plan
    from structsam_export.schedule import Schedule


@dataclass
class Stage:
    """What one stage computed: outputs per photo, masks per photo (P, h, w), seconds per photo."""

    name: str
    outputs: list[dict[str, Any]]
    masks: list[np.ndarray]
    seconds: list[float]

    @property
    def embeddings(self) -> list[np.ndarray]:
        return [o["image_embeddings"] for o in self.outputs]


@dataclass
class Validation:
    """Everything the report shows: the numbers, and the stages they came from.

    `plans` says of what kind each decision is; `decisions` are PyTorch's, by photo and name. `given` holds the ONNX
    stages run with those decisions fed in; only filled if left alone they decided differently.
    """

    photos: Sequence[Photo]
    prepared: Sequence[Prepared]
    stages: dict[str, Stage]
    layers: tuple[int, ...]
    names: list[str] = field(default_factory=list)
    plans: dict[str, type[Plan]] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    given: dict[str, Stage] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    executed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(row["passed"] for row in self.parity.values())


def eager_reference(loaded: LoadedModel, schedule: Schedule, photos: Sequence[Photo]) -> Validation:
    """Run the unpatched and the patched model in PyTorch; everything after is compared with the latter."""
    sam, size = loaded.sam, loaded.geometry.image_size
    prepared = [prepare(photo.image, size, loaded.spec.preprocessing) for photo in photos]
    decode = stage_masks.torch_decoder(sam)
    encoder, stages, history = sam.image_encoder, {}, []  # type: ignore[var-annotated]
    feeds = feeds_of(photos, prepared, 1, schedule.prompt_aware)
    with stage(f"eager PyTorch, unpatched and patched, {len(photos)} photos") as say:
        images = [{"image": feed["image"]} for feed in feeds]
        dense = run(eager_runner(encoder, ["image_embeddings"], "dense"), images, say)
        with schedule.patched(encoder):
            layers, names, plans = reduced_blocks(encoder), decision_names(encoder), decisions_of(encoder)
            module = encoder_with_decisions(encoder, history)
            runner = eager_runner(module, ["image_embeddings", *names], "eager", boxes=schedule.prompt_aware)
            eager = run(runner, feeds, say)
    for name, (outputs, seconds) in (("dense", dense), ("eager", eager)):
        embeddings = [o["image_embeddings"] for o in outputs]
        drawn = stage_masks.stage_masks(decode, embeddings, photos, prepared, size)
        stages[name] = Stage(name, outputs, drawn, seconds)
    return Validation(photos, prepared, stages, layers, names, plans, history)


def feeds_of(
    photos: Sequence[Photo], prepared: Sequence[Prepared], batch: int, prompt_aware: bool
) -> list[dict[str, Any]]:
    """Encoder inputs; a batch repeats the photo, and every entry must then come out the same."""
    feeds = []
    for photo, ready in zip(photos, prepared):
        feed = {"image": np.repeat(ready.tensor, batch, 0)}
        if prompt_aware:
            feed["boxes"] = np.repeat(prompt_box(photo.prompts[0], ready.scale), batch, 0)
        feeds.append(feed)
    return feeds


def onnx_stage(
    found: Validation,
    name: str,
    files: tuple[Path, Path],
    feeds: Sequence[dict[str, Any]],
    size: int,
    *,
    given: bool,
) -> Stage:
    """Run an encoder and its decoder on ONNX Runtime; `given`: with PyTorch's decisions fed in."""
    encoder, decoder = files
    taken = found.stages["eager"].outputs
    how = " with PyTorch's decisions" if given else ""
    with stage(f"ONNX Runtime, {name}{how}") as say, readable(encoder, found.plans, given=given) as copy:
        if given:
            feeds = [feed | decisions_for(copy, eager, feed) for feed, eager in zip(feeds, taken)]
        outputs, seconds = run(ort_runner(copy, name), feeds, say)
        outputs = [{key.removesuffix(GIVEN): value for key, value in out.items()} for out in outputs]
        # What rewriting folded into constants, or no longer needs, is nobody's decision.
        outputs = [repeated(eager, out) | out for eager, out in zip(taken, outputs)]
        with ort_runner(decoder, f"{name} decoder") as active:
            return draw_stage(found, name, outputs, seconds, active, size)


def decisions_for(copy: Path, eager: dict[str, Any], feed: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's decisions of one photo as inputs of a graph, repeated for its batch."""
    import onnx

    inputs = [i.name for i in onnx.load(str(copy), load_external_data=False).graph.input]
    batch = feed["image"].shape[0]
    return {name: np.concatenate([eager[name]] * batch) for name in inputs if name not in feed}


def repeated(eager: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's outputs of one image, repeated for the batch of another stage's outputs."""
    batch = outputs["image_embeddings"].shape[0]
    return {name: np.concatenate([value] * batch) for name, value in eager.items()}


def draw_stage(
    found: Validation, name: str, outputs: list[dict[str, Any]], seconds: list[float], decoder: Any, size: int
) -> Stage:
    """A stage with the masks its own decoder draws."""
    embeddings = [o["image_embeddings"] for o in outputs]
    decode = stage_masks.runner_decoder(decoder)
    drawn = stage_masks.stage_masks(decode, embeddings, found.photos, found.prepared, size)
    return Stage(name, outputs, drawn, seconds)
