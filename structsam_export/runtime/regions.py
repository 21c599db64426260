"""Masks as regions: boxes, run lengths, small parts, duplicates; `segment_anything.utils.amg` without PyTorch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from structsam_export.errors import MissingRuntimeError

MANY = 1 << 20  # more boxes than there are


def box_of(mask: np.ndarray) -> np.ndarray:
    """First and last column and row of a mask (H, W), as int64 x0 y0 x1 y1; zeros of an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.int64)


def xywh(box: np.ndarray) -> list[int]:
    """A box x0 y0 x1 y1 as x, y, width and height."""
    x0, y0, x1, y1 = (int(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as COCO's run lengths, uncompressed: {"size": [H, W], "counts": [...]}, column by column, the first
    run being background.
    """
    flat = np.asfortranarray(mask).ravel("F")
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], turns, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat.size and flat[0] else counts}


def mask_of(runs: dict[str, Any]) -> np.ndarray:
    """Inverse of `run_lengths`, bool (H, W)."""
    h, w = runs["size"]
    kinds = np.arange(len(runs["counts"])) % 2 == 1
    found: np.ndarray = np.repeat(kinds, runs["counts"]).reshape(w, h).T
    return found


def area_of(runs: dict[str, Any]) -> int:
    """Pixels of a mask in run lengths."""
    return int(sum(runs["counts"][1::2]))


def pycocotools(what: str = "COCO's run lengths") -> Any:
    """`pycocotools.mask`, which draws polygons and compresses run lengths.

    Args:
        what: what it is needed for, for the message.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingRuntimeError(
            f"{what} need pycocotools ({error}). Install it: pip install 'structsam-export[coco]'."
        ) from error
    return mask


def compressed(runs: dict[str, Any]) -> dict[str, Any]:
    """Run lengths with COCO's compressed `counts`, as text for JSON.

    Raises:
        MissingRuntimeError: pycocotools is not installed.
    """
    found = pycocotools().frPyObjects(runs, *runs["size"])
    return {"size": list(runs["size"]), "counts": found["counts"].decode("utf-8")}


def without_small_regions(mask: np.ndarray, area: float, *, holes: bool) -> tuple[np.ndarray, bool]:
    """A mask (H, W) with small holes filled or small islands removed, and whether that changed it.

    Pixels that touch at a corner are one region. If all islands are small, the largest stays.
    """
    from scipy import ndimage

    regions, count = ndimage.label(mask ^ holes, np.ones((3, 3), bool))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    small = np.flatnonzero(sizes < area) + 1
    if not len(small):
        return mask, False
    if holes:
        return mask | np.isin(regions, small), True
    kept = np.setdiff1d(np.arange(1, count + 1), small)
    return np.isin(regions, kept if len(kept) else [sizes.argmax() + 1]), True


def distinct(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of boxes that are left when each is dropped that overlaps a better one, best first.

    Non-maximum suppression as `torchvision.ops.nms` does it, by ONNX Runtime's own operator: it is here anyway, and
    libraries of pictures that have one are 90 MB.

    Args:
        boxes: (N, 4), x0 y0 x1 y1.
        scores: (N,); of equal ones the first is better.
        threshold: boxes with a larger IoU are duplicates.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    most = np.float32(threshold)
    if float(most) > threshold:  # as if the float32 IoU were compared with the threshold in double precision
        most = np.nextafter(most, np.float32(-1))
    (found,) = _suppression().run(
        None,
        {
            "boxes": np.asarray(boxes, np.float32)[None],
            "scores": np.asarray(scores, np.float32)[None, None],
            "most": np.array([min(len(boxes), MANY)], np.int64),
            "iou": np.array([most], np.float32),
        },
    )
    chosen: np.ndarray = found[:, 2]
    return chosen


@lru_cache(maxsize=1)
def _suppression() -> Any:
    """ONNX's NonMaxSuppression in a session of one thread."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741
    shapes = {"boxes": (F, [1, "n", 4]), "scores": (F, [1, 1, "n"]), "most": (I, [1]), "iou": (F, [1])}
    node = helper.make_node("NonMaxSuppression", list(shapes), ["chosen"])
    values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()]
    graph = helper.make_graph([node], "nms", values, [helper.make_tensor_value_info("chosen", I, ["m", 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
