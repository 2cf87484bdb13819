"""Finding requests by listing the inbox: the whole of discovery without a queue, the safety net with one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.logs import redacted
from schemas import layout
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from consumer.intake.claiming import Intake
    from consumer.jobs.jobs import Jobs
    from infra.stores.store import Info, Store

log = logging.getLogger(__name__)

_TAKING = 8  # requests being claimed at a time
BATCHES = 16  # files of many requests in hand: each is kept whole in memory until its rows have ended
_PAGE = 64  # request objects whose order is shuffled
_TOLD = 50  # overlooked files that are named in the log, so that a folder full of them does not fill it


@dataclass
class Listing:
    """One worker's looks at the inbox.

    With a queue (`reconcile` is seconds, not None) a look only makes up for what the queue lost:
    it takes what has lain in the inbox for so long that its message must be gone, and the rows of
    the batches in hand, which nobody announces.
    """

    store: Store
    intake: Intake
    jobs: Jobs
    room: Callable[[], int]
    stop: asyncio.Event
    clock: Callable[[], float]
    rng: random.Random
    reconcile: float | None
    found: bool = False  # whether the last look found work, so that the next should come soon
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)  # key to (etag, when first listed)
    _taking: dict[asyncio.Task[None], str] = field(default_factory=dict)  # claims under way, and their keys
    _overlooked: set[str] = field(default_factory=set)  # keys that are no requests

    async def look(self) -> None:
        """List the inbox and begin to claim what there is room for."""
        self.jobs.feed()
        eager = self.reconcile is None or bool(self.jobs.batches)
        self.found = eager and self.reconcile is not None
        listed: set[str] = set()
        if not self._has_room():
            self.found = eager
            return
        try:
            async for page in self._pages():
                listed |= {info.key for info in page}
                page = page if self.reconcile is None else self._unheard(page, self.reconcile)
                self.rng.shuffle(page)  # so that workers do not all begin with the same request
                for info in page:
                    if not await self._has_a_free_hand():
                        self.found = eager
                        return
                    if self._fits(info):
                        task = asyncio.create_task(self._take(info))
                        self._taking[task] = info.key
                        task.add_done_callback(self._taking.pop)
            self._seen = {key: seen for key, seen in self._seen.items() if key in listed}
        except StoreUnavailable as error:
            log.warning("the inbox cannot be listed", extra={"why": str(error)})

    async def close(self) -> None:
        """Wait for the claims under way."""
        if self._taking:
            await asyncio.wait(self._taking)

    @property
    def busy(self) -> bool:
        """Whether a claim is under way."""
        return bool(self._taking)

    async def is_empty(self) -> bool:
        """Whether the inbox holds no request. Raises `StoreUnavailable`."""
        async for info in self.store.list(layout.REQUESTS):
            if layout.is_request(info.key):
                return False
        return True

    async def _pages(self) -> AsyncIterator[list[Info]]:
        """The request objects, express ones first, a page at a time."""
        for prefix in (layout.EXPRESS, layout.REQUESTS):
            page: list[Info] = []
            async for info in self.store.list(prefix):
                twice = prefix == layout.REQUESTS and info.key.startswith(layout.EXPRESS)
                if layout.is_request(info.key) and not twice:
                    page.append(info)
                elif not twice:
                    self._overlook(info.key)
                if len(page) >= _PAGE:
                    yield page
                    page = []
            if page:
                yield page

    def _overlook(self, key: str) -> None:
        """Say once that a file is no request: its author waits for a picture."""
        name = key.rpartition("/")[2]
        if layout.is_request(key) or name.startswith(".") or key in self._overlooked:
            return
        if len(self._overlooked) < _TOLD:
            self._overlooked.add(key)
            log.warning("a file is no request and stays: requests are .json or .jsonl", extra={"key": key})

    def _unheard(self, page: list[Info], after: float) -> list[Info]:
        """Of listed requests, those that no message will bring."""
        now = self.clock()
        found = []
        for info in page:
            seen = self._seen.get(info.key)
            if seen is None or seen[0] != info.etag:
                seen = self._seen[info.key] = (info.etag, now)
            ours = any(info.key.startswith(layout.request_key(id, "/")) for id in self.jobs.batches)
            if ours or now - seen[1] >= after:
                found.append(info)
        return found

    async def _has_a_free_hand(self) -> bool:
        """Wait until one more request may be claimed; False when there is no room, or the worker is to stop."""
        while self._has_room() and not self.stop.is_set():
            if len(self._taking) < _TAKING:
                return True
            await asyncio.wait(self._taking, return_when=asyncio.FIRST_COMPLETED)
        return False

    def _has_room(self) -> bool:
        return len(self._taking) < self.room()

    def _fits(self, info: Info) -> bool:
        """Whether it is new, and no batch too many to be held; such a one waits in the inbox."""
        if info.key in self._taking.values():
            return False
        batches = len(self.jobs.batches) + sum(map(layout.is_batch, self._taking.values()))
        return not layout.is_batch(info.key) or batches < BATCHES

    async def _take(self, info: Info) -> None:
        try:
            taken = await self.intake.take(info)
        except StoreUnavailable as error:
            log.warning("a request is left for later", extra={"key": info.key, "why": str(error)})
            return
        except Exception as error:  # each request alone: one that nobody foresaw must not end every worker
            text, facts = "a request failed in an unforeseen way; it stays in the inbox", {"key": info.key}
            log.error(text, extra={**facts, "error": redacted(error)})
            log.debug(text, extra=facts, exc_info=error)
            return
        self.found = self.found or taken.held is not None or taken.settling
        if taken.held is not None:
            self.jobs.begin(taken.held)
