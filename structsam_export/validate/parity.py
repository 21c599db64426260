"""Runs every stage on the photos and judges it against the one before."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.artifact import Manifest
from structsam_export.benchmark import interleaved, percentiles
from structsam_export.console import stage
from structsam_export.patch import patched
from structsam_export.runtime.images import Prepared, prepare
from structsam_export.trace import encoder_with_plans, plan_output_names
from structsam_export.validate import masks as stage_masks
from structsam_export.validate.metrics import decision_agreement, embedding_errors, iou, mask_ious
from structsam_export.validate.photos import Photo
from structsam_export.validate.runners import eager_runner, engine_runner, ort_runner, run, with_plan_outputs

if TYPE_CHECKING:
    from structsam_export.methods import Method
    from structsam_export.models import LoadedModel

# FP32 gates: a stage passes if all hold. Relative to the largest value of the embedding.
GATES = {"max_rel": 1e-4, "mask_iou_mean": 0.9999, "decision_agreement": 1.0}
# Above this, two encoders side by side would cost too much memory; latency then comes from the validation runs.
INTERLEAVE_LIMIT = 1_000_000_000
ROUNDS = 7


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
    """Everything the report shows: the numbers, and the stages they came from."""

    photos: Sequence[Photo]
    prepared: Sequence[Prepared]
    stages: dict[str, Stage]
    layers: tuple[int, ...]
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    executed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(row["passed"] for row in self.parity.values())


def eager_reference(loaded: LoadedModel, method: Method, layers: Sequence[int], photos: Sequence[Photo]) -> Validation:
    """Run the unpatched and the patched model in PyTorch; everything after is compared with the latter."""
    sam, size = loaded.sam, loaded.geometry.image_size
    prepared = [prepare(photo.image, size, loaded.spec.preprocessing) for photo in photos]
    decode = stage_masks.torch_decoder(sam)
    encoder, stages = sam.image_encoder, {}
    with stage(f"eager PyTorch, unpatched and patched, {len(photos)} photos") as say:
        dense = run(eager_runner(encoder, ["image_embeddings"], "dense"), feeds_of(prepared, 1), say)
        with patched(encoder, method, layers):
            merging = tuple(i for i, block in enumerate(encoder.blocks) if hasattr(block, "_structsam"))
            names = ["image_embeddings", *plan_output_names(merging)]
            eager = run(eager_runner(encoder_with_plans(encoder), names, "eager"), feeds_of(prepared, 1), say)
    for name, (outputs, seconds) in (("dense", dense), ("eager", eager)):
        embeddings = [o["image_embeddings"] for o in outputs]
        drawn = stage_masks.stage_masks(decode, embeddings, photos, prepared, size)
        stages[name] = Stage(name, outputs, drawn, seconds)
    found = Validation(photos, prepared, stages, merging)
    found.quality = quality(found)
    return found


def feeds_of(prepared: Sequence[Prepared], batch: int) -> list[dict[str, Any]]:
    """Encoder inputs; a batch repeats the photo, and every entry must then come out the same."""
    return [{"image": np.repeat(ready.tensor, batch, 0)} for ready in prepared]


def check_onnx(found: Validation, folder: Path, manifest: Manifest, size: int) -> None:
    """Run the traced and the rewritten ONNX files on ONNX Runtime and add them to `found`."""
    files = {"onnx_raw": ("encoder.raw.onnx", "decoder.raw.onnx"), "onnx": ("encoder.onnx", "decoder.onnx")}
    for name, (encoder, decoder) in files.items():
        paths = [manifest.verified(folder, file) for file in (encoder, decoder)]
        with stage(f"ONNX Runtime, {encoder}") as say:
            with with_plan_outputs(paths[0], plan_output_names(found.layers)) as readable:
                outputs, seconds = run(ort_runner(readable, name), feeds_of(found.prepared, manifest.config.batch), say)
            with ort_runner(paths[1], f"{name} decoder") as active:
                add_stage(found, name, outputs, seconds, active, size)
    compare(found, "onnx_raw", "eager")
    compare(found, "onnx", "onnx_raw")


def check_engines(found: Validation, folder: Path, manifest: Manifest, size: int) -> None:
    """Run the engines built for this machine's GPU, if there are any; otherwise they stay "built, not executed"."""
    from structsam_export.build import current_sm, has_gpu

    if not has_gpu():
        return
    here = {e["part"]: e for e in manifest.engines if e["sm"] == current_sm()}
    if set(here) != {"encoder", "decoder"}:
        return
    paths = {part: manifest.verified(folder, e["file"]) for part, e in here.items()}
    backend = here["encoder"]["backend"]
    with stage(f"{backend} engines on this GPU") as say:
        feeds = feeds_of(found.prepared, manifest.config.batch)
        outputs, seconds = run(engine_runner(paths["encoder"], backend, "engine"), feeds, say)
        with engine_runner(paths["decoder"], backend, "engine decoder") as active:
            add_stage(found, "engine", outputs, seconds, active, size)
    compare(found, "engine", "onnx")
    found.executed = tuple(e["file"] for e in here.values())
    for engine in here.values():
        engine["executed"] = True


