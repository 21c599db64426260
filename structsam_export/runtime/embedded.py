"""Photos with their embeddings: of the photo alone, or of the photo and one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from structsam_export.errors import ImageError
from structsam_export.runtime.features import Features, rows
from structsam_export.runtime.images import Prepared, masks_of, prepare, upscaled
from structsam_export.runtime.model import ExportedModel


@dataclass
class EmbeddedImage:
    """A photo that prompts can be decoded on. Nothing in it changes, so that threads may share it.

    Args:
        model: what embedded it.
        original_size, input_size: (height, width) of the photo, and resized in the encoder's square.
        features: float32, the embedding (1, C, h, w) or several tensors (`runtime.features`);
            None where the encoder takes prompts, too, as no embedding is the photo's alone.
        prepared: float32 (1, 3, S, S), only where the encoder takes prompts.
    """

    model: ExportedModel
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    features: Features | None
    prepared: np.ndarray | None = None
    # The last prompt with its embedding, as one value: a mask is often refined with the prompt it came from.
    _last: tuple[bytes, Features] | None = field(default=None, repr=False)

    def features_for(self, box: np.ndarray) -> Features:
        """The features for a prompt's box (4,) in encoder pixels: `features`, or that of this prompt."""
        if self.features is not None:
            return self.features
        assert self.prepared is not None
        last, boxes = self._last, np.asarray(box, np.float32).reshape(1, 4)
        if last is not None and last[0] == boxes.tobytes():
            return last[1]
        found = self.model.encode(self.prepared, boxes)
        self._last = (boxes.tobytes(), found)
        return found

    def upscaled(self, logits: np.ndarray) -> np.ndarray:
        """Low-resolution logits (..., 4h, 4w) in the photo's own size, float32 (..., H, W)."""
        return upscaled(logits, self.model.size, self.input_size, self.original_size)

    def masks(self, logits: np.ndarray) -> np.ndarray:
        """The same above the model's threshold, bool."""
        return masks_of(logits, self.model.size, self.input_size, self.original_size, self.model.mask_threshold)


def embedded(model: ExportedModel, images: Sequence[np.ndarray]) -> list[EmbeddedImage]:
    """Photos, each uint8 RGB (H, W, 3) of any size, with their embeddings; as many an encoder call as the model takes.

    Raises:
        ImageError: another type or shape.
    """
    found: list[EmbeddedImage] = []
    for image in images:
        check_image(image)
    for first in range(0, len(images), model.batch):
        ready = [prepare(image, model.size, model.preprocessing) for image in images[first : first + model.batch]]
        found += _embedded(model, ready)
    return found


def _embedded(model: ExportedModel, ready: Sequence[Prepared]) -> list[EmbeddedImage]:
    if model.prompt_aware:
        return [EmbeddedImage(model, r.original, r.resized, None, r.tensor) for r in ready]
    features = model.encode(np.concatenate([r.tensor for r in ready]))
    return [EmbeddedImage(model, r.original, r.resized, rows(features, slice(i, i + 1))) for i, r in enumerate(ready)]


def check_image(image: object) -> None:
    """Refuse arrays that are no photo.

    Raises:
        ImageError: with what it is.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(f"An image is a NumPy array uint8 (height, width, 3), not a {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"An image is uint8 (height, width, 3), not {image.dtype} {image.shape}. "
            "structsam_export.runtime.read_image makes that of any file."
        )
