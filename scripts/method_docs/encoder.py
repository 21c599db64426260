"""The demo model's encoder on one bundled photo, with what it decides about tokens; `overview` uses it too."""

from __future__ import annotations

from typing import Any

import numpy as np
from method_docs.package import (
    LoadedModel,
    Photo,
    Prepared,
    Schedule,
    bundled_photos,
    load_model,
    prepare,
    prompted,
    recording,
)


def demo_on(name: str) -> tuple[LoadedModel, Photo, Prepared]:
    """The demo model, a bundled photo, and the photo as the encoder takes it."""
    loaded = load_model("demo")
    photo = next(photo for photo in bundled_photos() if photo.name == name)
    return loaded, photo, prepare(photo.image, loaded.geometry.image_size, loaded.spec.preprocessing)


def encode(
    loaded: LoadedModel, image: np.ndarray, schedule: Schedule, boxes: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Embedding float32 (1, C, h, w) and decisions by name, of an image float32 (1, 3, S, S) ready for the encoder.

    `boxes` float32 (1, 4) in encoder pixels is the prompt of a prompt-aware schedule.
    """
    import torch

    encoder = loaded.sam.image_encoder
    prompt = None if boxes is None else torch.as_tensor(boxes)
    with (
        torch.no_grad(),
        schedule.patched(encoder),
        prompted(encoder, prompt),
        recording(encoder) as decisions,
    ):
        embedding = encoder(torch.as_tensor(image))
    return embedding.numpy(), dict(decisions)
