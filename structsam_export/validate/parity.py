"""Judges every stage against the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.backends import EnginePair, backend
from structsam_export.backends.base import RunOptions
from structsam_export.files import temporary
from structsam_export.metrics import embedding_errors, iou, mask_ious
from structsam_export.runtime.features import LOGITS
from structsam_export.validate.decisions import agreement, first_image, ties
from structsam_export.validate.stages import Reference, Stage, StageFiles, run_stage

if TYPE_CHECKING:
    from structsam_export.backends.base import Backend, Runner
    from structsam_export.folder import ExportFolder
    from structsam_export.roles import Plan

# A stage passes if all gates of its precision hold: error relative to the largest value of the embedding, masks, and
# decisions apart from ties. FP16's are what published TensorRT engines of SAM reach; BF16 has three bits less.
GATES = {
    "fp32": {"max_rel": 1e-4, "mask_iou_mean": 0.9999, "mask_iou_min": 0.0, "decision_agreement": 1.0},
    "fp16": {"max_rel": 0.02, "mask_iou_mean": 0.998, "mask_iou_min": 0.99, "decision_agreement": 0.995},
    "bf16": {"max_rel": 0.2, "mask_iou_mean": 0.99, "mask_iou_min": 0.9, "decision_agreement": 0.96},
}
MASKS = ("mask_iou_mean", "mask_iou_min")
# Of what classifies, in place of masks: photos with the same best class.
TOP1 = {"fp32": 1.0, "fp16": 0.99, "bf16": 0.95}
# By how much PyTorch's input moves when ties are looked for: what rounding does to a decision's input.
NOISE = {"fp32": 3e-5, "fp16": 1e-3, "bf16": 1e-2}


@dataclass(frozen=True)
class Comparison:
    """One stage against another, and the verdict; the fields are keys of `report.json`.

    Stages that decided differently are judged by how they compute with equal decisions, and by whether the
    differences are ties; what they do left alone is `free_running`.

    Args:
        against: the stage it is compared with.
        max_abs, mean_abs, max_rel, cosine: of the embeddings, see `metrics.embedding_errors`.
        mask_iou_mean, mask_iou_min, masks: overlap of masks, and their number; None where none are drawn.
        top1_agreement: share of photos with the same largest logit; None where there are no logits.
        decision_agreement: share of equal decisions; None where a stage tells none.
        decision_agreement_by_name: the same by decision.
        free_running: max_rel, IoUs and agreement of the stages left alone, where those differ.
        ties: see `decisions.ties`.
        passed: whether all gates hold.
        gates: the gates of the stage's precision.
    """

    against: str
    max_abs: float
    mean_abs: float
    max_rel: float
    cosine: float
    mask_iou_mean: float | None
    mask_iou_min: float | None
    masks: int | None
    decision_agreement: float | None
    passed: bool
    gates: Mapping[str, float]
    top1_agreement: float | None = None
    decision_agreement_by_name: Mapping[str, float] | None = None
    free_running: Mapping[str, Any] | None = None
    ties: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that hold something, and `decision_agreement` in any case."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v is not None or k == "decision_agreement"}


@dataclass(frozen=True)
class Validation:
    """Everything a report shows: the numbers, and the stages they came from.

    Args:
        reference: the model in PyTorch.
        stages: by name, in order, "dense" and "eager" first.
        parity: stage -> how it compares with the one before.
        quality: patched against unpatched masks, and both against true ones.
        latency: stage -> percentiles of the encoder's time.
        executed: engines that ran.
    """

    reference: Reference
    stages: Mapping[str, Stage]
    parity: Mapping[str, Comparison]
    quality: Mapping[str, Any]
    latency: Mapping[str, Any] = field(default_factory=dict)
    executed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every stage passed."""
        return all(row.passed for row in self.parity.values())


