"""Which tokens an encoder treats as one, read from its own graph while it embeds a photo: no PyTorch takes part.

Graphs name what they decide (`roles.Plan`): "plan.3.slot" is a part of what block 3 decided. The parts become outputs
of a copy of the graph, and their names tell which kind of plan it was.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from structsam_export.backends import backend
from structsam_export.errors import UsageError
from structsam_export.folder import ExportFolder, companion
from structsam_export.graphs import load
from structsam_export.runtime.images import prepare

PART = re.compile(r"([a-z]+)\.(\d+)\.([a-z_]+)")
PARTS = ("pos", "slot", "order", "keep", "keys", "rows", "columns")
RIGHT = 2  # what a token of a line does that joins its right neighbour; 1: its left one
Parts = Mapping[str, np.ndarray]
Shape = tuple[int, int]


class TokenMap(NamedTuple):
    """What one block decided.

    `kind`: "merge" (tokens of a group attend as one), "grid" (one token from this block on), "keys" or "mlp" (tokens
    that share a number are no keys, or pass the MLP by). `window`: side of the block's windows, 0 for global attention.
    `groups`: int64 (H, W), one number for tokens that are treated as one.
    """

    block: int
    kind: str
    window: int
    groups: np.ndarray


def token_maps(folder: ExportFolder, image: np.ndarray) -> list[TokenMap]:
    """The maps of a photo, uint8 RGB (H, W, 3), block by block; padding of the square is cut off.

    The FP32 encoder runs on ONNX Runtime's CPU provider, whatever runs the export elsewhere: loaded for this photo, and
    freed.

    Raises:
        UsageError: the export decides nothing for a photo, or only with a prompt; or it is too large to be copied.
        ArtifactError: the encoder is missing or was changed.
    """
    geometry, name = folder.geometry, folder.fp32_name
    if folder.config.prompt_aware:
        raise UsageError("A prompt-aware export merges differently for each prompt: a photo alone has no map.")
    if companion(name) in folder.manifest.files:
        raise UsageError("This encoder keeps its weights in a file beside it. Maps are made of smaller ones only.")
    ready = prepare(image, int(geometry["image_size"]), folder.preprocessing)
    found = _decisions(folder.fp32_encoder(), np.repeat(ready.tensor, folder.config.batch, 0))
    shape: Shape = tuple(geometry["grid"])
    patch = int(geometry["patch_size"])
    height, width = (-(-side // patch) for side in ready.resized)
    maps = []
    for (decision, block), parts in sorted(found.items(), key=lambda item: item[0][1]):
        window = int(geometry["windows"][block])
        kind, groups = groups_of(parts, shape, window, max(geometry["windows"]))
        kind = decision if kind == "merge" and decision != "plan" else kind
        maps.append(TokenMap(block, kind, window, groups[:height, :width]))
    return maps


def _decisions(encoder: Path, images: np.ndarray) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """What an encoder decides on prepared images, by decision and part.

    Raises:
        UsageError: nothing.
    """
    import onnx

    model = load(encoder)
    there = {out for node in model.graph.node for out in node.output} | {t.name for t in model.graph.initializer}
    wanted = sorted(name for name in there if (match := PART.fullmatch(name)) and match[3] in PARTS)
    if not wanted:
        raise UsageError("This export treats every photo alike: it has no map of merged tokens.")
    outputs = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in wanted if n not in outputs)
    with tempfile.TemporaryDirectory(prefix="structsam-") as place:
        copy = Path(place, encoder.name)
        onnx.save(model, str(copy))
        del model
        with backend("onnxruntime").runner(copy, encoder.name) as runner:
            values = runner.infer({"image": images})
    found: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for name in wanted:
        decision, block, part = name.split(".")
        found.setdefault((decision, int(block)), {})[part] = values[name]
    return found


def groups_of(parts: Parts, shape: Shape, window: int, widest: int) -> tuple[str, np.ndarray]:
    """The kind of a decision, and a number for every token of the first image, int64 (H, W).

    Args:
        parts: its integers by name.
        shape: tokens (H, W) of one image.
        window: side of the block's windows; 0: global.
        widest: side of the windows of windowed blocks, which a grid may shrink in.
    """
    if "rows" in parts:
        return "grid", _shrunk(parts["rows"], parts["columns"], shape, widest)
    if "keys" in parts or "keep" in parts:
        kind = "keys" if "keys" in parts else "mlp"
        return kind, _chosen(parts["keys" if kind == "keys" else "keep"][0], shape)
    destination = np.take_along_axis(parts["pos"], parts["slot"], axis=1)
    (rows, columns), (down, across) = _windows(shape, window)
    count = down * across
    if "order" in parts:  # some windows stay as they are; the others come last
        everything = np.tile(np.arange(rows * columns), (count, 1))
        order = parts["order"][0]
        merging = len(destination) // len(parts["order"])
        everything[order[count - merging :]] = destination[:merging]
        destination = everything
    numbers = destination[:count] + np.arange(count)[:, None] * rows * columns
    return "merge", _joined(numbers, shape, (rows, columns), (down, across))


def _windows(shape: Shape, window: int) -> tuple[Shape, Shape]:
    """(h, w) of one window, and how many there are down and across."""
    side = (window, window) if window else shape
    return side, (-(-shape[0] // side[0]), -(-shape[1] // side[1]))


def _joined(values: np.ndarray, shape: Shape, side: Shape, counts: Shape) -> np.ndarray:
    """Windows (count, h * w) put together to (H, W), pads dropped."""
    whole = values.reshape(*counts, *side).transpose(0, 2, 1, 3).reshape(counts[0] * side[0], counts[1] * side[1])
    return whole[: shape[0], : shape[1]].astype(np.int64)


def _chosen(chosen: np.ndarray, shape: Shape) -> np.ndarray:
    """Chosen tokens have a number of their own, others share one in each 2x2 cell."""
    token = np.arange(shape[0] * shape[1])
    cell = len(token) + token // shape[1] // 2 * shape[1] + token % shape[1] // 2
    return np.where(np.isin(token, chosen), token, cell).reshape(shape)


def _shrunk(rows: np.ndarray, columns: np.ndarray, shape: Shape, widest: int) -> np.ndarray:
    """Tokens that became one token of a smaller grid, in each window or on the whole grid."""
    whole = rows.shape[1] == shape[1] // 2 or not widest
    side, counts = _windows(shape, 0 if whole else widest)
    h, w = side
    count = counts[0] * counts[1]
    per_image = columns.shape[0] * count * h // rows.shape[0]  # columns of one image, over all its windows
    kept = per_image // count
    across = _line_slots(rows[: count * h], w).reshape(count, h, w)
    down = _line_slots(columns[:per_image], h).reshape(count, kept, h).transpose(0, 2, 1)
    place = np.take_along_axis(down, across, axis=2) * w + across
    return _joined(place.reshape(count, -1) + np.arange(count)[:, None] * h * w, shape, side, counts)


def _line_slots(joins: np.ndarray, length: int) -> np.ndarray:
    """Where each token of a line went, (R, N // 2) -> (R, N): odd tokens may join a neighbour."""
    steps = np.zeros((len(joins), length), np.int64)
    steps[:, 1::2] = joins
    found: np.ndarray = np.cumsum(steps == 0, axis=1) - 1 + (steps == RIGHT)
    return found
