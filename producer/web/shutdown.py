"""A caller that still waits when the server stops is told so, instead of being given a bare 500."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEAVING = "this server is being stopped: ask again, under the same id if you chose one"


class Leaving:
    """ASGI middleware: calls that the server ends at its own end answer 503."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            if scope["type"] != "http" or begun:
                raise
            answer = JSONResponse({"detail": LEAVING}, 503, {"Retry-After": "5", "Connection": "close"})
            await answer(scope, receive, send)
