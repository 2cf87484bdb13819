"""Compresses pages, scripts and the API's document, which are text and are fetched often."""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

PAGES = {"/", "/live", "/b", "/t", "/docs", "/openapi.json"}
FOLDERS = ("/b/", "/t/", "/pictures/", "/static/", "/swagger/")
SMALLEST = 1024  # bytes; less gains nothing


class Compression:
    """ASGI middleware: gzip for those addresses only. Pictures are compressed already, and events must not wait."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.gzip = app, GZipMiddleware(app, minimum_size=SMALLEST, compresslevel=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        app = self.gzip if path in PAGES or path.startswith(FOLDERS) else self.app
        await app(scope, receive, send)
