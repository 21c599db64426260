"""What the picture shows: the bundled photo of coins through the plain and through the merged demo model.

It is the evaluation's data set `bundled-coins`, shown with its protocol, so that docs/accuracy.md has the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from method_docs.encoder import encode
from overview.package import (
    ExportConfig,
    decoder_of,
    iou,
    load_model,
    open_dataset,
    paper_macs,
    resolve,
    sam_case,
)

DATASET, METHOD, RATE, BLOCK = "bundled-coins", "structsam", 0.5, 5


@dataclass(frozen=True)
class Comparison:
    """One photo, uint8 (h, w, 3), with P objects, each prompted by its box.

    `groups` (H, W) int: tokens of one number merge in the block shown; the grid covers a square of max(h, w) pixels.
    `plain` and `merged` are masks bool (P, h, w); `macs` are the encoder's, plain then merged, as the papers count.
    `accuracy` is the mean IoU of either with the true masks, `agreement` that of merged with plain masks.
    """

    image: np.ndarray
    groups: np.ndarray
    plain: np.ndarray
    merged: np.ndarray
    macs: tuple[int, int]
    accuracy: tuple[float, float]
    agreement: float


def compare() -> Comparison:
    """Run the demo model on the photo, plain and with METHOD at RATE in all blocks."""
    loaded, sample = load_model("demo"), open_dataset(DATASET).samples()[0]
    geometry = loaded.geometry
    case = sam_case(sample, geometry.image_size, loaded.spec.preprocessing, "box")
    decode = decoder_of(loaded)
    configs = ExportConfig(method="none", rate=None), ExportConfig(method=METHOD, rate=RATE)
    schedules = [resolve(config, geometry) for config in configs]
    embeddings, decisions = zip(*(encode(loaded, case.image, schedule) for schedule in schedules))
    plain, merged = (case.draw(decode(embedding, case.coords, case.labels)) for embedding in embeddings)
    return Comparison(
        sample.image(),
        decisions[1][f"plan.{BLOCK}"].plan.token_groups(geometry.window_grid(BLOCK)),
        plain,
        merged,
        (paper_macs(geometry), paper_macs(geometry, schedules[1].blocks)),
        (mean_iou(plain, case.truth), mean_iou(merged, case.truth)),
        mean_iou(merged, plain),
    )


def mean_iou(masks: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> float:
    """Mean over pairs of masks bool (h, w)."""
    return float(np.mean([iou(mask, other) for mask, other in zip(masks, others)]))
