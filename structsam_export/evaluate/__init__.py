"""Masks against ground truth on a data set: mIoU, boundary IoU, Dice, resumable image by image.

`evaluate` is the library's function: any models, one pass over the images, so that each image is read once and the
unpatched model runs once for all it is compared with. `command.run` is what the command calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from structsam_export.console import stop_if_interrupted
from structsam_export.errors import BadInputError, StructSAMError, shortened, unknown_name
from structsam_export.evaluate.store import Store, key_of

if TYPE_CHECKING:
    from structsam_export.datasets import Sample
    from structsam_export.evaluate.predictors import Predictor

__all__ = ["VERSION", "Results", "evaluate"]

# Goes into every result's key: raise it whenever the same model and image would give other figures.
VERSION = 1


@dataclass
class Results:
    """Results in the order of the samples.

    `images` holds one entry an image: `name`, `group`, `digest`, `objects` (their number), `box_filled` (IoU of the
    filled bounding boxes) and `scores`, by model and metric, means over the image's objects. `skipped` holds `name`
    and `why`.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    reused: int = 0

    @property
    def objects(self) -> int:
        return sum(image["objects"] for image in self.images)


def evaluate(
    samples: Sequence[Sample],
    predictors: Sequence[Predictor],
    *,
    protocol: str = "sam",
    prompt: str = "box",
    store: Store | None = None,
    skip_bad: bool = False,
    say: Callable[[str], None] | None = None,
) -> Results:
    """Draw the objects of every image with every model, and compare them with the true masks.

    Args:
        samples: images with their masks.
        predictors: the models; names must differ.
        protocol: a key of `protocols.PROTOCOLS`.
        prompt: "box" or "point", derived from the true masks.
        store: where results are kept and looked up; None: in memory only.
        skip_bad: leave out images that cannot be read or whose masks cannot be drawn, and list them.
        say: called with the image's name after each.

    Raises:
        UsageError: unknown protocol or prompt.
        BadInputError: an image or its masks cannot be used (without `skip_bad`), or none can.
    """
    check_names(protocol, prompt)
    facts = facts_of(protocol, prompt)
    results = Results()
    for sample in samples:
        stop_if_interrupted()
        try:
            found = one_image(sample, predictors, facts, store, results)
        except Exception as error:
            results.skipped.append({"name": sample.name, "why": why_skipped(error, skip_bad=skip_bad)})
        else:
            results.images.append(found)
        if say is not None:
            say(sample.name)
    if not results.images:
        first = f" The first, {results.skipped[0]['name']}: {results.skipped[0]['why']}" if results.skipped else ""
        raise BadInputError(f"None of {len(results.skipped)} images can be used. Check the data set's folder.{first}")
    return results


def why_skipped(error: Exception, *, skip_bad: bool) -> str:
    """Why an image is left out; reading it may have failed, or drawing its masks.

    Raises:
        BadInputError: an image that cannot be used, without `skip_bad`.
        Exception: what the image has no part in.
    """
    if isinstance(error, BadInputError):
        if not skip_bad:
            raise hinted(error) from error
        return str(error)
    if not skip_bad or isinstance(error, StructSAMError):
        raise error
    return f"its masks cannot be drawn ({type(error).__name__}: {shortened(error)})."


def hinted(error: BadInputError) -> BadInputError:
    """The error of an unusable image, with what else can be done about it."""
    return type(error)(f"{error} Or pass --skip-bad to leave such images out.")


def facts_of(protocol: str, prompt: str) -> dict[str, Any]:
    """What results depend on besides model and image."""
    return {"version": VERSION, "protocol": protocol, "prompt": prompt}


def check_names(protocol: str, prompt: str) -> None:
    """Refuse an unknown protocol or prompt.

    Raises:
        UsageError: with the known names.
    """
    from structsam_export.evaluate.protocols import PROMPTS, PROTOCOLS

    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    if prompt not in PROMPTS:
        raise unknown_name("prompt", prompt, PROMPTS)


def one_image(
    sample: Sample, predictors: Sequence[Predictor], facts: dict[str, Any], store: Store | None, results: Results
) -> dict[str, Any]:
    """The results of one image, from the store where it has them."""
    digest = sample.digest()
    keys = {p.name: key_of({**facts, "model": p.identity, "digest": digest}) for p in predictors}
    kept = store.get(sample.name) if store is not None else {}
    scores = kept.get("scores", {}) if kept.get("digest") == digest else {}
    missing = [p for p in predictors if scores.get(p.name, {}).get("key") != keys[p.name]]
    if missing:
        made = scored(sample, missing, facts, keys)
        kept = {
            "name": sample.name,
            "group": sample.group,
            "digest": digest,
            **made,
            "scores": {**scores, **made["scores"]},
        }
        if store is not None:
            store.put(sample.name, kept)
    else:
        results.reused += 1
    return {**kept, "group": sample.group, "scores": {p.name: kept["scores"][p.name] for p in predictors}}


def scored(
    sample: Sample, predictors: Sequence[Predictor], facts: dict[str, Any], keys: dict[str, str]
) -> dict[str, Any]:
    """One image through some models: `objects`, `box_filled` and `scores`, with the values of every object."""
    from statistics import fmean

    from structsam_export.evaluate import metrics
    from structsam_export.evaluate.protocols import PROTOCOLS, filled_boxes
    from structsam_export.metrics import iou

    cases, outlines, scores = {}, [], {}  # type: ignore[var-annotated]
    for predictor in predictors:
        view = predictor.size, predictor.preprocessing
        if view not in cases:
            cases[view] = PROTOCOLS[facts["protocol"]](sample, *view, facts["prompt"])
        case = cases[view]
        outlines = outlines or [metrics.boundary(mask) for mask in case.truth]  # the same whatever the view
        each = metrics.scores(case.draw(predictor.logits(case)), case.truth, outlines)
        means = {name: fmean(values) for name, values in each.items()}
        scores[predictor.name] = {"key": keys[predictor.name], **means, "each": each}
        stop_if_interrupted()
    filled = fmean(iou(box, mask) for box, mask in zip(filled_boxes(case.truth), case.truth))
    return {"objects": len(case.truth), "box_filled": filled, "scores": scores}
