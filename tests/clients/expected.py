"""Our own way from what a program fed its encoder to masks: the export's files, and the code of `runtime`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from structsam_export.runtime.images import PIXEL_MEAN, PIXEL_STD, Prepared, masks_from_logits, prepare, upscaled

CANVAS = (684, 1024)  # of AnyLabeling and its relatives


@dataclass
class Export:
    """The sessions of an export folder; `size` is the encoder's."""

    encoder: object
    decoder: object
    size: int

    def embed(self, image: np.ndarray) -> np.ndarray:
        """(1, 3, S, S) -> (1, C, h, w)."""
        return self.encoder.run(None, {"image": image})[0]

    def logits(self, embedding: np.ndarray, coords: np.ndarray, labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Logits (4, 4h, 4w) and IoUs (4,) of one prompt (K, 2), as given."""
        side = 4 * embedding.shape[-1]
        found = self.decoder.run(
            ["low_res_masks", "iou_predictions"],
            {
                "image_embeddings": embedding,
                "point_coords": np.float32(coords)[None],
                "point_labels": np.int64(labels)[None],
                "mask_input": np.zeros((1, 1, side, side), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
            },
        )
        return found[0][0], found[1][0]


def chosen(logits: np.ndarray, ious: np.ndarray, points: int) -> np.ndarray:
    """SAM's one mask (1, h, w) of four: by the number of points, padding point included."""
    return logits[[int(np.argmax(ious + (points - 2.5) * np.array([1000, 0, 0, 0])))]]


def padded(prompt: dict, always: bool) -> tuple[np.ndarray, list[int]]:
    """A prompt with SAM's padding point, which some programs add behind boxes, too."""
    points, labels = [list(p) for p in prompt["points"]], list(prompt["labels"])
    if always or 2 not in labels:
        points, labels = [*points, [0, 0]], [*labels, -1]
    return np.array(points, float), labels


def square(fed: np.ndarray, size: int) -> np.ndarray:
    """What an encoder got, as ours takes it: photos (h, w, 3) are normalised and padded."""
    if fed.ndim == 4:
        return fed
    image = np.zeros((1, 3, size, size), np.float32)
    pixels = (fed.astype(np.float32) - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    image[0, :, : fed.shape[0], : fed.shape[1]] = pixels.transpose(2, 0, 1)
    return image


def drawn(export: Export, fed: np.ndarray, photo: dict, resized_to: tuple[int, int], *, pad_boxes: bool) -> list:
    """Of each prompt the one mask's logits, all logits and where they belong, from what a program fed its encoder.

    Args:
        export: our files.
        fed: what the program's encoder got.
        photo: `image` (H, W, 3), `prompts`.
        resized_to: height and width that the program resized the photo to.
        pad_boxes: whether it adds the padding point behind boxes.
    """
    embedding, (h, w) = export.embed(square(fed, export.size)), photo["image"].shape[:2]
    scale = (resized_to[1] / w, resized_to[0] / h)
    place = Prepared(fed, (h, w), resized_to, scale)
    found = []
    for prompt in photo["prompts"]:
        points, labels = padded(prompt, pad_boxes)
        logits, ious = export.logits(embedding, points * scale, labels)
        found.append((chosen(logits, ious, len(labels)), logits, place))
    return found


def masks_of(logits: np.ndarray, place: Prepared, size: int) -> np.ndarray:
    """Masks (M, H, W) of the photo's size."""
    return masks_from_logits(logits, place, size)


def on_canvas(logits: np.ndarray, shape: tuple[int, int], scale: float, size: int) -> np.ndarray:
    """Masks (M, H, W) of a photo that was put on the canvas by an affine map (x, y) -> scale * (x, y), linearly."""
    found = []
    for low in logits:
        canvas = upscaled(low, size, CANVAS, CANVAS)
        for axis, target in enumerate(shape):
            canvas = sampled(canvas, np.arange(target) * scale, axis)
        found.append(canvas > 0)
    return np.stack(found)


def sampled(values: np.ndarray, place: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation at places of one axis; zeros beyond it, as OpenCV's warpAffine has them."""
    low, last = np.floor(place).astype(int), values.shape[axis] - 1
    weight = (place - low).astype(np.float32)
    weight = weight[:, None] if axis == 0 else weight
    first, second = (values.take(np.clip(i, 0, last), axis) for i in (low, low + 1))
    beyond = (low + 1 > last)[:, None] if axis == 0 else low + 1 > last
    return first * (1 - weight) + np.where(beyond, 0, second) * weight


def our_own(export: Export, photo: dict) -> list:
    """Of each prompt the one mask (1, H, W), all logits and the prepared photo as SamPredictor has them."""
    ready = prepare(photo["image"], export.size)
    embedding, found = export.embed(ready.tensor), []
    for prompt in photo["prompts"]:
        points, labels = padded(prompt, False)
        logits, ious = export.logits(embedding, points * ready.scale, labels)
        single = chosen(logits, ious, len(labels) + (2 in labels))  # a box has one mask
        found.append((masks_of(single, ready, export.size), logits, ready))
    return found


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0
