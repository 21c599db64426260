"""From what a checkpoint file holds to the model's tensors: wrappers and prefixes off, and nothing odd among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.console import printable
from structsam_export.errors import CheckpointError, shortened
from structsam_export.models.sources import anchors

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8
# What training scripts call the weights within a checkpoint, in order of preference.
WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "net_state_dict", "weights"),
    *("sam", "sam_model", "module", "state", "params", "generator", "ema", "model_ema", "ema_state_dict"),
)
DEEPEST = 8  # wrappers within wrappers
# What wrapping a model puts before all names.
PREFIXES = ("module.", "model.", "sam.", "_orig_mod.", "net.", "network.", "sam_model.", "state_dict.")
INSIDE = ("_orig_mod.", "module.")  # what wrapping a part of it puts into them
PATCH_EMBED = "image_encoder.patch_embed.proj.weight"
LARGEST = 1 << 24  # numbers of a tensor that repeats what is stored; SAM's largest has 7 million
RESAVE = "Re-save it as a plain state dict (torch.save(model.state_dict(), PATH)) or as safetensors."


def state_of(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by their names in the model.

    Args:
        loaded: what the file holds.
        path: for messages.

    Raises:
        CheckpointError: no state dict, no tensors, or a tensor that is not dense or not in the file.
    """
    import torch

    for _ in range(DEEPEST):  # bounded: a pickled dict can contain itself
        if isinstance(loaded, Mapping) and not holds_weights(loaded):
            loaded = next((loaded[k] for k in WRAPPERS if isinstance(loaded.get(k), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a state dict. {RESAVE}")
    state = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not state:
        keys = f"only {first(map(str, loaded))}" if loaded else "nothing"
        raise CheckpointError(f"{path} holds no tensors, {keys}. {RESAVE}")
    for name, weights in state.items():
        check_tensor(name, weights, path)
    return {k: v.detach() for k, v in without_prefixes(state).items()}


def holds_weights(loaded: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds the encoder's weights itself, whatever lies beside them."""
    return any(isinstance(key, str) and key.endswith(anchors()) for key in loaded)


def without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by names without what wrapping the model, or parts of it, put into all of them."""
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) and k != p for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    for anchor in anchors():
        for place in [k for k in state if k.endswith(f".{anchor}")]:
            prefix = place.removesuffix(anchor)
            if all(k.startswith(prefix) for k in state):
                state = {k.removeprefix(prefix): v for k, v in state.items()}
    bare = {_without_wrappers(k): v for k, v in state.items()}
    return bare if len(bare) == len(state) else state


def _without_wrappers(name: str) -> str:
    for part in INSIDE:
        name = name.replace(f".{part}", ".")
    return name


def check_tensor(name: str, weights: Tensor, path: Path) -> None:
    """Refuse a tensor whose values cannot be used, without touching them: files may claim anything.

    Raises:
        CheckpointError: sparse, nested, quantised, without values, or far larger than what the file holds of it.
    """
    import torch

    odd = None
    if weights.is_nested:
        odd = "a nested tensor"
    elif weights.is_quantized:
        odd = "quantised"
    elif weights.layout is not torch.strided:
        odd = f"not dense ({weights.layout})"
    elif weights.device.type != "cpu":
        odd = f"without values (on device '{weights.device.type}')"
    elif type(weights) not in (torch.Tensor, torch.nn.Parameter):
        odd = f"a {type(weights).__name__}"
    elif weights.numel() > LARGEST and weights.numel() * weights.element_size() > weights.untyped_storage().nbytes():
        odd = f"of shape {tuple(weights.shape)}, while the file holds {weights.untyped_storage().nbytes()} bytes of it"
    if odd:
        raise CheckpointError(f"{path}: {first([name])} is {odd}. Pass plain, dense weights. {RESAVE}")


def first(items: Iterable[str]) -> str:
    """The first few items, one line; says how many were left out."""
    items = list(items)
    more = f", ... ({len(items) - SHOWN} more)" if len(items) > SHOWN else ""
    return ", ".join(shortened(printable(item).replace("\n", "\\n")) for item in items[:SHOWN]) + more