def check_stages(reference: Reference, folder: ExportFolder) -> Validation:
    """Run the traced and the rewritten ONNX files on ONNX Runtime, and the engines that this machine runs.

    Raises:
        ArtifactError: a file of the folder is missing or was changed.
    """
    batch, precision = folder.config.batch, folder.config.precision
    pair = folder.engines_here()
    with onnx_files(folder) as files:
        if pair is not None:
            files = [*files, engine_files(folder, pair, reference.names)]
        free = {"eager": reference.eager} | {f.name: run_stage(reference, f, batch, given=False) for f in files}
        given = {}
        for f in files:
            if tells(reference, free[f.name]) and not same_decisions(reference.eager, free[f.name], reference.plans):
                given[f.name] = run_stage(reference, f, batch, given=True)
    precisions = {"onnx": precision}
    if pair is not None:
        precisions["engine"] = pair.backend.precision(pair.encoder, precision)
    parity = {}
    for name, before in before_each(list(free), pair).items():
        pair_of = free[before], free[name]
        equal = (given.get(before, free[before]), given.get(name, free[name])) if {before, name} & set(given) else None
        parity[name] = compare(reference, before, pair_of, equal, precision=precisions.get(name, "fp32"))
    executed = tuple(engine.file for engine in pair.engines) if pair is not None else ()
    stages = {"dense": reference.dense, **free}
    return Validation(reference, stages, parity, quality(reference), executed=executed)


def before_each(names: Sequence[str], pair: EnginePair | None) -> dict[str, str]:
    """What each stage is compared with: the one before it.

    An engine of a backend that types its own graph comes from the FP32 graph, so that is what it is compared with.
    """
    chain = dict(zip(names[1:], names))
    if pair is not None and pair.backend.FROM_FP32:
        chain["engine"] = "onnx_fp32" if "onnx_fp32" in names else "onnx"
    return chain


@contextmanager
def onnx_files(folder: ExportFolder) -> Iterator[list[StageFiles]]:
    """Encoder and decoder of every ONNX stage on ONNX Runtime, in order.

    Its CPU provider computes FP16 in FP32 and knows no BF16: such an encoder is judged by a temporary one that rounds
    whatever it stores.
    """
    draws = "decoder" in folder.parts
    decoder = folder.onnx("decoder") if draws else None
    raw = ort_files("onnx_raw", folder.raw("encoder"), folder.raw("decoder") if draws else None)
    if folder.config.precision == "fp32":
        yield [raw, ort_files("onnx", folder.onnx("encoder"), decoder)]
        return
    from structsam_export.precision import fake_quantised

    encoder = folder.onnx("encoder")
    with temporary(encoder, ".onnx") as rounding:
        fake_quantised(encoder, rounding)
        fp32 = ort_files("onnx_fp32", folder.fp32_encoder(), decoder)
        yield [raw, fp32, ort_files("onnx", rounding, decoder)]


def ort_files(name: str, encoder: Path, decoder: Path | None) -> StageFiles:
    """A stage that ONNX Runtime's CPU provider runs."""
    ort = backend("onnxruntime")

    def load(copy: Path) -> Runner:
        return ort.runner(copy, name)

    return StageFiles(name, encoder, load, decoder_runner(ort, decoder, f"{name} decoder"))


def decoder_runner(runtime: Backend, decoder: Path | None, name: str) -> Callable[[], Runner] | None:
    """What makes the runner of a decoder, where there is one."""
    return None if decoder is None else lambda: runtime.runner(decoder, name)


def engine_files(folder: ExportFolder, pair: EnginePair, names: Sequence[str]) -> StageFiles:
    """The engines of this machine as a stage."""
    encoder = folder.verified(pair.encoder.file)
    decoder = folder.verified(pair.decoder.file) if pair.decoder is not None else None
    runtime = pair.backend
    source = folder.fp32_encoder() if runtime.FROM_FP32 else folder.onnx("encoder")
    return StageFiles(
        "engine",
        source,
        lambda copy: runtime.decided_runner(copy, pair.encoder),
        decoder_runner(runtime, decoder, "engine decoder"),
        lambda: runtime.runner(encoder, "engine", RunOptions(outputs=tuple(names))),
    )


