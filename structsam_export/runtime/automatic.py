"""`segment_anything.SamAutomaticMaskGenerator` on an export folder: every object of a picture, from grids of points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from structsam_export.errors import UsageError, unknown_name
from structsam_export.runtime.embedded import EmbeddedImage, check_image
from structsam_export.runtime.grids import Crop, crops, point_grids
from structsam_export.runtime.predictor import Predictor
from structsam_export.runtime.regions import (
    area_of,
    box_of,
    compressed,
    distinct,
    mask_of,
    pycocotools,
    run_lengths,
    without_small_regions,
    xywh,
)

Embed = Callable[[Sequence[Crop]], list[EmbeddedImage]]
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


@dataclass(frozen=True)
class Candidate:
    """One mask of a picture: run lengths, box x0 y0 x1 y1, the scores it is chosen by, and where it came from."""

    runs: dict[str, Any]
    box: np.ndarray
    predicted_iou: float
    stability: float
    point: np.ndarray
    crop: Crop


class AutomaticMaskGenerator:
    """Masks of everything in a picture, with the parameters and records of `SamAutomaticMaskGenerator`.

    Args:
        predictor: an export folder's; its current image stays as it is.
        points_per_side: of the grid of points; None: `point_grids` are given.
        points_per_batch: points a decoder call.
        pred_iou_thresh: masks whose IoU the model guesses lower are left out.
        stability_score_thresh, stability_score_offset: masks are left out whose IoU with themselves, cut at the
            threshold plus and minus the offset, is lower.
        box_nms_thresh: of boxes that overlap more the better one stays.
        crop_n_layers: also segment 2 x 2, 4 x 4, ... crops of the picture.
        crop_nms_thresh: the same for masks of several crops; those of smaller crops stay.
        crop_overlap_ratio: share of the picture's shorter side by which crops overlap.
        crop_n_points_downscale_factor: points a side are divided by this from layer to layer.
        point_grids: points (N, 2) in [0, 1] for each layer, instead of `points_per_side`.
        min_mask_region_area: holes and islands of fewer pixels are filled and removed.
        output_mode: "binary_mask" (arrays), "uncompressed_rle" or "coco_rle" (needs pycocotools).

    Raises:
        UsageError: parameters that contradict each other, or a prompt-aware export, which would embed the picture
            once for each point.
        MissingRuntimeError: "coco_rle" without pycocotools.
    """

    def __init__(
        self,
        predictor: Predictor,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        if predictor.model.prompt_aware:
            raise UsageError(
                "A prompt-aware export embeds the picture once for each prompt, and a grid has a thousand. Export "
                "without --prompt-aware to segment everything."
            )
        if output_mode not in OUTPUT_MODES:
            raise unknown_name("output mode", output_mode, OUTPUT_MODES)
        if output_mode == "coco_rle":
            pycocotools()
        if points_per_batch < 1 or crop_n_layers < 0:
            raise UsageError("points_per_batch is at least 1, crop_n_layers at least 0.")
        self.predictor = predictor
        self.point_grids = _grids(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    def generate(self, image: np.ndarray, progress: Callable[[int, int], None] | None = None) -> list[dict[str, Any]]:
        """All masks of a photo, uint8 RGB (H, W, 3).

        Args:
            image: the photo.
            progress: called with the points done and all points.

        Returns:
            a record for each mask: `segmentation` (by `output_mode`), `area` in pixels, `bbox` and `crop_box` (x, y,
            width, height), `predicted_iou`, `stability_score`, `point_coords` [[x, y]]: the point it came from.

        Raises:
            ImageError: another type or shape.
        """
        check_image(image)

        def embed(group: Sequence[Crop]) -> list[EmbeddedImage]:
            return self.predictor.embed([crop.of(image) for crop in group])

        return self._generated((image.shape[0], image.shape[1]), embed, progress)

    def generate_embedded(
        self, embedding: EmbeddedImage, progress: Callable[[int, int], None] | None = None
    ) -> list[dict[str, Any]]:
        """As `generate`, of a photo that `Predictor.embed` has embedded: it is not embedded again.

        Raises:
            UsageError: with `crop_n_layers`, as crops have embeddings of their own.
        """
        if self.crop_n_layers:
            raise UsageError("Crops are embedded one by one. Pass the photo to generate, or crop_n_layers=0.")
        return self._generated(embedding.original_size, lambda group: [embedding], progress)

    def _generated(
        self, size: tuple[int, int], embed: Embed, progress: Callable[[int, int], None] | None
    ) -> list[dict[str, Any]]:
        found = self._candidates(size, embed, progress or (lambda done, of: None))
        if self.min_mask_region_area > 0:
            found = self._tidied(found)
        return [self._record(candidate) for candidate in found]

    def _candidates(self, size: tuple[int, int], embed: Embed, progress: Callable[[int, int], None]) -> list[Candidate]:
        every = crops(size, self.crop_n_layers, self.crop_overlap_ratio)
        total, done = sum(len(self.point_grids[crop.layer]) for crop in every), 0
        found: list[Candidate] = []
        step = self.predictor.model.batch
        for first in range(0, len(every), step):
            group = every[first : first + step]
            for crop, embedding in zip(group, embed(group)):
                points = self.point_grids[crop.layer] * np.array(embedding.original_size)[::-1]
                own: list[Candidate] = []
                for start in range(0, len(points), self.points_per_batch):
                    batch = points[start : start + self.points_per_batch]
                    own += self._prompted(embedding, batch, crop, size)
                    done += len(batch)
                    progress(done, total)
                found += _best(own, [c.predicted_iou for c in own], self.box_nms_thresh, crop)
        if len(every) > 1:
            found = _best(found, [1 / c.crop.area for c in found], self.crop_nms_thresh)
        return found

    def _prompted(
        self, embedding: EmbeddedImage, points: np.ndarray, crop: Crop, size: tuple[int, int]
    ) -> list[Candidate]:
        """Masks of points (N, 2) in pixels of a crop, those that are good enough."""
        coords = self.predictor.transform.apply_coords(points, embedding.original_size)
        decoded = self.predictor.predict_low_res(coords[:, None], np.ones((len(points), 1), int), embedding=embedding)
        found = []
        for point, planes, guesses in zip(points, decoded.low_res, decoded.iou):
            for low, guess in zip(planes, guesses):
                # Before the logits are enlarged, which takes longer than all the rest.
                if self.pred_iou_thresh > 0 and not guess > self.pred_iou_thresh:
                    continue
                if candidate := self._candidate(embedding, low, crop, size):
                    found.append(replace(candidate, predicted_iou=float(guess), point=point + crop.corner))
        return found

    def _candidate(
        self, embedding: EmbeddedImage, low: np.ndarray, crop: Crop, size: tuple[int, int]
    ) -> Candidate | None:
        logits, threshold = embedding.upscaled(low), self.predictor.mask_threshold
        inner = np.count_nonzero(logits > threshold + self.stability_score_offset)
        outer = np.count_nonzero(logits > threshold - self.stability_score_offset)
        stability = np.float32(inner) / np.float32(outer) if outer else np.float32("nan")
        if self.stability_score_thresh > 0 and not stability >= self.stability_score_thresh:
            return None
        mask = logits > threshold
        box = box_of(mask)
        if crop.cuts(box, size):
            return None
        moved = box + np.tile(crop.corner, 2)
        runs = run_lengths(crop.whole(mask, size))
        return Candidate(runs, moved, 0.0, float(stability), np.zeros(2), crop)

    def _tidied(self, found: list[Candidate]) -> list[Candidate]:
        """Without small holes and islands; duplicates that this makes are left out, those that changed first."""
        tidied, scores = [], []
        for candidate in found:
            mask = mask_of(candidate.runs)
            mask, filled = without_small_regions(mask, self.min_mask_region_area, holes=True)
            mask, removed = without_small_regions(mask, self.min_mask_region_area, holes=False)
            changed = filled or removed
            tidied.append(replace(candidate, runs=run_lengths(mask), box=box_of(mask)) if changed else candidate)
            scores.append(0.0 if changed else 1.0)
        return _best(tidied, scores, max(self.box_nms_thresh, self.crop_nms_thresh))

    def _record(self, candidate: Candidate) -> dict[str, Any]:
        runs = candidate.runs
        shown = {"binary_mask": mask_of, "uncompressed_rle": lambda found: found, "coco_rle": compressed}
        return {
            "segmentation": shown[self.output_mode](runs),
            "area": area_of(runs),
            "bbox": xywh(candidate.box),
            "predicted_iou": candidate.predicted_iou,
            "point_coords": [candidate.point.tolist()],
            "stability_score": candidate.stability,
            "crop_box": xywh(np.array(candidate.crop.box)),
        }


def _best(
    found: list[Candidate], scores: Sequence[float], threshold: float, crop: Crop | None = None
) -> list[Candidate]:
    """Candidates that are no duplicates of better ones, best first; boxes are compared in pixels of their crop."""
    moved = np.zeros(4) if crop is None else np.tile(crop.corner, 2)
    boxes = np.array([candidate.box - moved for candidate in found]).reshape(-1, 4)
    return [found[i] for i in distinct(boxes, np.asarray(scores), threshold)]


def _grids(side: int | None, given: Sequence[np.ndarray] | None, layers: int, factor: int) -> list[np.ndarray]:
    if (side is None) == (given is None):
        raise UsageError("Pass either points_per_side or point_grids.")
    if given is not None:
        found = [np.asarray(grid, float) for grid in given]
        if any(g.ndim != 2 or g.shape[1] != 2 or not (np.isfinite(g).all() and len(g)) for g in found):
            raise UsageError("point_grids are arrays (N, 2) of points in [0, 1].")
        if len(found) <= layers:
            raise UsageError(
                f"{len(found)} point_grids are too few: the picture and {layers} layers of crops need one each."
            )
        return found
    assert side is not None
    if factor < 1 or side < 1 or side // factor**layers < 1:
        raise UsageError("points_per_side leaves no point in the last layer of crops. Pass more, or fewer layers.")
    return point_grids(side, layers, factor)
