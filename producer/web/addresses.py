"""Middleware for addresses as clients write them: HEAD wherever there is GET, and slashes too many."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SLASHES = re.compile(r"/{2,}")


class _HeadersSent(Exception):
    """The answer to HEAD is complete, though its body would go on."""


class Addresses:
    """ASGI middleware: answers HEAD as GET without its body, and ignores double and trailing slashes.

    Args:
        with_slash: paths that end with a slash of their own.
    """

    def __init__(self, app: ASGIApp, *, with_slash: Collection[str] = ()) -> None:
        self.app, self.with_slash = app, {"/", *with_slash}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = _SLASHES.sub("/", scope["path"])
        scope["path"] = path if path in self.with_slash else path.rstrip("/")
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["method"] = "HEAD"  # the server asks it whether a body has to follow
                await send(message)
                return
            await send({**message, "body": b"", "more_body": False})
            if message.get("more_body"):
                raise _HeadersSent  # else a stream would go on for nobody

        scope["method"] = "GET"
        try:
            await self.app(scope, receive, send_without_body)
        except (_HeadersSent, ClientDisconnect):
            pass
        finally:
            scope["method"] = "HEAD"
