"""What a request makes of pictures and prompts: the part of the server that knows no HTTP."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from structsam_export.errors import shortened
from structsam_export.runtime import AutomaticMaskGenerator, EmbeddedImage
from structsam_export.runtime.features import named
from structsam_export.runtime.token_maps import TokenMap, token_maps
from structsam_export.serve import pictures
from structsam_export.serve.answers import floats_as_text, mask_record, run_record
from structsam_export.serve.cache import Cache
from structsam_export.serve.exports import Served
from structsam_export.serve.line import Job
from structsam_export.serve.polygons import polygons
from structsam_export.serve.refusals import Refused
from structsam_export.serve.requests import EverythingRequest, Mark, PredictRequest, RemoteRequest, TokensRequest
from structsam_export.serve.settings import Settings

Masks = tuple[np.ndarray, np.ndarray, np.ndarray]
MAPS = 4 << 20  # bytes of token maps that are kept
LABEL = "AUTOLABEL_OBJECT"  # X-AnyLabeling asks its user for the name of such shapes


@dataclass(frozen=True)
class Embedding:
    """A picture on an export: its name, the embedding, whether it was there, and seconds it took."""

    image: str
    embedded: EmbeddedImage
    cached: bool
    seconds: float


class Segmenter:
    """Answers questions about pictures, each in the thread that calls it.

    Pictures and embeddings are kept within `Settings.cache_bytes` altogether, half for either.
    """

    def __init__(self, exports: Mapping[str, Served], settings: Settings) -> None:
        self.exports, self.settings = exports, settings
        half = settings.cache_bytes // 2
        self.files: Cache[bytes] = Cache(half, len)
        self.maps: Cache[list[TokenMap]] = Cache(MAPS, lambda maps: sum(one.groups.nbytes for one in maps))
        self.embeddings: Cache[EmbeddedImage] = Cache(half, _bytes_of)

    def export(self, name: str | None) -> Served:
        """An export by its name; the first one without.

        Raises:
            Refused: 404.
        """
        if name is None:
            return next(iter(self.exports.values()))
        if name not in self.exports:
            raise Refused(404, f"There is no export '{shortened(name)}'. Here are: {', '.join(self.exports)}.")
        return self.exports[name]

    def embed(self, served: Served, data: bytes) -> Embedding:
        """Embed a picture's file, and keep both. It is not stopped when its client leaves: others may wait for it.

        Raises:
            Refused: see `pictures.read`.
        """
        began, name = time.perf_counter(), pictures.id_of(data)

        def make() -> EmbeddedImage:
            pixels = pictures.read(data, self.settings.pixels)
            return served.predictor.embed([pixels])[0]

        found, cached = self.embeddings.made((served.name, name), make)
        self.files.put(name, data)
        return Embedding(name, found, cached, time.perf_counter() - began)

    def found(self, served: Served, image: str) -> Embedding:
        """The embedding of what a request calls `image`: a name, or a file in base64.

        Raises:
            Refused: the name is not known (any more), or as `embed`.
        """
        if not pictures.is_id(image):
            return self.embed(served, pictures.from_text(image))
        if (kept := self.embeddings.get((served.name, image))) is not None:
            self.embeddings.hits += 1
            return Embedding(image, kept, True, 0.0)
        return self.embed(served, self.file(image))

    def file(self, image: str) -> bytes:
        """The file of what a request calls `image`.

        Raises:
            Refused: 404.
        """
        if not pictures.is_id(image):
            return pictures.from_text(image)
        data = self.files.get(image)
        if data is None:
            raise Refused(404, "This picture is not kept here (any more). Send it to /v1/embed again.")
        return data

    def predict(self, asked: PredictRequest, job: Job) -> dict[str, Any]:
        """Masks of one object.

        Raises:
            Refused, PromptError: what was asked for is not possible.
        """
        served = self.export(asked.export)
        self._check_points(len(asked.points or ()))
        one = self.found(served, asked.image)
        job.check()
        began = time.perf_counter()
        masks, scores, low = self._predict(served, one.embedded, asked)
        decoded = time.perf_counter() - began
        rows = [{"score": float(s), **mask_record(m, asked.encoding)} for m, s in zip(masks, scores)]
        if asked.low_res:
            rows = [{**row, "low_res": floats_as_text(plane[None])} for row, plane in zip(rows, low)]
        return {**self.head(served, one, job), "masks": rows, "decode_ms": _ms(decoded)}

    def _predict(self, served: Served, embedded: EmbeddedImage, asked: PredictRequest) -> Masks:
        points = np.array(asked.points, float) if asked.points else None
        labels = np.array(asked.labels, float) if asked.labels else None
        if points is not None and labels is None:
            labels = np.ones(len(points))
        found: Masks = served.predictor.predict(
            points,
            labels,
            None if asked.box is None else np.array(asked.box),
            self._mask_input(served, asked.mask_input),
            asked.multimask,
            embedding=embedded,
        )
        return found

    def _mask_input(self, served: Served, text: str | None) -> np.ndarray | None:
        if text is None:
            return None
        height, width = served.predictor.model.low_res_shape
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Refused(422, "mask_input is no base64.") from None
        if len(data) != 4 * height * width:
            raise Refused(422, f"mask_input is {len(data)} bytes, not float32 (1, {height}, {width}).")
        return np.frombuffer(data, "<f4").reshape(1, height, width).astype(np.float32)

    def everything(self, asked: EverythingRequest, job: Job) -> dict[str, Any]:
        """All objects of a picture.

        Raises:
            Refused, UsageError: what was asked for is not possible.
            Gone: nobody waits any longer.
        """
        served = self.export(asked.export)
        generator = AutomaticMaskGenerator(
            served.predictor,
            points_per_side=asked.points_per_side,
            pred_iou_thresh=asked.min_iou,
            stability_score_thresh=asked.min_stability,
            min_mask_region_area=asked.min_area,
            points_per_batch=32,  # between two of them it is noticed that a client has left
            output_mode="uncompressed_rle",
        )
        one = self.found(served, asked.image)
        began = time.perf_counter()
        records = generator.generate_embedded(one.embedded, lambda done, of: job.check())
        decoded = time.perf_counter() - began
        masks = [run_record(record, asked.encoding) for record in records]
        return {**self.head(served, one, job), "masks": masks, "decode_ms": _ms(decoded)}

    def tokens(self, asked: TokensRequest, job: Job) -> dict[str, Any]:
        """Which tokens of a picture each block treats as one, as the export's own encoder decides.

        Raises:
            Refused, UsageError: there is no such map.
        """
        served, data = self.export(asked.export), self.file(asked.image)
        name = pictures.id_of(data)

        def make() -> list[TokenMap]:
            return token_maps(served.folder, pictures.read(data, self.settings.pixels))

        maps, cached = self.maps.made((served.name, name), make)
        rows = [
            {"block": one.block, "kind": one.kind, "window": one.window, "groups": _numbered(one.groups)}
            for one in maps
        ]
        height, width = maps[0].groups.shape
        about = {"image": name, "export": served.name, "cached": cached, "grid": [height, width], "layers": rows}
        return {**about, "total_ms": _ms(time.perf_counter() - job.asked)}

    def remote(self, asked: RemoteRequest, job: Job) -> dict[str, Any]:
        """The same as `predict` for X-AnyLabeling: polygons of the best mask.

        Raises:
            Refused, PromptError: what was asked for is not possible.
        """
        served = self.export(asked.model)
        self._check_points(len(asked.params.marks))
        one = self.found(served, asked.image)
        prompt = _prompt_of(asked.params.marks)
        if prompt is None:
            return {"success": True, "data": {"shapes": [], "description": ""}}
        masks, scores, _ = served.predictor.predict(**prompt, multimask_output=False, embedding=one.embedded)
        shapes = [
            {"label": LABEL, "shape_type": "polygon", "points": [*line, line[0]], "score": float(scores[0])}
            for line in polygons(masks[0], asked.params.epsilon_factor)
        ]
        return {"success": True, "data": {"shapes": shapes, "description": "", "replace": False}}

    def head(self, served: Served, one: Embedding, job: Job) -> dict[str, Any]:
        """What every answer about an embedded picture begins with."""
        height, width = one.embedded.original_size
        return {
            "image": one.image,
            "export": served.name,
            "width": width,
            "height": height,
            "cached": one.cached,
            "embed_ms": _ms(one.seconds),
            "total_ms": _ms(time.perf_counter() - job.asked),
        }

    def _check_points(self, count: int) -> None:
        if count > self.settings.points:
            raise Refused(422, f"{count} points are more than the {self.settings.points} that a prompt may have here.")


def _prompt_of(marks: list[Mark]) -> dict[str, Any] | None:
    """Arguments of `Predictor.predict` from marks: all points, and the last rectangle."""
    points = [mark.data for mark in marks if mark.type == "point"]
    labels = [float(mark.label > 0) for mark in marks if mark.type == "point"]
    boxes = [mark.data for mark in marks if mark.type == "rectangle"]
    if any(len(point) != 2 for point in points) or any(len(box) != 4 for box in boxes):
        raise Refused(422, "A point mark has two numbers, a rectangle four.")
    if not points and not boxes:
        return None
    box = None
    if boxes:
        x0, y0, x1, y1 = boxes[-1]
        box = np.array([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)])
    return {
        "point_coords": np.array(points, float) if points else None,
        "point_labels": np.array(labels) if points else None,
        "box": box,
    }


def _numbered(groups: np.ndarray) -> list[int]:
    """Groups (H, W) row by row, numbered from 0."""
    numbers: list[int] = np.unique(groups, return_inverse=True)[1].ravel().tolist()
    return numbers


def _bytes_of(one: EmbeddedImage) -> int:
    """What an embedding holds, that of its last prompt included."""
    arrays = [*named(one.features).values()] if one.features is not None else []
    if one.prepared is not None:
        arrays.append(one.prepared)
    largest: int = sum(array.nbytes for array in arrays)
    if one.features is None:
        h, w = one.model.low_res_shape
        largest += 4 * 256 * (h // 4) * (w // 4)
    return largest


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
