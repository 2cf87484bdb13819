"""A small HTTP server for `/metrics`, `/healthz` and `/readyz`, on a port of its own.

It runs in the event loop of the process that it watches. So an answer of any kind shows that the loop turns; a
loop that hangs answers nothing, and the probe's own time-out finds that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from schemas.errors import DreamError

log = logging.getLogger(__name__)

_REFRESH = 5.0  # seconds for figures that are read from a store; then the last ones are shown

#: Returns what is wrong; "" when nothing is.
Check = Callable[[], str]
Refresh = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def serving(
    host: str,
    port: int,
    registry: CollectorRegistry,
    *,
    unhealthy: Check,
    not_ready: Check | Callable[[], Awaitable[str]],
    refresh: Refresh | None = None,
) -> AsyncIterator[int]:
    """Serve until the block is left; yields the port.

    Args:
        port: 0 for any free one.
        unhealthy: why a supervisor should start the process anew; asked by `/healthz`.
        not_ready: why it does no work; asked by `/readyz`.
        refresh: called before metrics are written; it may read a store.

    Raises:
        DreamError: the address is taken, or not one of this machine.
    """

    async def metrics(_: web.Request) -> web.Response:
        if refresh is not None:
            await _refreshed(refresh)
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        return _verdict(unhealthy())

    async def readyz(_: web.Request) -> web.Response:
        why = not_ready()
        return _verdict(why if isinstance(why, str) else await why)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise DreamError(
                f"metrics cannot be served at {host}:{port} ({error.strerror}): choose another --metrics-port "
                "or --metrics-host"
            ) from error
        chosen: int = runner.addresses[0][1]
        log.info("metrics", extra={"url": f"http://{host}:{chosen}/metrics"})
        yield chosen
    finally:
        await runner.cleanup()


def _verdict(why: str) -> web.Response:
    return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)


async def _refreshed(refresh: Refresh) -> None:
    """Refresh; what fails or takes too long keeps its last figures, so that the others are still served."""
    try:
        async with asyncio.timeout(_REFRESH):
            await refresh()
    except (DreamError, OSError, TimeoutError) as error:
        log.debug("some metrics are not fresh", extra={"why": str(error) or "no answer in time"})
