"""Numbers that compare two stages: embeddings, masks, merge decisions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def embedding_errors(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> dict[str, float]:
    """Worst over photos of polygraphy's absolute errors and cosine, and max_rel = max|a-b| / max|a|."""
    from structsam_export.backends.polygraphy import hush

    hush()
    from polygraphy.comparator import Comparator, RunResults
    from polygraphy.comparator.compare import CosineSimilarityCompareFunc, SimpleCompareFunc

    results = RunResults()
    results.add([{"image_embeddings": e} for e in first], runner_name="first")
    results.add([{"image_embeddings": e} for e in second], runner_name="second")
    measure = [SimpleCompareFunc(check_error_stat="max"), CosineSimilarityCompareFunc()]
    absolute, cosine = Comparator.compare_accuracy(results, compare_func=measure)
    rows = [next(iter(result.values())) for result in absolute[("first", "second")]]
    angles = [next(iter(result.values())) for result in cosine[("first", "second")]]
    return {
        "max_abs": max(row.max_absdiff for row in rows),
        "mean_abs": max(row.mean_absdiff for row in rows),
        "max_rel": max(float(row.max_absdiff / max(np.abs(a).max(), 1e-12)) for row, a in zip(rows, first)),
        "cosine": min(float(angle.cosine_similarity) for angle in angles),
    }


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean masks; two empty masks agree (1)."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def mask_ious(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> list[float]:
    """IoU of every pair of masks; both are lists over photos of (P, h, w)."""
    return [iou(a, b) for one, two in zip(first, second) for a, b in zip(one, two)]
