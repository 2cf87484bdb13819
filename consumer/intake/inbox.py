"""The inbox of a worker without a queue: its two lanes, each listed in a loop of its own.

With a queue both loops go on: the express lane's, because an express request's message may be behind
thousands of others, and the other's as a safety net.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from consumer.intake.listing import Listing
from infra.stores.changes import IDLE, changes
from schemas import layout

if TYPE_CHECKING:
    from consumer.intake.claiming import RequestClaimer
    from consumer.jobs.jobs import Jobs
    from infra.stores.store import Store

_POLL_INTERVAL = 0.2  # seconds between two looks while there is work
_EXPRESS_INTERVAL = (0.5, 2.0)  # the same for the express lane: without a queue, with one


class Inbox:
    """Both lanes of one store's inbox. For one event loop."""

    def __init__(
        self,
        store: Store,
        claimer: RequestClaimer,
        jobs: Jobs,
        room: Callable[[bool], int],
        stop: asyncio.Event,
        clock: Callable[[], float],
        rng: random.Random,
        *,
        reconcile: float | None,
        once: bool,
    ) -> None:
        """
        Args:
            room: how many more images of a lane (True: express) to claim now.
            reconcile: with a queue, seconds in the inbox after which a request's message counts as lost; else None.
            once: look often, as the worker stops when there is nothing left to do.
        """
        self.claimer = claimer
        self._store = store
        self._jobs = jobs
        self._stop = stop
        self._once = once
        self._reconcile = reconcile
        self._lane = Listing(store, claimer, jobs, lambda: room(False), stop, clock, rng, reconcile)
        # Nothing in the express lane waits for its message.
        self._express = Listing(
            store, claimer, jobs, lambda: room(True), stop, clock, rng, None, express=True
        )
        self._express_news = asyncio.Event()

    async def looks(self) -> AsyncIterator[None]:
        """Look at the main lane until `stop` is set, more often while there is work; yields after each look."""
        looks = changes(
            self._store,
            self._stop,
            found_work=lambda: self._lane.found_work or self._lane.busy,
            shortest=_POLL_INTERVAL,
            longest=_POLL_INTERVAL if self._once else self._reconcile or IDLE,
            also_tell=(self._express_news,),
        )
        async for _ in looks:
            await self._lane.look()
            yield

    async def express_looks(self) -> None:
        """Look at the express lane until `stop` is set, more often while there is any work."""
        shortest = _EXPRESS_INTERVAL[0 if self._reconcile is None else 1]
        looks = changes(
            self._store,
            self._stop,
            prefixes=(),  # `looks` watches all of the inbox
            found_work=lambda: self._express.found_work or self._express.busy or self._jobs.busy,
            shortest=shortest,
            longest=shortest if self._once else self._reconcile or IDLE,
            news=self._express_news,
        )
        async for _ in looks:
            await self._express.look()

    @property
    def busy(self) -> bool:
        """Whether a claim is under way."""
        return self._lane.busy or self._express.busy

    @property
    def found_work(self) -> bool:
        """Whether the last look at either lane found work."""
        return self._lane.found_work or self._express.found_work

    async def is_empty(self) -> bool:
        """Whether the inbox holds no request, of any lane. Raises `StoreUnavailable`."""
        async for info in self._store.list(layout.REQUESTS):
            if layout.is_request(info.key):
                return False
        return True

    async def close(self) -> None:
        """Wait for the claims under way."""
        await asyncio.gather(self._lane.close(), self._express.close())
