"""The routes: a body is received within limits, read, and answered by a thread."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from structsam_export import __version__
from structsam_export.errors import StructSAMError
from structsam_export.runtime.features import embedding_of
from structsam_export.serve import openapi
from structsam_export.serve.answers import npy
from structsam_export.serve.guard import refusal
from structsam_export.serve.line import Job, Line
from structsam_export.serve.metrics import Metrics
from structsam_export.serve.pictures import is_id
from structsam_export.serve.refusals import Gone, Refused, busy, refusal_of
from structsam_export.serve.requests import (
    EverythingRequest,
    Form,
    PredictRequest,
    RemoteRequest,
    TokensRequest,
    parsed,
)
from structsam_export.serve.segmenting import Segmenter
from structsam_export.serve.settings import Settings

T = TypeVar("T")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
GONE = 499  # as nginx logs a client that left
# What X-AnyLabeling shows for a model that takes points and rectangles.
WIDGETS = ("button_add_point", "button_remove_point", "button_add_rect", "button_clear", "button_finish_object")


class API:
    """Handlers of one server.

    Args:
        segmenter: answers questions.
        settings: limits.
        clicks, everything: threads for one object, and for all.
        metrics: for /metrics.
    """

    def __init__(
        self, segmenter: Segmenter, settings: Settings, clicks: Line, everything: Line, metrics: Metrics
    ) -> None:
        self.segmenter, self.settings, self.metrics = segmenter, settings, metrics
        self.clicks, self.everything_line = clicks, everything
        self.receiving = 0
        self.ending = False

    def routes(self) -> list[Route]:
        """All of them, as `openapi.document` describes them."""
        return [
            Route("/v1/embed", self.embed, methods=["POST"]),
            Route("/v1/predict", self.predict, methods=["POST"]),
            Route("/v1/everything", self.everything, methods=["POST"]),
            Route("/v1/tokens", self.tokens, methods=["POST"]),
            Route("/v1/embedding", self.embedding, methods=["GET"]),
            Route("/v1/decoder", self.decoder, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/exports", self.exports, methods=["GET"]),
            Route("/healthz", self.health, methods=["GET"]),
            Route("/metrics", self.figures, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/", page, name="page"),
            Route("/{file}", page, name="page"),
            Route("/vendor/{vendored}", page, name="page"),
        ]

    # ---- Questions about pictures

    async def embed(self, request: Request) -> Response:
        """A picture's file in; its name, or with `format=npy` its embedding."""
        form, name = request.query_params.get("format", "json"), request.query_params.get("export")
        if form not in ("json", "npy"):
            raise Refused(422, "format is json or npy.")
        served = self.segmenter.export(name)
        data = await self.body(request)

        def work(job: Job) -> Response:
            one = self.segmenter.embed(served, data)
            if form == "json":
                return JSONResponse(self.segmenter.head(served, one, job))
            if one.embedded.features is None:
                raise Refused(422, "A prompt-aware export has no embedding of a picture alone.")
            return Response(npy(embedding_of(one.embedded.features)), media_type="application/octet-stream")

        return await self.clicks.run(work, gone(request))

    async def embedding(self, request: Request) -> Response:
        """The embedding of a picture that was sent before, for a decoder in a browser: float32, little-endian."""
        name, image = request.query_params.get("export"), request.query_params.get("image", "")
        served = self.segmenter.export(name)
        if not is_id(image):
            raise Refused(422, "image is a picture's name, as /v1/embed gives it.")

        def work(job: Job) -> Response:
            features = self.segmenter.found(served, image).embedded.features
            if features is None:
                raise Refused(422, "A prompt-aware export has no embedding of a picture alone.")
            return Response(np.ascontiguousarray(features, "<f4").tobytes(), media_type="application/octet-stream")

        return await self.clicks.run(work, gone(request))

    async def decoder(self, request: Request) -> Response:
        """An export's decoder, an ONNX file; verified again, as it is read again."""
        served = self.segmenter.export(request.query_params.get("export"))
        name = served.decoder_name()
        if name is None:
            raise Refused(404, "This export has no decoder for browsers. Ask /v1/predict.")
        path = await asyncio.to_thread(served.folder.verified, name)
        return FileResponse(path, media_type="application/octet-stream")

    async def predict(self, request: Request) -> Response:
        """Masks of one object; a body with a `model` is X-AnyLabeling's."""
        body = await self.json(request)
        remote = (await asyncio.to_thread(parsed, Form, body)).model is not None

        def work(job: Job) -> Response:
            if remote:
                return JSONResponse(self.segmenter.remote(parsed(RemoteRequest, body), job))
            return JSONResponse(self.segmenter.predict(parsed(PredictRequest, body), job))

        return await self.clicks.run(work, gone(request))

    async def everything(self, request: Request) -> Response:
        """Masks of all objects."""
        body = await self.json(request)

        def work(job: Job) -> Response:
            return JSONResponse(self.segmenter.everything(parsed(EverythingRequest, body), job))

        return await self.everything_line.run(work, gone(request))

    async def tokens(self, request: Request) -> Response:
        """Maps of merged tokens."""
        body = await self.json(request)

        def work(job: Job) -> Response:
            return JSONResponse(self.segmenter.tokens(parsed(TokensRequest, body), job))

        return await self.everything_line.run(work, gone(request))

    # ---- Questions about the server

    async def models(self, request: Request) -> Response:
        """Exports as X-AnyLabeling lists models."""
        widgets = [{"name": name, "value": None} for name in WIDGETS]
        found: dict[str, Any] = {
            name: {"display_name": name, "widgets": widgets, "params": {}, "batch_processing_mode": None}
            for name in self.segmenter.exports
        }
        return JSONResponse({"success": True, "data": found})

    async def exports(self, request: Request) -> Response:
        """Exports, with what is to know of them, and the limits of the server."""
        limits = {name: getattr(self.settings, name) for name in ("body_bytes", "pixels", "points", "timeout")}
        return JSONResponse(
            {"exports": [served.about() for served in self.segmenter.exports.values()], "limits": limits}
        )

    async def health(self, request: Request) -> Response:
        """200 while requests are taken, 503 while the server ends."""
        state = {"status": "ending" if self.ending else "ok", "version": __version__}
        return JSONResponse(state, 503 if self.ending else 200)

    async def figures(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """This API, described."""
        return JSONResponse(openapi.document())

    # ---- Bodies

    async def json(self, request: Request) -> bytes:
        """A JSON body, not yet parsed.

        Raises:
            Refused: as `body`; or it says that it is something else.
        """
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "Send JSON, with Content-Type: application/json.")
        return await self.body(request)

    async def body(self, request: Request) -> bytes:
        """A request's body.

        Raises:
            Refused: too large, compressed, too slow, or too many at once.
            Gone: the client left before its end.
        """
        most = self.settings.body_bytes
        too_large = Refused(413, f"The body is larger than {most / 1e6:.0f} MB.")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "Send the body as it is, without Content-Encoding.")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > most:
            raise too_large
        if self.receiving >= self.settings.uploads:
            raise busy(1, "Too many bodies arrive at once.")
        self.receiving += 1
        try:
            return await asyncio.wait_for(_received(request, most, too_large), self.settings.body_seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(408, f"The body did not arrive within {self.settings.body_seconds:g} s.") from None
        except ClientDisconnect:
            raise Gone from None
        finally:
            self.receiving -= 1


async def _received(request: Request, most: int, too_large: Refused) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def gone(request: Request) -> Callable[[], Awaitable[None]]:
    """A function that ends when the client has left; the body has been received before."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return left


ROOT = Path(__file__).with_name("page")
PAGE = {str(path.relative_to(ROOT)): path for path in ROOT.rglob("*") if path.is_file()}
PACKED = ".gz"  # files that are kept as browsers take them


async def page(request: Request) -> Response:
    """A file of the page; there are no others."""
    vendored = request.path_params.get("vendored")
    name = f"vendor/{vendored}" if vendored else request.path_params.get("file", "index.html")
    path = PAGE.get(name)
    # Another version comes with another release; its 14 MB need not be read for each visit.
    kept = {"Cache-Control": "private, max-age=86400"} if vendored else {}
    if path is None and (packed := PAGE.get(name + PACKED)) is not None:
        if "gzip" in request.headers.get("accept-encoding", ""):
            kept["Content-Encoding"] = "gzip"
            return FileResponse(packed, media_type=TYPES[Path(name).suffix], headers=kept)
        whole = await asyncio.to_thread(lambda: gzip.decompress(packed.read_bytes()))
        return Response(whole, media_type=TYPES[Path(name).suffix], headers=kept)
    if path is None or path.suffix not in TYPES:
        raise HTTPException(404)
    return FileResponse(path, media_type=TYPES[path.suffix], headers=kept)


# ---- What goes wrong


def refused(request: Request, error: Exception) -> Response:
    """`Refused` as an answer."""
    assert isinstance(error, Refused)
    return refusal(error)


def left(request: Request, error: Exception) -> Response:
    """`Gone`: nobody reads this."""
    return Response(status_code=GONE)


def unknown(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, another method."""
    assert isinstance(error, HTTPException)
    reasons = {404: "There is nothing here. /openapi.json describes the API.", 405: "This route has another method."}
    return refusal(Refused(error.status_code, reasons.get(error.status_code, "Refused."), error.headers))


def failed(request: Request, error: Exception) -> Response:
    """Errors of ours as answers; those that no client causes are the server's own trouble."""
    assert isinstance(error, StructSAMError)
    found = refusal_of(error)
    if found is None:
        raise error
    return refusal(found)


HANDLERS: dict[Any, Callable[[Request, Exception], Response]] = {
    Refused: refused,
    Gone: left,
    HTTPException: unknown,
    StructSAMError: failed,
}
