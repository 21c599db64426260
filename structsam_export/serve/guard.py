"""What every request passes first: whose page it comes from, who asks, and what the answer must say."""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from structsam_export.reading import is_out_of_memory
from structsam_export.serve.logs import log
from structsam_export.serve.metrics import Metrics
from structsam_export.serve.refusals import Refused
from structsam_export.serve.settings import Settings

# The page runs its own files and nothing else; WebAssembly is its decoder.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
ALWAYS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-store",
}
METHODS = ("GET", "HEAD", "POST", "OPTIONS")


class Guard:
    """Refuses requests of other origins, under other names and without the token; counts and logs all of them."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, size = time.perf_counter(), 500, 0
        request_id = scope["request_id"] = uuid.uuid4().hex[:12]
        headers = Headers(scope=scope)
        allowed = self._allowed_origin(headers)

        async def answer(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                self._complete(MutableHeaders(scope=message), request_id, allowed)
            size += len(message.get("body", b""))
            await send(message)

        try:
            try:
                self._check(scope, headers)
            except Refused as refused:
                await refusal(refused)(scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except Exception as error:
            await failure(error, request_id)(scope, receive, answer)
        finally:
            self._record(scope, status, size, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, size: int, seconds: float) -> None:
        # The route, not the path: what a client writes there is its own business.
        route = getattr(scope.get("route"), "path", "other") or "page"
        self.metrics.count(route, status, seconds)
        fields: dict[str, Any] = {
            "id": scope["request_id"],
            "method": scope["method"] if scope["method"] in METHODS else "other",
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            "bytes": size,
        }
        log("request", logging.INFO if status < 500 else logging.ERROR, **fields)

    def _complete(self, headers: MutableHeaders, request_id: str, allowed: str | None) -> None:
        for name, value in ALWAYS.items():
            headers.setdefault(name, value)
        headers["X-Request-Id"] = request_id
        headers["Cross-Origin-Resource-Policy"] = "cross-origin" if allowed else "same-origin"
        headers.add_vary_header("Origin")

    def _allowed_origin(self, headers: Mapping[str, str]) -> str | None:
        origin = headers.get("origin")
        return origin if origin in self.settings.origins else None

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Refuse what must not get further.

        Raises:
            Refused: 403 or 401.
        """
        host = headers.get("host", "")
        if self.settings.token is None and _hostname(host) not in self.settings.names:
            raise Refused(403, "This server does not answer under that name. Start it with --allow-host NAME.")
        origin = headers.get("origin")
        if origin is not None and origin not in self.settings.origins and urlsplit(origin).netloc != host:
            raise Refused(403, "Pages of other origins may not ask here. Start the server with --allow-origin ORIGIN.")
        path = scope["path"]
        if origin is None and headers.get("sec-fetch-site") == "cross-site" and path.startswith("/v1/"):
            raise Refused(403, "Pages of other origins may not ask here.")
        if self.settings.token is not None and _needs_token(scope) and not self._knows_token(headers):
            raise Refused(401, "Send the token: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})

    def _knows_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get("token", "")  # X-AnyLabeling's header
        wanted = self.settings.token or ""
        return hmac.compare_digest(given.strip().encode(), wanted.encode())


def _needs_token(scope: Scope) -> bool:
    """The page and its files are no secret, and neither is whether the server lives."""
    path, preflight = scope["path"], scope["method"] == "OPTIONS"
    return not preflight and (path.startswith("/v1/") or path in ("/metrics", "/openapi.json"))


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def failure(error: Exception, request_id: str) -> JSONResponse:
    """The answer where the server is at fault: its log has the details, under the request's number."""
    log("failed", logging.ERROR, error, id=request_id)
    if is_out_of_memory(error):
        return refusal(Refused(503, "There is not enough memory for this now.", {"Retry-After": "10"}))
    return refusal(Refused(500, f"The server failed; its log tells why, at request {request_id}."))


def refusal(refused: Refused) -> JSONResponse:
    """The answer to a refused request. The connection ends: a body that was not read would be the next request."""
    body: dict[str, Any] = {"error": refused.reason}
    return JSONResponse(body, refused.status, {**refused.headers, "Connection": "close"})