def compare(
    reference: Reference,
    against: str,
    free: tuple[Stage, Stage],
    equal: tuple[Stage, Stage] | None = None,
    *,
    precision: str = "fp32",
) -> Comparison:
    """Judge one stage against another.

    Args:
        reference: the model in PyTorch, whose decisions tell ties.
        against: name of the first stage.
        free: both stages left alone.
        equal: both run with PyTorch's decisions, where they decide differently; None: as `free`.
        precision: whose gates count.
    """
    found: dict[str, Any] = numbers(*free)
    decides = bool(reference.names) and all(tells(reference, stage) for stage in free)
    found |= agreements(*free, reference.plans) if decides else {"decision_agreement": None}
    tied: dict[str, Any] | None = None
    if decides and equal is not None and not same_decisions(*free, reference.plans):
        told = ("max_rel", *MASKS, "top1_agreement", "decision_agreement")
        found["free_running"] = {key: found[key] for key in told if key in found}
        found |= {**numbers(*equal), **agreements(*equal, reference.plans)}
        first, second = ([first_image(o) for o in stage.outputs] for stage in equal)
        tied = ties(reference.decisions, first, second, NOISE[precision])
    gates, agreed = gates_of(precision, found), found["decision_agreement"]
    passed = (
        found["max_rel"] <= gates["max_rel"]
        and all(found[key] >= gates[key] for key in (*MASKS, "top1_agreement") if key in gates)
        and (
            agreed is None
            or agreed >= gates["decision_agreement"]
            or (tied is not None and tied["differ"] == tied["ties"])
        )
    )
    found = {**dict.fromkeys((*MASKS, "masks")), **found}
    return Comparison(against, **found, ties=tied, passed=bool(passed), gates=gates)


def gates_of(precision: str, found: Mapping[str, Any]) -> dict[str, float]:
    """The gates of a precision for what was measured: masks, logits, or the embedding alone."""
    known = {**GATES[precision], "top1_agreement": TOP1[precision]}
    return {key: gate for key, gate in known.items() if key in found}


def tells(reference: Reference, stage: Stage) -> bool:
    """Whether a stage tells its decisions; engines that cannot leave them out."""
    return bool(set(reference.names) & set(stage.outputs[0]))


def numbers(first: Stage, second: Stage) -> dict[str, Any]:
    """Errors of what encoders hand over, of several tensors the largest; overlap of masks, or the same best class."""
    batch = second.embeddings[0].shape[0]
    errors = []
    for name in first.features:
        values = [np.repeat(e, batch, 0) if e.shape[0] == 1 else e for e in first.tensors(name)]
        errors.append(embedding_errors(values, second.tensors(name)))
    worst: dict[str, Any] = max(errors, key=lambda found: found["max_rel"])
    if LOGITS in first.features:
        return {**worst, "top1_agreement": same_class(first, second)}
    if not first.masks:
        return worst
    ious = mask_ious(first.masks, second.masks)
    return {
        **worst,
        "mask_iou_mean": float(np.mean(ious)),
        "mask_iou_min": min(ious),
        "masks": len(ious),
    }


def same_class(first: Stage, second: Stage) -> float:
    """Share of photos, and of the images of their batches, whose largest logit is that of the same class."""
    pairs = zip(first.tensors(LOGITS), second.tensors(LOGITS))
    return float(np.mean([(a.argmax(-1) == b.argmax(-1)).mean() for a, b in pairs]))


def agreements(first: Stage, second: Stage, plans: Mapping[str, type[Plan]]) -> dict[str, Any]:
    """Share of equal decisions, overall and by name."""
    pairs = [first_image(o) for o in first.outputs], [first_image(o) for o in second.outputs]
    by_name = agreement(*pairs, plans)
    return {"decision_agreement": float(np.mean(list(by_name.values()))), "decision_agreement_by_name": by_name}


def same_decisions(first: Stage, second: Stage, plans: Mapping[str, type[Plan]]) -> bool:
    """Whether two stages decided alike everywhere."""
    return all(share == 1 for share in agreements(first, second, plans)["decision_agreement_by_name"].values())


def quality(reference: Reference) -> dict[str, Any]:
    """Patched against unpatched masks, and both against true masks where the photos have them.

    Of a model without masks: the cosine of embeddings, and the share of photos whose best class stays.
    """
    dense, eager = reference.dense, reference.eager
    row: dict[str, Any] = {"embedding_cosine_vs_dense": embedding_errors(dense.embeddings, eager.embeddings)["cosine"]}
    if not dense.masks:
        return row | ({"top1_vs_dense": same_class(dense, eager)} if LOGITS in dense.features else {})
    row["miou_vs_dense"] = float(np.mean(mask_ious(dense.masks, eager.masks)))
    photos = reference.inputs.photos
    truths = [(i, k, p.truth) for i, photo in enumerate(photos) for k, p in enumerate(photo.prompts)]
    truths = [(i, k, t) for i, k, t in truths if t is not None]
    for name, made in (("dense", dense), ("patched", eager)):
        scores = [iou(made.masks[i][k], t) for i, k, t in truths if t is not None]
        row[f"miou_true_{name}"] = float(np.mean(scores)) if scores else None
    row["true_masks"] = len(truths)
    return row
