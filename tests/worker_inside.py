"""A worker inside the test's own process, so that tests can see what it holds; its renderers are real children."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from consumer.jobs.inputs import Inputs
from consumer.renderer.protocol import RendererSettings
from consumer.worker import Worker, WorkerSettings
from infra.claims.claims import Claims, Timing
from infra.models.cards import Cards
from schemas.limits import Limits
from schemas.result import utc_now

if TYPE_CHECKING:
    from consumer.jobs.models import ModelFetcher
    from infra.queues.leases import MessageLeases
    from infra.stores.store import Store

TIMING = Timing(beat=0.5, lease=2.0, sweep=(0.3, 0.6), retry_after=(0.1,))


def make_worker(
    store: Store,
    *,
    renderers: int = 1,
    null: dict[str, Any] | None = None,
    children: Sequence[RendererSettings] | None = None,
    cards: Cards | None = None,
    models: ModelFetcher | None = None,
    queues: Sequence[MessageLeases] = (),
    **settings: Any,
) -> Worker:
    """A worker that is not started yet; its children are null renderers by default."""
    rng = random.Random(1)
    chosen = WorkerSettings(**{"timing": TIMING, "grace": 5.0, "ahead": 4, **settings})
    return Worker(
        store=store,
        claims=Claims(
            store, session="inside", clock=time.monotonic, rng=rng, timing=chosen.timing, stamp=utc_now
        ),
        renderers=children or [RendererSettings(kind="null", null=null or {}) for _ in range(renderers)],
        cards=cards or Cards.of(),
        settings=chosen,
        inputs=Inputs(store, Limits(), ("uploads/",)),
        clock=time.monotonic,
        rng=rng,
        versions={},
        queues=queues,
        models=models,
    )


@contextlib.asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[Worker]:
    """Start its renderers and let it work until the block is left; then it drains."""
    for renderer in worker.renderers:
        await renderer.start()
    work = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop.set()
        await asyncio.wait_for(work, 120)
        for renderer in worker.renderers:
            await renderer.close()


async def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait until the condition holds; fail after some seconds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
