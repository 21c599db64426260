"""The application: routes, the page's files, and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from structsam_export.serve.api import API, HANDLERS
from structsam_export.serve.exports import Served
from structsam_export.serve.guard import Guard
from structsam_export.serve.line import Line
from structsam_export.serve.metrics import Metrics
from structsam_export.serve.segmenting import Segmenter
from structsam_export.serve.settings import Settings

PER_EVERYTHING = 4  # clicks that may wait for each request of everything that may


def application(exports: Mapping[str, Served], settings: Settings) -> Starlette:
    """An ASGI application on open exports; its threads live from its startup to its shutdown."""
    segmenter = Segmenter(exports, settings)
    clicks = Line("clicks", settings.workers, settings.queue, settings.timeout)
    everything = Line("everything", 1, max(1, settings.queue // PER_EVERYTHING), settings.timeout)
    metrics = Metrics(segmenter, {"clicks": clicks, "everything": everything})
    api = API(segmenter, settings, clicks, everything, metrics)

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        yield
        clicks.close()
        everything.close()

    before = [
        Middleware(Guard, settings=settings, metrics=metrics),
        Middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "X-Request-Id"],
        ),
    ]
    app = Starlette(routes=api.routes(), middleware=before, exception_handlers=HANDLERS, lifespan=living)
    app.state.api = api
    return app
