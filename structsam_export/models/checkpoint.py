"""Read weights without running code from the file, and load them only if they fit.

A checkpoint is recognised by its content, never by its extension, and pickled objects are refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from structsam_export.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8
WRAPPERS = ("model", "state_dict", "model_state_dict")
RESAVE = "Re-save it as a plain state dict (torch.save(model.state_dict(), PATH)) or as safetensors."
AGAIN = "Get the file again, or pass another one with --checkpoint."

PATCH_EMBED = "image_encoder.patch_embed.proj.weight"
ARCHITECTURES = {192: "demo", 768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by rows of PATCH_EMBED
RELATIVES = {
    "image_encoder.trunk.": "SAM 2",
    "image_encoder.patch_embed.seq.": "MobileSAM or LiteMedSAM (TinyViT)",
    "vision_encoder.": "SAM as the transformers library stores it",
}
NOT_PERSISTENT = ("pixel_mean", "pixel_std")  # constants of the model, which some training scripts save


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a safetensors or torch checkpoint into CPU tensors of the file's own types.

    Unwraps {"model": ...}, {"state_dict": ...}, {"model_state_dict": ...} and a "module." prefix on all keys.

    Raises:
        CheckpointError: the file is missing, a folder, empty, unreadable, damaged, no checkpoint at all, holds
            pickled objects other than tensors, or holds no tensors.
    """
    head = _head(path)
    # safetensors: a 64-bit header length, then JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return _unwrap(_read_safetensors(path), path)
    if head.startswith(b"PK\x03\x04"):
        return _unwrap(_read_torch(path, mmap=_is_mappable(path)), path)
    if head.startswith(b"\x80"):  # torch.save before 1.6, or a bare pickle
        return _unwrap(_read_torch(path, mmap=False), path)
    raise CheckpointError(f"{path} is not a checkpoint: {_describe(head)}")


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
    _check_fit(expected, state, path, model_name)
    sam.load_state_dict({k: _float32(k, v, path) for k, v in state.items()}, strict=True, assign=True)


def _head(path: Path) -> bytes:
    """The first 512 bytes."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. Pass the checkpoint file inside it.")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"Checkpoint {path} does not exist. Check the path given with --checkpoint.") from None
    except OSError as error:
        raise CheckpointError(f"Checkpoint {path} cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"Checkpoint {path} is empty, as after an interrupted download. {AGAIN}")
    return head


def _describe(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer. Run `git lfs pull` where it came from."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, as when a link needs a login or has moved. Download the file itself."
    if head.isascii() and b"\0" not in head:
        return f"it is a text file that begins with {head[:40].decode()!r}. {AGAIN}"
    return f"it is neither safetensors nor a PyTorch file. {AGAIN}"


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return CheckpointError(
        f"Checkpoint {path} ({path.stat().st_size:,} bytes) is damaged or incomplete: {reason}. {AGAIN}"
    )


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def _is_mappable(path: Path) -> bool:
    """Whether a torch zip can be mapped into memory; a re-zipped, compressed one would map to garbage."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # damaged archives raise anything from BadZipFile to UnicodeDecodeError
        raise _damaged(path, error) from error
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program, which is refused: loading it can run code. {RESAVE}")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is not a checkpoint: it is a zip archive without PyTorch weights. {AGAIN}")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _read_torch(path: Path, mmap: bool) -> Any:
    import torch

    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        if path.suffix == ".safetensors":  # torch.load itself believes this extension, so hide the name
            with path.open("rb") as file:
                return torch.load(file, **options)
        return torch.load(path, mmap=mmap, **options)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        what = f"pickled Python objects ({found[1]})" if found else "pickled Python objects, or damage,"
        raise CheckpointError(
            f"{path} holds {what} and no plain weights; running code from a checkpoint is refused. {RESAVE}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise whatever their bytes happen to lead to
        raise _damaged(path, error) from error


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    import torch

    for _ in range(len(WRAPPERS)):  # bounded: a pickled dict can contain itself
        if isinstance(loaded, Mapping):
            loaded = next((loaded[k] for k in WRAPPERS if isinstance(loaded.get(k), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a state dict. {RESAVE}")
    state = {k: v.detach() for k, v in loaded.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not state:
        keys = f"only {_first(map(str, loaded))}" if loaded else "nothing"
        raise CheckpointError(f"{path} holds no tensors, {keys}. {RESAVE}")
    if all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def _first(items: Any) -> str:
    """The first few items, one line; says how many were left out."""
    items = list(items)
    more = f", ... ({len(items) - SHOWN} more)" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _check_constants(sam: Any, state: Mapping[str, Tensor], path: Path) -> None:
    for name in NOT_PERSISTENT:
        if name not in state:
            continue
        theirs, ours = state[name].float().flatten().tolist(), getattr(sam, name).flatten().tolist()
        # Half a percent: the constants may have been stored as BF16.
        if len(theirs) != len(ours) or any(not abs(a - b) <= 0.005 * b for a, b in zip(theirs, ours)):
            raise CheckpointError(
                f"{path} was trained with {name} {theirs} where SAM has {[round(v, 3) for v in ours]}; "
                "other input normalisations are not supported."
            )


def _check_family(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, model_name: str) -> None:
    if PATCH_EMBED in state:
        rows = state[PATCH_EMBED].shape[0] if state[PATCH_EMBED].ndim else 0
        name = ARCHITECTURES.get(rows)
        if name and rows != expected[PATCH_EMBED].shape[0]:
            raise CheckpointError(
                f"{path} does not fit model '{model_name}': this looks like a {name} checkpoint: pass --model {name}"
                + (" (or --model medsam, if the weights are MedSAM's)." if name == "vit_b" else ".")
            )
    elif not any(k.startswith("image_encoder.blocks.") and k in expected for k in state):
        kind = next((kind for prefix, kind in RELATIVES.items() if any(k.startswith(prefix) for k in state)), None)
        looks = f" It looks like {kind}, which is not supported." if kind else ""
        raise CheckpointError(
            f"{path} is no Segment Anything checkpoint: it has no weights of a ViT `image_encoder`.{looks} "
            f"It holds {len(state)} tensors: {_first(state)}."
        )


def _check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, model_name: str) -> None:
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k}: checkpoint {tuple(v.shape)} vs model {tuple(expected[k].shape)}"
        for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    lines = [f"  {len(items)} {what}: {_first(items)}" for what, items in found.items() if items]
    if lines:
        raise CheckpointError(
            f"{path} does not fit model '{model_name}':\n" + "\n".join(lines) + "\n"
            "Pass the --model it was trained as, or a checkpoint of segment_anything's Sam."
        )


def _float32(name: str, weights: Tensor, path: Path) -> Tensor:
    import torch

    if not weights.is_floating_point():
        raise CheckpointError(
            f"{path}: {name} is {weights.dtype}, not floating point. Pass weights that are not quantised."
        )
    weights = weights.to(torch.float32)
    if not bool(torch.isfinite(weights).all()):
        raise CheckpointError(f"{path}: {name} contains NaN or infinity. Pass an earlier or undamaged checkpoint.")
    return weights