def add_stage(
    found: Validation, name: str, outputs: list[dict[str, Any]], seconds: list[float], decoder: Any, size: int
) -> None:
    """Draw a stage's masks with its own decoder and keep the results."""
    embeddings = [o["image_embeddings"] for o in outputs]
    decode = stage_masks.runner_decoder(decoder)
    drawn = stage_masks.stage_masks(decode, embeddings, found.photos, found.prepared, size)
    found.stages[name] = Stage(name, outputs, drawn, seconds)


def compare(found: Validation, name: str, before: str) -> None:
    """Judge one stage against another; every number the verdict rests on goes into `parity`."""
    a, b = found.stages[before], found.stages[name]
    batch = b.embeddings[0].shape[0]
    first = [np.repeat(e, batch, 0) if e.shape[0] == 1 else e for e in a.embeddings]
    row: dict[str, Any] = {"against": before, **embedding_errors(first, b.embeddings)}
    ious = mask_ious(a.masks, b.masks)
    row |= {"mask_iou_mean": float(np.mean(ious)), "mask_iou_min": min(ious), "masks": len(ious)}
    row["decision_agreement"] = None
    if found.layers and all(f"plan.{found.layers[0]}.pos" in s.outputs[0] for s in (a, b)):
        per_window = [{k: _first_image(v, o, batch) for k, v in o.items()} for o in b.outputs]
        by_layer = decision_agreement(
            [{k: _first_image(v, o, o["image_embeddings"].shape[0]) for k, v in o.items()} for o in a.outputs],
            per_window,
            found.layers,
        )
        row["decision_agreement"] = float(np.mean(list(by_layer.values())))
        row["decision_agreement_by_layer"] = {str(k): v for k, v in by_layer.items()}
    row["passed"] = (
        row["max_rel"] <= GATES["max_rel"]
        and row["mask_iou_mean"] >= GATES["mask_iou_mean"]
        and row["decision_agreement"] in (None, GATES["decision_agreement"])
    )
    found.parity[name] = row


def _first_image(value: np.ndarray, outputs: dict[str, Any], batch: int) -> np.ndarray:
    """The rows of the first image of a batch; windows of one image stand together."""
    return value[: value.shape[0] // batch]


def quality(found: Validation) -> dict[str, Any]:
    """Patched against unpatched masks, and both against true masks where the photos have them."""
    dense, eager = found.stages["dense"], found.stages["eager"]
    row: dict[str, Any] = {"miou_vs_dense": float(np.mean(mask_ious(dense.masks, eager.masks)))}
    row["embedding_cosine_vs_dense"] = embedding_errors(dense.embeddings, eager.embeddings)["cosine"]
    truths = [(i, k, p.truth) for i, photo in enumerate(found.photos) for k, p in enumerate(photo.prompts)]
    truths = [(i, k, t) for i, k, t in truths if t is not None]
    for name, made in (("dense", dense), ("patched", eager)):
        scores = [iou(made.masks[i][k], t) for i, k, t in truths if t is not None]
        row[f"miou_true_{name}"] = float(np.mean(scores)) if scores else None
    row["true_masks"] = len(truths)
    return row


def measure_latency(
    found: Validation, loaded: LoadedModel | None, method: Method, layers: Sequence[int], folder: Path, batch: int
) -> None:
    """Encoder latency in milliseconds of one batch on this machine's CPU.

    Small models are timed in interleaved rounds; where that would not fit in memory, the validation runs' own times
    are given (`interleaved` says which).
    """
    weights = (folder / "encoder.onnx").stat().st_size
    if loaded is None or weights > INTERLEAVE_LIMIT or (folder / "encoder.onnx.data").exists():
        found.latency = {name: percentiles(s.seconds) | {"interleaved": False} for name, s in found.stages.items()}
        return
    import torch

    feed = feeds_of(found.prepared[:1], batch)[0]
    image = torch.as_tensor(feed["image"])
    encoder = loaded.sam.image_encoder

    def eager_dense() -> None:
        with torch.no_grad():
            encoder(image)

    def eager_patched() -> None:
        with torch.no_grad(), patched(encoder, method, layers):
            encoder(image)

    with ExitStack() as active, stage("encoder latency, interleaved"):
        raw, final = (
            active.enter_context(ort_runner(folder / file, file)) for file in ("encoder.raw.onnx", "encoder.onnx")
        )
        calls = {
            "dense": eager_dense,
            "eager": eager_patched,
            "onnx_raw": lambda: raw.infer(feed),
            "onnx": lambda: final.infer(feed),
        }
        timed = interleaved(calls, ROUNDS if weights < INTERLEAVE_LIMIT // 10 else 2)
    found.latency = {name: row | {"interleaved": True} for name, row in timed.items()}
