"""Finds requests by listing the inbox: the only way without a queue, the safety net with one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.backoff import backoff
from infra.logs import redacted
from schemas import layout
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from consumer.intake.claiming import RequestClaimer
    from consumer.jobs.jobs import Jobs
    from infra.stores.store import Info, Store

log = logging.getLogger(__name__)

_ABREAST = 8  # requests being claimed at a time
BATCHES = 16  # batches in hand; each is kept in memory until its rows have ended
_PAGE = 64  # request objects that are shuffled together
_RETRY_WAITS = (1.0, 300.0)  # seconds between tries at a request that cannot be claimed: first, longest
_NAMED = 50  # files that are not requests and are named in the log, so that many do not fill it


@dataclass
class _Failing:
    """A request that could not be claimed, and when it is tried again."""

    etag: str
    waits: Iterator[float]
    not_before: float  # by our clock


@dataclass
class Listing:
    """One worker's view of one lane of the inbox.

    The lanes are listed and claimed apart, so the express lane never waits for the other one, however long
    that is. With a queue (`reconcile` is a number of seconds, not None) a look takes only what no message
    will bring: requests that have been in the inbox for so long that their message must be lost,
    and the rows of the batches in hand, which are never announced.
    """

    store: Store
    claimer: RequestClaimer
    jobs: Jobs
    room: Callable[[], int]
    stop: asyncio.Event
    clock: Callable[[], float]
    rng: random.Random
    reconcile: float | None
    express: bool = False  # the lane: `requests/express/`, or everything else under `requests/`
    found_work: bool = False  # whether the last look found work, so that the next one should come soon
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)  # key to (etag, when first listed)
    _claiming: dict[asyncio.Task[None], str] = field(default_factory=dict)  # claims under way, their keys
    _failing: dict[str, _Failing] = field(default_factory=dict)  # by key
    _not_requests: set[str] = field(default_factory=set)  # keys that the log has named

    async def look(self) -> None:
        """List the lane, and begin to claim as many requests as there is room for."""
        self.jobs.feed()
        eager = self.reconcile is None or bool(self.jobs.batches)
        self.found_work = eager and self.reconcile is not None
        if not self._has_room():
            self.found_work = eager
            return
        listed: set[str] = set()
        try:
            async for page in self._pages():
                listed |= {info.key for info in page}
                page = page if self.reconcile is None else self._unannounced(page, self.reconcile)
                self.rng.shuffle(page)  # so that workers do not all begin with the same request
                for info in page:
                    if not await self._may_claim():
                        self.found_work = eager
                        return
                    if self._is_new(info):
                        task = asyncio.create_task(self._claim(info))
                        self._claiming[task] = info.key
                        task.add_done_callback(self._claiming.pop)
            self._seen = {key: seen for key, seen in self._seen.items() if key in listed}
            self._failing = {key: failing for key, failing in self._failing.items() if key in listed}
        except StoreUnavailable as error:
            log.warning("the inbox cannot be listed", extra={"why": str(error)})

    async def close(self) -> None:
        """Wait for the claims under way."""
        if self._claiming:
            await asyncio.wait(self._claiming)

    @property
    def busy(self) -> bool:
        """Whether a claim is under way."""
        return bool(self._claiming)

    async def _pages(self) -> AsyncIterator[list[Info]]:
        """The request objects of the lane, a page at a time."""
        page: list[Info] = []
        async for info in self.store.list(layout.EXPRESS if self.express else layout.REQUESTS):
            if info.key.startswith(layout.EXPRESS) != self.express:
                continue
            if layout.is_request(info.key):
                page.append(info)
            else:
                self._warn_once(info.key)
            if len(page) >= _PAGE:
                yield page
                page = []
        if page:
            yield page

    def _warn_once(self, key: str) -> None:
        """Log that a file is not a request: its author may wait for a picture."""
        name = key.rpartition("/")[2].lower()
        hidden = name.startswith(".") and not name.endswith((layout.SINGLE, layout.BATCH))  # an editor's
        if not hidden and key not in self._not_requests and len(self._not_requests) < _NAMED:
            self._not_requests.add(key)
            log.warning(
                "a file in the inbox is not a request and stays: requests are .json or .jsonl files, not hidden",
                extra={"key": key},
            )

    def _unannounced(self, page: list[Info], after: float) -> list[Info]:
        """The requests of a page that no message will bring."""
        now = self.clock()
        unannounced = []
        for info in page:
            seen = self._seen.get(info.key)
            if seen is None or seen[0] != info.etag:
                seen = self._seen[info.key] = (info.etag, now)
            ours = any(info.key.startswith(layout.request_key(id, "/")) for id in self.jobs.batches)
            if ours or now - seen[1] >= after:
                unannounced.append(info)
        return unannounced

    async def _may_claim(self) -> bool:
        """Wait until one more claim may begin; False when there is no room, or the worker is to stop."""
        while self._has_room() and not self.stop.is_set():
            if len(self._claiming) < _ABREAST:
                return True
            await asyncio.wait(self._claiming, return_when=asyncio.FIRST_COMPLETED)
        return False

    def _has_room(self) -> bool:
        return len(self._claiming) < self.room()

    def _is_new(self, info: Info) -> bool:
        """Whether it is not being claimed yet, nor a batch more than we may hold; that one stays in the inbox."""
        if info.key in self._claiming.values():
            return False
        failing = self._failing.get(info.key)
        if failing is not None and failing.etag == info.etag and self.clock() < failing.not_before:
            return False
        batches = len(self.jobs.batches) + sum(map(layout.is_batch, self._claiming.values()))
        return not layout.is_batch(info.key) or batches < BATCHES

    async def _claim(self, info: Info) -> None:
        try:
            outcome = await self.claimer.claim_object(info)
        except StoreUnavailable as error:
            facts = {"key": info.key, "why": str(error), "again_in": self._try_later(info)}
            log.warning("a request stays in the inbox for now", extra=facts)
            return
        except Exception as error:  # it costs this request only: else it would end every worker
            text = "a request failed unexpectedly; it stays in the inbox"
            facts = {"key": info.key, "again_in": self._try_later(info)}
            log.error(text, extra={**facts, "error": redacted(error)})
            log.debug(text, extra=facts, exc_info=error)
            return
        if outcome.left:  # it is looked at again, less and less often: its worker may die before it takes it
            self._try_later(info)
            return
        self._failing.pop(info.key, None)
        self.found_work = self.found_work or outcome.held is not None or outcome.settling
        if outcome.held is not None:
            self.jobs.begin(outcome.held)

    def _try_later(self, info: Info) -> float:
        """Put a request off, each time for longer; returns the seconds."""
        failing = self._failing.get(info.key)
        if failing is None or failing.etag != info.etag:
            failing = self._failing[info.key] = _Failing(info.etag, backoff(*_RETRY_WAITS), 0.0)
        wait = next(failing.waits)
        failing.not_before = self.clock() + wait
        return wait
