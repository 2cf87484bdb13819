"""Middleware that answers 503 to callers that still wait when the server shuts down, not a bare 500."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STOPPING = "this server is being stopped: send the request again, with the same id if you chose one"


class ShutdownMiddleware:
    """ASGI middleware: a call that the server cancels at shutdown answers 503."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_noting_start)
        except asyncio.CancelledError:
            if scope["type"] != "http" or started:
                raise
            # "Connection: close", because the next request on it would meet a server that is gone.
            response = JSONResponse({"detail": STOPPING}, 503, {"Retry-After": "5", "Connection": "close"})
            await response(scope, receive, send)
