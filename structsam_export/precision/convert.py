"""FP32 graph -> strongly typed FP16 or BF16 graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.precision.numbers import LIMITS, SAFETY, Kind, LowType, fit
from structsam_export.precision.typed import INDIFFERENT, read

if TYPE_CHECKING:
    from structsam_export.precision.typed import TypedGraph


@dataclass(frozen=True)
class Offender:
    """A node that keeps FP32 because of its values or its operator, and why."""

    node: str
    op: str
    why: str


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    `low` and `fp32` count nodes that have float tensors, the latter by the reasons of `policy`; `casts` the Cast nodes
    put in. `offenders` are the nodes behind the reasons "range" and "operator"; `underflow` maps each constant of which
    values became zero to their share. `bytes_before` and `bytes` are sizes on disk, with weights beside the file.
    """

    kind: Kind
    low: int
    fp32: dict[str, int]
    casts: int
    offenders: tuple[Offender, ...]
    underflow: dict[str, float]
    bytes_before: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def convert(source: Path, target: Path, kind: Kind, amax: Mapping[str, float] | None = None) -> Conversion:
    """Write `source` with FP16 or BF16 tensors as `policy` says; inputs and outputs stay float32.

    Args:
        source: float32 ONNX file, weights inside or beside it.
        target: file to write; weights beyond protobuf's limit go to `<target>.data`.
        kind: "fp16" or "bf16".
        amax: largest |value| of each float tensor, from `calibrate`; None skips the range check of activations.

    Raises:
        PrecisionError: an operator whose types are not known, or a graph that is typed already; see `typed.read`.
    """
    from structsam_export.precision.casts import Retyping
    from structsam_export.precision.policy import keep_fp32

    graph, low = read(source), LowType.of(kind)
    unfit = too_large(amax or {}, kind)
    misfits, lost = check_constants(graph, kind)
    kept = keep_fp32(graph, low.formal, unfit | misfits)
    nodes = graph.nodes
    floats = [
        i
        for i, n in enumerate(nodes)
        if n.op_type not in INDIFFERENT and (graph.float_inputs(n) or graph.float_outputs(n))
    ]
    offenders = tuple(
        Offender(nodes[i].name, nodes[i].op_type, why.detail) for i, why in sorted(kept.items()) if why.detail
    )
    retyping = Retyping(graph, kept, low)
    retyping.apply()
    stored_low = {name for name, elem in retyping.constants if elem == low.elem}
    save(graph.model, target)
    return Conversion(
        kind=kind,
        low=len(floats) - len(kept),
        fp32=dict(Counter(why.reason for why in kept.values())),
        casts=retyping.casts,
        offenders=offenders,
        underflow={name: share for name, share in lost.items() if name in stored_low},
        bytes_before=size_on_disk(source),
        bytes=size_on_disk(target),
    )


def too_large(amax: Mapping[str, float], kind: Kind) -> dict[str, str]:
    """Tensors whose amax leaves too little room below the largest number of the type -> what to say about them."""
    limit = LIMITS[kind]
    return {
        name: f"'{name}' reaches {largest:.3g}; {kind} ends at {limit * SAFETY:.5g}, of which {limit:.5g} may be used"
        for name, largest in amax.items()
        if not largest <= limit  # NaN is not either
    }


def check_constants(graph: TypedGraph, kind: Kind) -> tuple[dict[str, str], dict[str, float]]:
    """Constants that cannot be rounded -> why not; and the share of values that rounding makes zero."""
    misfits, lost = {}, {}
    for name in graph.constants:
        if graph.is_float(name):
            values = graph.array(name)
            found = fit(name, values, kind)
            if found.problem:
                misfits[name] = found.problem
            if found.underflow:
                lost[name] = found.underflow / values.size
    return misfits, lost


def save(model: Any, target: Path) -> None:
    """Write a model, weights inside as long as protobuf takes them."""
    import onnx

    from structsam_export.files import disk_errors
    from structsam_export.rewrite import INLINE_LIMIT

    beside = sum(len(t.raw_data) for t in model.graph.initializer) > INLINE_LIMIT
    with disk_errors(target.parent):
        if beside:
            (target.with_name(f"{target.name}.data")).unlink(missing_ok=True)  # onnx would append
            onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")
        else:
            onnx.save(model, str(target))


def size_on_disk(path: Path) -> int:
    """Bytes of an ONNX file and of its weights beside it."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
