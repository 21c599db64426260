"""Schedules really evaluated, image by image: kept on disk, so that nothing is computed twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from structsam_export.config import ExportConfig
from structsam_export.console import progress, stop_if_interrupted
from structsam_export.datasets import Sample
from structsam_export.eager import own_copy
from structsam_export.evaluate.predictors import Eager, dense_predictor, identity_of
from structsam_export.evaluate.protocols import PROTOCOLS, Case
from structsam_export.evaluate.statistics import Interval, intervals
from structsam_export.evaluate.store import Store, key_of
from structsam_export.metrics import iou
from structsam_export.models import LoadedModel
from structsam_export.sweep.parallel import each_image
from structsam_export.tune.space import job_of

VERSION = 1  # raise it whenever the same schedule and image would give other figures


@dataclass
class Measurer:
    """A model and images on which schedules are compared with it.

    Args:
        loaded: the model.
        store: where figures are kept.
        prompt: "box" or "point".
        true: the samples' masks are true ones. Otherwise loss is the disagreement with the unpatched model.
        workers: images worked on at once, each with a copy of the model and one torch thread.
    """

    loaded: LoadedModel
    store: Store
    prompt: str = "box"
    true: bool = True
    workers: int = 1
    seconds: float = 0.0  # of work, of all workers together, and how many schedules x images it was
    done: int = 0
    _copies: list[LoadedModel] = field(default_factory=list)
    _drawn: dict[str, np.ndarray] = field(default_factory=dict)  # by image: the unpatched model's masks, in bits

    def measure(
        self, title: str, configs: Sequence[ExportConfig], samples: Sequence[Sample]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate what the store does not have yet, with a bar that counts images.

        Args:
            title: of the bar.
            configs: the schedules.
            samples: the images.

        Returns:
            Loss and disagreement, float64 (configs, samples): mIoU of the unpatched model less the schedule's, mean
            over the image's objects; and 1 - IoU with the unpatched model's masks. Without true masks both are alike.
        """
        keys = [
            key_of({**identity_of(job_of(c, self.loaded)), "version": VERSION, "prompt": self.prompt}) for c in configs
        ]
        named = dict(zip(keys, configs))
        with progress() as bar:
            task = bar.add_task(f"{title}, {len(configs)} schedules", total=len(samples))
            self.fill(named, samples, lambda: bar.advance(task))
        found = np.zeros((2, len(configs), len(samples)))
        for column, sample in enumerate(samples):
            kept = self.store.get(sample.name)["scores"]
            for row, key in enumerate(keys):
                found[:, row, column] = kept[key]
        return found[0], found[1]

    def fill(self, named: Mapping[str, ExportConfig], samples: Sequence[Sample], say: Callable[[], None]) -> None:
        """Put into the store what it lacks."""
        while len(self._copies) < self.workers:
            self._copies.append(own_copy(self.loaded) if self.workers > 1 else self.loaded)

        def work(loaded: LoadedModel, sample: Sample) -> None:
            self.one_image(sample, named, loaded)
            say()

        each_image(samples, self._copies, work)

    def one_image(self, sample: Sample, named: Mapping[str, ExportConfig], loaded: LoadedModel) -> None:
        """The figures of one image that the store lacks."""
        digest, kept = sample.digest(), self.store.get(sample.name)
        scores: dict[str, list[float]] = kept.get("scores", {}) if kept.get("digest") == digest else {}
        missing = {key: config for key, config in named.items() if key not in scores}
        if not missing:
            return
        began = time.perf_counter()
        case: Case = PROTOCOLS["sam"](sample, loaded.geometry.image_size, loaded.spec.preprocessing, self.prompt)
        made = scored(case, self.dense(digest, case, loaded), missing, loaded, self.true)
        self.seconds += time.perf_counter() - began
        self.done += len(missing)
        self.store.put(sample.name, {"name": sample.name, "digest": digest, "scores": {**scores, **made}})

    def dense(self, digest: str, case: Case, loaded: LoadedModel) -> np.ndarray:
        """The unpatched model's masks of an image, drawn once: bool (objects, height, width)."""
        shape = np.shape(case.truth)
        if digest not in self._drawn:
            self._drawn[digest] = np.packbits(case.draw(dense_predictor(loaded).logits(case)))
        return np.unpackbits(self._drawn[digest], count=int(np.prod(shape))).reshape(shape).astype(bool)


def scored(
    case: Case, dense: np.ndarray, named: Mapping[str, ExportConfig], loaded: LoadedModel, true: bool
) -> dict[str, list[float]]:
    """[loss, disagreement] of each schedule on one image, beside the masks `dense`; see `Measurer.measure`."""
    base = fmean(iou(a, b) for a, b in zip(dense, case.truth))
    made = {}
    for key, config in named.items():
        stop_if_interrupted()
        job = job_of(config, loaded)
        masks = case.draw(Eager(job.label, {}, loaded, job.schedule).logits(case))
        apart = 1 - fmean(iou(a, b) for a, b in zip(masks, dense))
        loss = base - fmean(iou(a, b) for a, b in zip(masks, case.truth)) if true else apart
        made[key] = [loss, apart]
    return made


def halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Selection and held-out half: within each group every second image, in an order that only names decide.

    A group of one image belongs to the selection half, and is not held out.
    """
    import hashlib

    groups: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: hashlib.sha256(s.name.encode()).hexdigest()):
        groups.setdefault(sample.group, []).append(sample)
    return [s for g in groups.values() for s in g[::2]], [s for g in groups.values() for s in g[1::2]]


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples at even distances: groups, which follow each other, by their sizes."""
    chosen = min(count, len(samples))
    return [samples[(2 * i + 1) * len(samples) // (2 * chosen)] for i in range(chosen)]


def summary(values: np.ndarray) -> list[Interval]:
    """Mean over images of each row (rows, samples), with bootstrap intervals.

    Images of all groups count alike, other than in `evaluate`: a half may hold a single image of a group.
    """
    return intervals([values.T])


def errors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over images of each row (rows, samples), and its standard error; 0 where there is one image."""
    count = values.shape[1]
    deviation = values.std(1, ddof=1) if count > 1 else np.zeros(len(values))
    return values.mean(1), deviation / np.sqrt(count)


def plain(config: ExportConfig) -> dict[str, Any]:
    """What a report says of a schedule."""
    names = ("method", "variant", "rate", "layers", "mlp", "mlp_density")
    return {name: getattr(config, name) for name in names}
