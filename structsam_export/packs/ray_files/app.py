"""SAM on Ray Serve: encoders that gather photos to batches, decoders in replicas, and an address in front of both.

An embedding stays where its encoder made it, in Ray's object store. `Sam` keeps a handle to it and passes that on, so
that every decoder of the machine reads the same memory, and a click on a known photo costs the decoder only.

What is wrong with a request is an answer, `{"status": ..., "error": ...}`, and no exception: those are for replicas
that failed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps, UnidentifiedImageError
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from structsam_export.errors import PromptError
from structsam_export.runtime.decoding import decoder_feed
from structsam_export.runtime.images import masks_of, prepare
from structsam_export.runtime.prompts import prompt_batch, prompt_of_photo
from structsam_export.runtime.transforms import transform_of

HERE = Path(__file__).resolve().parent
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BODY, MAX_PIXELS, MAX_POINTS = 64 << 20, 50_000_000, 256
KEPT = 64  # photos whose embeddings are kept
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "gpu": ["CUDAExecutionProvider"]}


def settings() -> dict[str, Any]:
    """`sam.json`: sides of photos and masks, preprocessing, images a call, device, threads of a replica."""
    found: dict[str, Any] = json.loads((HERE / "sam.json").read_text(encoding="utf-8"))
    return found


def session(name: str, about: dict[str, Any]) -> Any:
    """A graph in ONNX Runtime, on the device that the pack is for."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = about["threads"]
    made = ort.InferenceSession(str(HERE / name), options, providers=PROVIDERS[about["device"]])
    if made.get_providers()[0] != PROVIDERS[about["device"]][0]:  # ONNX Runtime goes on with the CPU by itself
        raise RuntimeError("There is no CUDA for ONNX Runtime here: pip install onnxruntime-gpu, or pack --device cpu")
    return made


def refused(status: int, error: str) -> dict[str, Any]:
    """The answer to a request that cannot be answered."""
    return {"status": status, "error": error}


@serve.deployment(max_ongoing_requests=16)
class Encoder:
    """A photo's file -> its embedding."""

    def __init__(self) -> None:
        self.about = settings()
        self.session = session("encoder.onnx", self.about)
        self.encode.set_max_batch_size(self.about["batch"])

    async def __call__(self, data: bytes) -> dict[str, Any]:
        """`features` float32 (1, C, h, w), sizes of the photo and of what it fills of the square, and the batch it was
        in; or what is wrong with it, which is no matter of the others in its batch.
        """
        try:
            photo = await asyncio.to_thread(self.prepared, data)
        except UnidentifiedImageError:
            return refused(422, f"This is no photo: none of {', '.join(FORMATS)}")
        except Exception as error:  # Pillow raises whatever its decoders meet
            return refused(422, f"This is no photo: {str(error)[:200]}")
        features, together = await self.encode(photo.tensor)
        return {"features": features, "original": photo.original, "resized": photo.resized, "batch": together}

    def prepared(self, data: bytes) -> Any:
        """The photo in the encoder's square; its size is judged before it is decoded."""
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS}")
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        return prepare(pixels, self.about["image_size"], self.about["preprocessing"])

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def encode(self, tensors: list[Any]) -> list[Any]:
        """Photos that came at the same time, in one call; its batch is fixed, what is missing is filled up."""
        missing = self.about["batch"] - len(tensors)
        images = np.concatenate([*tensors, *tensors[-1:] * missing])
        found = await asyncio.to_thread(self.session.run, ["image_embeddings"], {"image": images})
        return [(found[0][i : i + 1], len(tensors)) for i in range(len(tensors))]


