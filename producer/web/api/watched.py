"""The facade's metrics and probes on a port of their own, so that the public one need not show them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.metrics.backlog import Backlog
from producer.web.api.health import READY, readiness, refresh
from schemas.errors import DreamError

if TYPE_CHECKING:
    from infra.queues.message import QueueFacts
    from producer.web.facade import Facade


@dataclass(frozen=True)
class _Queue:
    """One of the facade's queues, opened when it is asked."""

    facade: Facade
    url: str

    async def facts(self) -> QueueFacts:
        return await (await self.facade.client.queues.get(self.url)).facts()


@asynccontextmanager
async def watched(facade: Facade, host: str, port: int | None) -> AsyncIterator[int | None]:
    """Serve them until the block is left; yields the port. With no port, serve nothing.

    What waits in the inbox and the queues is shown there only: it needs no worker, so workers can be scaled from none.

    Raises:
        DreamError: the address cannot be used.
    """
    if port is None:
        yield None
        return
    from infra.metrics.server import serving  # an HTTP library that is seldom needed

    backlog = Backlog(facade.client.store, [_Queue(facade, url) for url in facade.settings.queues])

    async def refreshed() -> None:
        await refresh(facade)
        with suppress(DreamError):  # the last figures stay
            await backlog.refresh()

    async def not_ready() -> str:
        if facade.stopping:
            return "the server stops"
        status = (await readiness(facade)).status
        return "" if status == READY else status

    facade.metrics.registry.register(backlog)
    async with serving(
        host,
        port,
        facade.metrics.registry,
        unhealthy=lambda: "",
        not_ready=not_ready,
        refresh=refreshed,
    ) as chosen:
        yield chosen
