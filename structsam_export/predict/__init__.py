"""`predict`: pictures and prompts in; masks, COCO records and an overlay out, all of them or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.console import progress
from structsam_export.drafts import new_folder_at
from structsam_export.errors import UsageError
from structsam_export.folder import ExportFolder
from structsam_export.predict.asked import Asked
from structsam_export.predict.outputs import RECORDS, names_of, write_picture, write_records
from structsam_export.runtime.automatic import AutomaticMaskGenerator
from structsam_export.runtime.embedded import EmbeddedImage
from structsam_export.runtime.pictures import image_size, read_image
from structsam_export.runtime.predictor import Predictor
from structsam_export.runtime.regions import box_of, compressed, mask_of, pycocotools, run_lengths, xywh

Report = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """Masks of one picture: `masks` bool (N, H, W) and a record for each, without its file."""

    masks: list[np.ndarray]
    records: list[dict[str, Any]]


def run(
    folder: Path,
    pictures: Sequence[Path],
    asked: Asked,
    *,
    backend: str = "auto",
    checkpoint: str | None = None,
    output: Path | None = None,
    force: bool = False,
) -> tuple[Report, Path]:
    """Draw masks of pictures, and write them.

    Args:
        folder: an export folder.
        pictures: files; the prompts are for each of them.
        asked: the prompts, or everything.
        backend, checkpoint: see `runtime.Predictor`.
        output: the folder to make; None: predictions/<name of the export folder>.
        force: replace an earlier one.

    Returns:
        what `predictions.json` holds, and the folder.

    Raises:
        UsageError: prompts that contradict each other or lie outside a picture, or an output that exists.
        ImageError: a picture that cannot be read.
        ArtifactError, MissingRuntimeError: see `runtime.Predictor`.
    """
    if not pictures:
        raise UsageError("There is no picture. Pass at least one.")
    pycocotools()
    for path in pictures:  # before the model is loaded, whatever can be refused
        asked.check(path, image_size(path))
    export = ExportFolder.read(folder)
    target = output or Path("predictions") / folder.absolute().name
    with (
        new_folder_at(target, RECORDS, "a folder of predictions", force=force) as partial,
        Predictor(export, backend, checkpoint=checkpoint) as predictor,
        _bar(len(pictures)) as update,
    ):
        names = names_of(pictures)
        rows = [
            write_picture(partial, name, path, image, drawn.masks, drawn.records, asked)
            for name, path, (image, drawn) in zip(names, pictures, _each(predictor, pictures, asked, update))
        ]
        report = {
            "schema": 1,
            "export": {"folder": str(folder), "backend": predictor.model.backend},
            "asked": asked.to_dict(),
            "images": rows,
        }
        write_records(partial, report)
    return report, target


def _each(
    predictor: Predictor, pictures: Sequence[Path], asked: Asked, update: Callable[[float], None]
) -> Iterator[tuple[np.ndarray, Drawn]]:
    """Pictures in order with their masks; as many are embedded at once as the export takes."""
    if asked.everything is not None:
        generator = AutomaticMaskGenerator(predictor, **asked.everything, output_mode="uncompressed_rle")
        for i, path in enumerate(pictures):
            image = read_image(path)
            yield image, _everything(generator, image, lambda done, of, i=i: update(i + done / of))  # type: ignore[misc]
        return
    step = predictor.model.batch
    for first in range(0, len(pictures), step):
        images = [read_image(path) for path in pictures[first : first + step]]
        for i, (image, embedding) in enumerate(zip(images, predictor.embed(images)), first + 1):
            yield image, _prompted(predictor, embedding, asked)
            update(i)


@contextmanager
def _bar(count: int) -> Iterator[Callable[[float], None]]:
    """A progress bar; yields a function that is told how many pictures are done."""
    with progress() as bar:
        task = bar.add_task("pictures", total=count)
        yield lambda done: bar.update(task, completed=done)


def _prompted(predictor: Predictor, embedding: EmbeddedImage, asked: Asked) -> Drawn:
    masks, records = [], []
    for prompt in asked.prompts():
        drawn, scores, _ = predictor.predict(**prompt.arrays(), multimask_output=asked.multimask, embedding=embedding)
        for mask, score in zip(drawn, scores):
            runs = run_lengths(mask)
            masks.append(mask)
            records.append(
                {
                    "segmentation": compressed(runs),
                    "area": int(mask.sum()),
                    "bbox": xywh(box_of(mask)),
                    "predicted_iou": float(score),
                    "prompt": prompt.to_dict(),
                }
            )
    return Drawn(masks, records)


def _everything(generator: AutomaticMaskGenerator, image: np.ndarray, tell: Callable[[int, int], None]) -> Drawn:
    found = sorted(generator.generate(image, tell), key=lambda record: -record["area"])
    masks = [mask_of(record["segmentation"]) for record in found]
    return Drawn(masks, [{**record, "segmentation": compressed(record["segmentation"])} for record in found])
