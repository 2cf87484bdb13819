"""A web server that receives webhooks, and misbehaves on demand. It runs on the test's own event loop."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from ssl import SSLContext

KINDS = {
    "hang": "no answer at all",
    "drip": "200, then a body that never ends",
    "cut": "the connection closes without an answer",
    "elsewhere": "a redirect to /elsewhere on the same server",
}


@dataclass(frozen=True)
class Received:
    """One POST."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass
class Receiver:
    """What came, and how the next ones are answered: a status, (status, headers) or one of `KINDS`."""

    url: str = ""
    port: int = 0
    received: list[Received] = field(default_factory=list)
    answers: deque[int | str | tuple[int, dict[str, str]]] = field(default_factory=deque)
    always: int | str = 204  # once `answers` is empty

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.received.append(Received(request.path_qs, dict(request.headers), body))
        answer = self.answers.popleft() if self.answers else self.always
        if answer == "hang":
            await asyncio.Event().wait()
        if answer == "drip":
            return await _drip(request)
        if answer == "cut":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if answer == "elsewhere":
            return web.Response(status=307, headers={"Location": f"{self.url}/elsewhere"})
        status, headers = answer if isinstance(answer, tuple) else (int(answer), {})
        return web.Response(
            status=status, headers=headers, text="never to be logged" if status != 204 else None
        )


async def _drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"never to be logged " * 50)
        await asyncio.sleep(0.01)


@asynccontextmanager
async def receiving(tls: SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on loopback, on a port of its own."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        receiver.port = runner.addresses[0][1]
        receiver.url = f"{'https' if tls else 'http'}://127.0.0.1:{receiver.port}"
        yield receiver
    finally:
        await runner.cleanup()