@serve.deployment(max_ongoing_requests=4)
class Decoder:
    """An embedding and a prompt -> masks of the photo's size."""

    def __init__(self) -> None:
        self.about = settings()
        self.session = session("decoder.onnx", self.about)
        self.transform = transform_of(self.about["preprocessing"], self.about["image_size"])

    async def __call__(self, embedded: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        """The answer of `/predict`; where the encoder refused, its answer."""
        if "error" in embedded:
            return embedded
        try:
            return await asyncio.to_thread(self.masks, embedded, asked)
        except PromptError as error:
            return refused(422, str(error))

    def masks(self, embedded: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        """Masks as PNG files, best first by the model's own guess.

        Raises:
            PromptError: it is no prompt for this photo.
        """
        original, side = embedded["original"], self.about["mask_side"]
        points, labels = asked.get("points"), asked.get("labels")
        if points is not None and labels is None:
            labels = [1] * len(points)
        arrays = prompt_of_photo(self.transform, original, points, labels, asked.get("box"), None)
        prompt = prompt_batch(*arrays, (side, side))
        feed = decoder_feed(embedded["features"], prompt.coords, prompt.labels, prompt.masks)
        logits, scores = self.session.run(["low_res_masks", "iou_predictions"], feed)
        chosen = slice(1, None) if asked.get("multimask", True) else slice(0, 1)
        found = masks_of(logits[0, chosen], self.about["image_size"], embedded["resized"], original)
        best = np.argsort(-scores[0, chosen], kind="stable")
        rows = [{"score": float(scores[0, chosen][i]), "png": png(found[i])} for i in best]
        return {"height": original[0], "width": original[1], "masks": rows}


def png(mask: Any) -> str:
    """A mask (H, W) as a PNG file of one bit a pixel, in base64."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@serve.deployment(max_ongoing_requests=64, max_queued_requests=64)
class Sam:
    """`POST /embed` (a photo's file) and `POST /predict` (JSON). It computes nothing, so that one replica is enough."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.kept: OrderedDict[str, Any] = OrderedDict()

    async def __call__(self, request: Request) -> Response:
        """Find the route, and answer."""
        routes = {"/embed": self.embed, "/predict": self.predict}
        if request.url.path == "/healthz":
            return JSONResponse({"status": "ok"})
        if request.url.path not in routes or request.method != "POST":
            return answer(refused(404, "POST a photo to /embed, or JSON to /predict."))
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return answer(refused(413, f"A body has at most {MAX_BODY} bytes."))
        return answer(await routes[request.url.path](bytes(body)))

    async def embed(self, data: bytes) -> dict[str, Any]:
        """Embed a photo, or find it: its name, SHA-256 of its file."""
        name = hashlib.sha256(data).hexdigest()
        known = name in self.kept
        found = await self.handle(name, data)
        if "error" in found:
            self.kept.pop(name, None)
            return dict(found)
        height, width = found["original"]
        return {"image": name, "height": height, "width": width, "cached": known, "batch": found["batch"]}

    def handle(self, name: str, data: bytes) -> Any:
        """The handle to a photo's embedding; the encoder is asked once, however many ask for it at once."""
        if name not in self.kept:
            self.kept[name] = self.encoder.remote(data)
        self.kept.move_to_end(name)
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return self.kept[name]

    async def predict(self, data: bytes) -> dict[str, Any]:
        """Masks of one prompt on a photo, by its name or its file in base64."""
        try:
            asked = json.loads(data)
            name = asked["image"]
            count = len(asked.get("points") or ())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return refused(422, 'A request is JSON: {"image": NAME, "points": [[x, y]], "labels": [1], "box": [...]}.')
        if count > MAX_POINTS or not isinstance(name, str):
            return refused(422, f"A prompt has at most {MAX_POINTS} points, and an image is a text.")
        if len(name) == 64:
            if name not in self.kept:
                return refused(404, "This photo is not kept here (any more). Send it to /embed again.")
            data = b""
        else:
            try:
                data = base64.b64decode(name, validate=True)
            except ValueError:
                return refused(422, "An image is the name that /embed gave, or a file in base64.")
            name = hashlib.sha256(data).hexdigest()
        found = await self.decoder.remote(self.handle(name, data), {k: v for k, v in asked.items() if k != "image"})
        if "error" in found and name in self.kept and found["error"].startswith("This is no photo"):
            self.kept.pop(name, None)
        return {"image": name, **found}


def answer(found: dict[str, Any]) -> Response:
    """As JSON, with its status."""
    return JSONResponse(found, status_code=found.get("status", 200))


def bound(deployment: Any, *arguments: Any) -> Any:
    """A deployment with its arguments; what Ray's decorator makes of a class, its type does not show."""
    return deployment.bind(*arguments)


application = bound(Sam, bound(Encoder), bound(Decoder))
