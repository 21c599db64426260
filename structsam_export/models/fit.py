"""Load weights into a model only if all of them fit, and say what they are if they do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.errors import CheckpointError
from structsam_export.models.reading import POSITIONS
from structsam_export.models.reading_tiny import is_tiny
from structsam_export.models.relatives import relative_of
from structsam_export.models.sources.efficient_sam import ANCHOR as EFFICIENT
from structsam_export.models.unwrap import PATCH_EMBED, first

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = {192: "demo", 768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by rows of PATCH_EMBED
NOT_PERSISTENT = ("pixel_mean", "pixel_std")  # constants of the model, which some training scripts save


def load_into(sam: Any, state: Mapping[str, Tensor], path: Path, model_name: str) -> None:
    """Replace the weights of a `Sam` by those of `state`, as float32; on an error the model is unchanged.

    `path` and `model_name` are for messages.

    Raises:
        CheckpointError: another architecture, a foreign file, missing, unexpected or wrong-shape weights,
            weights that are not finite or not floating point, or other normalisation constants.
    """
    expected = sam.state_dict()
    _check_constants(sam, state, path)
    state = {k: v for k, v in state.items() if k not in NOT_PERSISTENT}
    _check_family(expected, state, path, model_name)
    refuse_misfit(expected, state, path, model_name)
    sam.load_state_dict({k: float32(k, v, path) for k, v in state.items()}, strict=True, assign=True)


def refuse_relatives(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not SAM's own, by the names of their tensors.

    Raises:
        CheckpointError: a relative of SAM, or no weights of a SAM at all; says what to do.
    """
    if kind := relative_of(state):
        raise CheckpointError(f"{path} looks like {kind}")
    if PATCH_EMBED not in state and not is_tiny(state):
        raise _foreign(state, path)


def _foreign(state: Mapping[str, Tensor], path: Path) -> CheckpointError:
    kind = relative_of(state)
    looks = f" It looks like {kind}" if kind else ""
    return CheckpointError(
        f"{path} is no Segment Anything checkpoint: it has no weights of a ViT `image_encoder`.{looks} "
        f"It holds {len(state)} tensors: {first(state)}."
    )


def _check_constants(sam: Any, state: Mapping[str, Tensor], path: Path) -> None:
    for name in NOT_PERSISTENT:
        if name not in state:
            continue
        values, ours = state[name], getattr(sam, name).flatten().tolist()
        small = values.numel() <= 16 and values.dtype in floats()
        theirs = values.float().flatten().tolist() if small else [f"of shape {tuple(values.shape)}, {values.dtype}"]
        # Half a percent: the constants may have been stored as BF16.
        if len(theirs) != len(ours) or any(not abs(a - b) <= 0.005 * b for a, b in zip(theirs, ours)):
            raise CheckpointError(
                f"{path} was trained with {name} {theirs} where SAM has {[round(v, 3) for v in ours]}; "
                "other input normalisations are not supported."
            )


def _check_family(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, model_name: str) -> None:
    if EFFICIENT in state and EFFICIENT not in expected:  # as wide as the demo model
        raise CheckpointError(f"{path} does not fit model '{model_name}': it looks like {relative_of([EFFICIENT])}")
    if PATCH_EMBED in state and PATCH_EMBED in expected:
        rows = state[PATCH_EMBED].shape[0] if state[PATCH_EMBED].ndim else 0
        name = ARCHITECTURES.get(rows)
        if name and rows != expected[PATCH_EMBED].shape[0]:
            raise CheckpointError(
                f"{path} does not fit model '{model_name}': this looks like a {name} checkpoint: pass --model {name}"
                + (" (or --model medsam, if the weights are MedSAM's)" if name == "vit_b" else "")
                + ", or leave --model away to read it from the weights."
            )
    elif is_tiny(state) and not is_tiny(expected):
        raise CheckpointError(
            f"{path} does not fit model '{model_name}': this looks like MobileSAM or LiteMedSAM (TinyViT). Leave "
            "--model away to read it from the weights."
        )
    elif not any(k.startswith(("image_encoder.blocks.", "image_encoder.layers.")) and k in expected for k in state):
        raise _foreign(state, path)


def refuse_misfit(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, name: str, advice: str | None = None
) -> None:
    """Refuse weights that are not those of a model, by names and shapes; `name` is what `--model` was.

    Raises:
        CheckpointError: missing, unexpected or wrong-shape weights; ends with `advice`, or with what is known of SAM.
    """
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k}: checkpoint {tuple(v.shape)} vs model {tuple(expected[k].shape)}"
        for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    lines = [f"  {len(items)} {what}: {first(items)}" for what, items in found.items() if items]
    if lines:
        model = "the architecture read from it" if name == "auto" else f"model '{name}'"
        raise CheckpointError(
            f"{path} does not fit {model}:\n" + "\n".join(lines) + "\n"
            f"{advice or _advice(expected, state, unexpected, name)}"
        )


def _advice(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], unexpected: list[str], model_name: str) -> str:
    """What to do with weights that do not fit."""
    if kind := relative_of(unexpected):
        return f"It looks like {kind}"
    if model_name == "auto":
        return "Pass a checkpoint of segment_anything's Sam or of transformers' SamModel, and of nothing else."
    ours: tuple[int, ...] = tuple(expected[POSITIONS].shape)
    theirs: tuple[int, ...] = tuple(state[POSITIONS].shape) if POSITIONS in state else ()
    if len(theirs) == 4 and theirs[1:3] != ours[1:3] and theirs[3] == ours[3] and PATCH_EMBED in state:
        patch = expected[PATCH_EMBED].shape[-1]
        return (
            f"It was trained on images of {theirs[1] * patch} x {theirs[2] * patch} px, the model takes "
            f"{ours[1] * patch} x {ours[2] * patch}. Leave --model away, and it is exported at its own size."
        )
    return "Leave --model away to read the architecture from the weights, or pass another checkpoint."


def floats() -> tuple[Any, ...]:
    """Types of numbers that become float32; types of four bits do not."""
    import torch

    eight = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
    return (torch.float16, torch.bfloat16, torch.float32, torch.float64, *eight)


def float32(name: str, weights: Tensor, path: Path) -> Tensor:
    """A weight as float32; `name` and `path` are for messages.

    Raises:
        CheckpointError: not floating point, or with values that are not finite.
    """
    import torch

    if not weights.is_floating_point():
        raise CheckpointError(
            f"{path}: {first([name])} is {weights.dtype}, not floating point. Pass weights that are not quantised."
        )
    if weights.dtype not in floats():
        raise CheckpointError(
            f"{path}: {first([name])} is {weights.dtype}, which cannot be read. Pass weights in FP32, FP16 or BF16."
        )
    weights = weights.to(torch.float32).contiguous()
    if not bool(torch.isfinite(weights).all()):
        raise CheckpointError(
            f"{path}: {first([name])} contains NaN or infinity. Pass an earlier or undamaged checkpoint."
        )
    return weights
