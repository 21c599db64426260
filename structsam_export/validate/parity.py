"""Judges every stage against the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.artifact import Manifest
from structsam_export.console import stage
from structsam_export.validate.decisions import agreement, first_image, ties
from structsam_export.validate.metrics import embedding_errors, iou, mask_ious
from structsam_export.validate.runners import engine_runner, run
from structsam_export.validate.stages import Stage, Validation, draw_stage, feeds_of, onnx_stage

if TYPE_CHECKING:
    from structsam_export.roles import Plan

# A stage passes if all gates of its precision hold: error relative to the largest value of the embedding, masks, and
# decisions apart from ties. FP16's are what published TensorRT engines of SAM reach; BF16 has three bits less.
GATES = {
    "fp32": {"max_rel": 1e-4, "mask_iou_mean": 0.9999, "mask_iou_min": 0.0, "decision_agreement": 1.0},
    "fp16": {"max_rel": 0.02, "mask_iou_mean": 0.998, "mask_iou_min": 0.99, "decision_agreement": 0.995},
    "bf16": {"max_rel": 0.2, "mask_iou_mean": 0.99, "mask_iou_min": 0.9, "decision_agreement": 0.96},
}
# By how much PyTorch's input moves when ties are looked for: what rounding does to a decision's input.
NOISE = {"fp32": 3e-5, "fp16": 1e-3, "bf16": 1e-2}
# What a report also says of stages that were not given PyTorch's decisions.
FREE_RUNNING = ("max_rel", "mask_iou_mean", "mask_iou_min", "decision_agreement")


def check_onnx(found: Validation, folder: Path, manifest: Manifest, size: int) -> None:
    """Run the traced and the rewritten ONNX files on ONNX Runtime, and judge them."""
    found.quality = quality(found)
    config = manifest.config
    feeds = feeds_of(found.photos, found.prepared, config.batch, config.prompt_aware)
    eager = found.stages["eager"]
    with stage_files(folder, manifest) as files:
        for name, paths in files.items():
            found.stages[name] = onnx_stage(found, name, paths, feeds, size, given=False)
        if any(not same_decisions(eager, found.stages[name], found.plans) for name in files):
            found.given["eager"] = eager
            for name, paths in files.items():
                decided = not same_decisions(eager, found.stages[name], found.plans)
                alone = found.stages[name]
                found.given[name] = onnx_stage(found, name, paths, feeds, size, given=True) if decided else alone
    for before, name in zip(("eager", *files), files):
        compare(found, name, before, config.precision if name == "onnx" else "fp32")


@contextmanager
def stage_files(folder: Path, manifest: Manifest) -> Iterator[dict[str, tuple[Path, Path]]]:
    """Encoder and decoder of every ONNX stage, in order.

    ONNX Runtime's CPU provider computes FP16 in FP32 and knows no BF16: such an encoder is judged by a temporary one
    that rounds whatever it stores.
    """
    verified = {n: manifest.verified(folder, n) for n in manifest.files if n.endswith(".onnx")}
    raw = verified["encoder.raw.onnx"], verified["decoder.raw.onnx"]
    encoder, decoder = verified["encoder.onnx"], verified["decoder.onnx"]
    if manifest.config.precision == "fp32":
        yield {"onnx_raw": raw, "onnx": (encoder, decoder)}
        return
    from structsam_export.precision import emulated

    rounding = folder / ".encoder.emulated.onnx"
    try:
        emulated(encoder, rounding)
        yield {"onnx_raw": raw, "onnx_fp32": (verified["encoder.fp32.onnx"], decoder), "onnx": (rounding, decoder)}
    finally:
        rounding.unlink(missing_ok=True)


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
        feeds = feeds_of(found.photos, found.prepared, manifest.config.batch, manifest.config.prompt_aware)
        outputs, seconds = run(engine_runner(paths["encoder"], backend, "engine"), feeds, say)
        with engine_runner(paths["decoder"], backend, "engine decoder") as active:
            found.stages["engine"] = draw_stage(found, "engine", outputs, seconds, active, size)
    compare(found, "engine", "onnx", manifest.config.precision)
    found.executed = tuple(e["file"] for e in here.values())
    for engine in here.values():
        engine["executed"] = True


def compare(found: Validation, name: str, before: str, precision: str = "fp32") -> None:
    """Judge one stage against another; every number the verdict rests on goes into `parity`.

    Stages that decided differently are judged by how they compute with equal decisions, and by whether the
    differences are ties; what they do left alone is under `free_running`.
    """
    free = found.stages[before], found.stages[name]
    row: dict[str, Any] = {"against": before, **numbers(*free)}
    decides = found.names and all(set(found.names) & set(s.outputs[0]) for s in free)
    row["decision_agreement"] = None
    if decides:
        row |= agreements(*free, found.plans)
    if decides and name in found.given and not same_decisions(*free, found.plans):
        judged = found.given[before], found.given[name]
        row["free_running"] = {key: row[key] for key in FREE_RUNNING}
        row |= {**numbers(*judged), **agreements(*judged, found.plans)}
        first, second = ([first_image(o) for o in s.outputs] for s in judged)
        row["ties"] = ties(found.decisions, first, second, NOISE[precision])
    untied = row["ties"]["differ"] - row["ties"]["ties"] if "ties" in row else 0
    gates, agreed = GATES[precision], row["decision_agreement"]
    row["passed"] = (
        row["max_rel"] <= gates["max_rel"]
        and row["mask_iou_mean"] >= gates["mask_iou_mean"]
        and row["mask_iou_min"] >= gates["mask_iou_min"]
        and (agreed is None or agreed >= gates["decision_agreement"] or ("ties" in row and untied == 0))
    )
    row["gates"] = gates
    found.parity[name] = row


def numbers(first: Stage, second: Stage) -> dict[str, Any]:
    """Errors of embeddings and overlap of masks."""
    batch = second.embeddings[0].shape[0]
    reference = [np.repeat(e, batch, 0) if e.shape[0] == 1 else e for e in first.embeddings]
    ious = mask_ious(first.masks, second.masks)
    return {
        **embedding_errors(reference, second.embeddings),
        "mask_iou_mean": float(np.mean(ious)),
        "mask_iou_min": min(ious),
        "masks": len(ious),
    }


def agreements(first: Stage, second: Stage, plans: Mapping[str, type[Plan]]) -> dict[str, Any]:
    """Share of equal decisions, overall and by name."""
    by_name = agreement([first_image(o) for o in first.outputs], [first_image(o) for o in second.outputs], plans)
    return {"decision_agreement": float(np.mean(list(by_name.values()))), "decision_agreement_by_name": by_name}


def same_decisions(first: Stage, second: Stage, plans: Mapping[str, type[Plan]]) -> bool:
    """Whether two stages decided alike everywhere."""
    pairs = [first_image(o) for o in first.outputs], [first_image(o) for o in second.outputs]
    return all(share == 1 for share in agreement(*pairs, plans).values())


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
