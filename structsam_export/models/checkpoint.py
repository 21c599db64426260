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
from structsam_export.models.relatives import relative_of
from structsam_export.models.unwrap import PATCH_EMBED, RESAVE, first, state_of
from structsam_export.reading import check_file, read_errors

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "Get the file again, or pass another one with --checkpoint."

ARCHITECTURES = {192: "demo", 768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by rows of PATCH_EMBED
POSITIONS = "image_encoder.pos_embed"
NOT_PERSISTENT = ("pixel_mean", "pixel_std")  # constants of the model, which some training scripts save
# Plain values that training scripts keep beside weights. Nothing of theirs is made: an `Inert` takes their place.
BESIDE = (
    *("argparse.Namespace", "numpy.dtype", "numpy.ndarray", "pathlib.PosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
SHARDED = (
    " of sharded weights, which are not read. Load them into the model, and save its state_dict as one file, for "
    "example with safetensors.torch.save_model."
)
BOMB = 1 << 31  # bytes that a compressed file may unpack to, however small it is


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a safetensors or torch checkpoint into CPU tensors of the file's own types.

    Wrappers such as {"model": ...} and prefixes on all names are taken off, see `unwrap`.

    Raises:
        CheckpointError: the file is missing, a folder, empty, unreadable, damaged, no checkpoint at all, holds
            pickled objects other than tensors and plain values, or holds no tensors that can be used.
    """
    head = _head(path)
    # safetensors: a 64-bit header length, then JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return state_of(_read_safetensors(path), path)
    if head.startswith(b"PK\x03\x04"):
        return state_of(_read_torch(path, mmap=_is_mappable(path)), path)
    if head.startswith(b"\x80"):  # torch.save before 1.6, or a bare pickle
        return state_of(_read_torch(path, mmap=False), path)
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
    with read_errors(path, "Checkpoint", CheckpointError, "does not exist. Check the path given with --checkpoint."):
        if path.is_dir():
            shards = any(path.glob("*.index.json")) or any(path.glob("*-of-*.safetensors"))
            raise CheckpointError(f"{path} is a folder{SHARDED if shards else '. Pass the checkpoint file inside it.'}")
        check_file(path, "Checkpoint", CheckpointError, "does not exist. Check the path given with --checkpoint.")
        with path.open("rb") as file:
            head = file.read(512)
    if not head:
        raise CheckpointError(f"Checkpoint {path} is empty, as after an interrupted download. {AGAIN}")
    return head


def _describe(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer. Run `git lfs pull` where it came from."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, as when a link needs a login or has moved. Download the file itself."
    if head.startswith(b"{") and (b'"weight_map"' in head or b'"total_size"' in head):
        return f"it is the index{SHARDED}"
    if head.isascii() and b"\0" not in head:
        return f"it is a text file that begins with {head[:40].decode()!r}. {AGAIN}"
    return f"it is neither safetensors nor a PyTorch file. {AGAIN}"


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return CheckpointError(
        f"Checkpoint {path} ({path.stat().st_size:,} bytes) is damaged or incomplete: {reason}. {AGAIN}"
    )


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except MemoryError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"{path} holds numbers of type {error}, which are not supported. Pass weights in FP32, FP16 or BF16."
        ) from error
    except Exception as error:  # a SafetensorError, or what a header that claims anything leads to
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
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(BOMB, 100 * path.stat().st_size):
        raise CheckpointError(f"{path} would unpack to {unpacked / 1e9:.0f} GB, which is refused. {AGAIN}")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _read_torch(path: Path, mmap: bool) -> Any:
    import torch

    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in BESIDE]):
            return _loaded(path, mmap, options)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        what = f"pickled Python objects ({found[1]})" if found else "pickled Python objects, or damage"
        raise CheckpointError(
            f"{path} holds {what}; running code from a checkpoint is refused, also where it lies beside weights. "
            f"{RESAVE}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise whatever their bytes happen to lead to
        raise _damaged(path, error) from error


class Inert:
    """Stands for a value that is not looked at, whatever it is made and filled with."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _loaded(path: Path, mmap: bool, options: dict[str, Any]) -> Any:
    import torch

    if path.suffix == ".safetensors":  # torch.load itself believes this extension, so hide the name
        with path.open("rb") as file:
            return torch.load(file, **options)
    return torch.load(path, mmap=mmap, **options)


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
    if PATCH_EMBED in state:
        rows = state[PATCH_EMBED].shape[0] if state[PATCH_EMBED].ndim else 0
        name = ARCHITECTURES.get(rows)
        if name and rows != expected[PATCH_EMBED].shape[0]:
            raise CheckpointError(
                f"{path} does not fit model '{model_name}': this looks like a {name} checkpoint: pass --model {name}"
                + (" (or --model medsam, if the weights are MedSAM's)." if name == "vit_b" else ".")
            )
    elif not any(k.startswith("image_encoder.blocks.") and k in expected for k in state):
        kind = relative_of(state)
        looks = f" It looks like {kind}" if kind else ""
        raise CheckpointError(
            f"{path} is no Segment Anything checkpoint: it has no weights of a ViT `image_encoder`.{looks} "
            f"It holds {len(state)} tensors: {first(state)}."
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
    lines = [f"  {len(items)} {what}: {first(items)}" for what, items in found.items() if items]
    if lines:
        raise CheckpointError(
            f"{path} does not fit model '{model_name}':\n" + "\n".join(lines) + "\n"
            f"{_advice(expected, state, unexpected)}"
        )


def _advice(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], unexpected: list[str]) -> str:
    """What to do with weights that do not fit."""
    if kind := relative_of(unexpected):
        return f"It looks like {kind}"
    ours: tuple[int, ...] = tuple(expected[POSITIONS].shape)
    theirs: tuple[int, ...] = tuple(state[POSITIONS].shape) if POSITIONS in state else ()
    if len(theirs) == 4 and theirs[1:3] != ours[1:3] and theirs[3] == ours[3] and PATCH_EMBED in state:
        patch = expected[PATCH_EMBED].shape[-1]
        return (
            f"It was trained on images of {theirs[1] * patch} x {theirs[2] * patch} px, the model takes "
            f"{ours[1] * patch} x {ours[2] * patch}. Resize its position embeddings (pos_embed, and rel_pos of global "
            "blocks) to that size, as its training code resized SAM's, and save the state dict."
        )
    return "Pass the --model it was trained as, or a checkpoint of segment_anything's Sam."


def floats() -> tuple[Any, ...]:
    """Types of numbers that become float32; types of four bits do not."""
    import torch

    eight = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
    return (torch.float16, torch.bfloat16, torch.float32, torch.float64, *eight)


def _float32(name: str, weights: Tensor, path: Path) -> Tensor:
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
