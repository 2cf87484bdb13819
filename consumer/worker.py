"""The loop that joins everything, and how it stops.

A worker listens for requests, claims what it has room for, and hands them to its workshop. Beside
that it shows life (only while its renderers do), sweeps up after the dead, and looks out for
cancellations. No torch here: what crashes or hangs is a child's problem.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumer import spot
from consumer.batches import Batches
from consumer.delivery import Delivery
from consumer.intake import Intake
from consumer.workshop import Workshop
from infra.claims import Claims, Timing
from infra.inbox import IDLE, changes
from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.limits import Limits

if TYPE_CHECKING:
    from consumer.announce import Announcer
    from consumer.cards import Cards
    from consumer.inputs import Inputs
    from consumer.messages import Messages
    from consumer.renderer import RendererSettings
    from infra.doorbell import Doorbell
    from infra.store import Info, Store

log = logging.getLogger(__name__)

_TAKING = 8  # requests being claimed at a time
_PAGE = 64  # request objects whose order is shuffled
_BETWEEN_SWEEPS = 1.0  # seconds at least, when messages ask for more of them
_LAST_WORDS = 5.0  # seconds for announcements that wait when the worker stops
_SHORTEST = 0.2  # seconds between two looks at the inbox while there is work


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What an operator decides about the parent."""

    default_model: str = "doodle"
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)
    grace: float = 25.0  # seconds to finish what is being drawn after SIGTERM
    ahead: int = 32  # images that a renderer may hold
    reconcile: float = 60.0  # with a queue: a request that lies in the inbox for so long was not announced
    spot: bool = False  # look out for the notice that this machine is taken away
    once: bool = False  # stop when there is nothing left to do


class Worker:
    """One session on one store."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        renderers: Sequence[RendererSettings],
        cards: Cards,
        settings: WorkerSettings,
        inputs: Inputs,
        clock: Callable[[], float],
        rng: random.Random,
        versions: dict[str, str],
        bells: Sequence[Doorbell] = (),
        announcer: Announcer | None = None,
    ) -> None:
        self.stop = asyncio.Event()  # set it to drain
        self.store = store
        self.claims = claims
        self.settings = settings
        self._cards = cards
        self._clock = clock
        self._rng = rng
        self._idle_looks = 0
        self._found = False  # whether the last look found work
        self._intake = Intake(store, claims, cards, settings.default_model, settings.limits, clock, rng)
        self.workshop = Workshop(
            store=store,
            claims=claims,
            renderers=renderers,
            delivery=Delivery(claims, clock, versions),
            batches=Batches(store, settings.limits, clock, claims.session),
            inputs=inputs,
            limits=settings.limits,
            max_attempts=settings.timing.max_attempts,
            ahead=settings.ahead,
            clock=clock,
        )
        self.renderers = self.workshop.renderers
        self._announcer = announcer
        self._seen: dict[str, tuple[str, float]] = {}  # with a queue: key to (etag, when first listed)
        self.messages: Messages | None = None
        if bells:
            from consumer.messages import Messages

            self.messages = Messages(
                bells,
                store=store,
                intake=self._intake,
                claims=claims,
                begin=self.workshop.begin,
                room=lambda: self.workshop.room if any(r.ready for r in self.renderers) else 0,
                ahead=settings.ahead * len(renderers),
                stop=self.stop,
                clock=clock,
            )

    async def run(self) -> None:
        """Work until `stop` is set (or, with `once`, until all is done), then drain."""
        await self._beat()  # before the first claim: a claim without a heartbeat looks abandoned
        loops = [self._guarded(loop) for loop in (self._beats(), self._sweeps(), self._watches())]
        if self.settings.spot:
            loops.append(self._guarded(spot.watch(self.stop)))
        if self._announcer is not None:
            loops.append(self._guarded(self._announcer.run()))
        if self.messages is not None:
            loops.append(self._guarded(self.messages.run()))
        try:
            longest = _SHORTEST if self.settings.once else self.settings.reconcile if self.messages else IDLE
            looks = changes(
                self.store, self.stop, found_work=lambda: self._found, shortest=_SHORTEST, longest=longest
            )
            async for _ in looks:
                await self._look()
                if self.settings.once and await self._is_done():
                    break
        finally:
            await self._drain()
            if self.messages is not None:
                await self.messages.close()
            if self._announcer is not None:
                await self._announcer.drain(min(_LAST_WORDS, self.settings.grace))
                await self._announcer.close()
            for task in [*loops, *self.workshop.tasks]:
                task.cancel()
            await asyncio.gather(*loops, *self.workshop.tasks, return_exceptions=True)
            with contextlib.suppress(StoreUnavailable):
                await self.claims.retire()

    # Hearing of work -------------------------------------------------------------------------

    async def _look(self) -> None:
        """List the inbox and claim what there is room for.

        With a queue a listing only reconciles: it takes what has lain there for so long that its
        message must be lost, and the rows of batches in hand, which nobody announces.
        """
        self.workshop.feed()
        listed: set[str] = set()
        eager = self.messages is None or bool(self.workshop.batches)
        self._found = eager and self.messages is not None
        if self.workshop.room <= 0 or not any(r.ready for r in self.renderers):
            self._found = eager  # look again soon
            return
        try:
            async for page in self._pages():
                listed |= {info.key for info in page}
                page = page if self.messages is None else self._unheard(page)
                self._rng.shuffle(page)  # so that workers do not all begin with the same request
                while page:
                    room = self.workshop.room
                    if room <= 0 or self.stop.is_set():
                        self._found = eager
                        return
                    size = min(_TAKING, room)
                    now, page = page[:size], page[size:]
                    await asyncio.gather(*(self._take(info) for info in now))
            self._seen = {key: seen for key, seen in self._seen.items() if key in listed}
        except StoreUnavailable as error:
            log.warning("the inbox cannot be listed", extra={"why": str(error)})

    async def _pages(self) -> AsyncIterator[list[Info]]:
        """The request objects, express ones first, a page at a time."""
        for prefix in (layout.EXPRESS, layout.REQUESTS):
            page: list[Info] = []
            async for info in self.store.list(prefix):
                twice = prefix == layout.REQUESTS and info.key.startswith(layout.EXPRESS)
                if layout.is_request(info.key) and not twice:
                    page.append(info)
                if len(page) >= _PAGE:
                    yield page
                    page = []
            if page:
                yield page

    def _unheard(self, page: list[Info]) -> list[Info]:
        """Of listed requests, those that no message will bring."""
        now = self._clock()
        found = []
        for info in page:
            seen = self._seen.setdefault(info.key, (info.etag, now))
            if seen[0] != info.etag:
                seen = self._seen[info.key] = (info.etag, now)
            ours = any(info.key.startswith(layout.request_key(id, "/")) for id in self.workshop.batches)
            if ours or now - seen[1] >= self.settings.reconcile:
                found.append(info)
        return found

    async def _take(self, info: Info) -> None:
        try:
            taken = await self._intake.take(info)
        except StoreUnavailable as error:
            log.warning("a request is left for later", extra={"key": info.key, "why": str(error)})
            return
        self._found = self._found or taken.held is not None or taken.settling
        if taken.held is not None:
            self.workshop.begin(taken.held)

    async def _sweeps(self) -> None:
        while not self.stop.is_set():
            try:
                for held in await self.claims.sweep(max(0, self.workshop.room)):
                    log.info("took over", extra={"id": held.claim.id, "attempt": held.claim.attempt})
                    if self.stop.is_set():
                        await self.workshop.release(held)  # the drain began while we looked
                    else:
                        self.workshop.begin(held)
                self.workshop.drop_lost()
            except StoreUnavailable as error:
                log.warning("the sweep is put off", extra={"why": str(error)})
            await self._until_sweep()

    async def _until_sweep(self) -> None:
        """Wait for the next sweep's time, or for a doubt that it can settle."""
        seconds = self.claims.until_sweep()
        if self.messages is None or seconds <= _BETWEEN_SWEEPS:
            await asyncio.sleep(seconds)
            return
        self.messages.doubt.clear()
        await asyncio.sleep(_BETWEEN_SWEEPS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.messages.doubt.wait(), seconds - _BETWEEN_SWEEPS)

    async def _is_done(self) -> bool:
        """Whether nothing is left, for two looks: no request in hand and none in the inbox."""
        busy = self.workshop.busy or (self.messages is not None and not self.messages.idle)
        if not busy:
            async for info in self.store.list(layout.REQUESTS):
                busy = busy or layout.is_request(info.key)
        self._idle_looks = 0 if busy else self._idle_looks + 1
        return self._idle_looks >= 2

    # Being alive -----------------------------------------------------------------------------

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(self.settings.timing.beat)
            if any(renderer.healthy for renderer in self.renderers):
                await self._beat()
            else:
                log.warning("no renderer makes progress: the heartbeat is held back")

    async def _beat(self) -> None:
        ready = [renderer.ready for renderer in self.renderers if renderer.ready]
        facts = {
            "state": "draining" if self.stop.is_set() else "working" if self.workshop.jobs else "idle",
            "models": self._cards.known(),
            "default_model": self.settings.default_model,
            "devices": [r.device for r in ready],
        }
        try:
            await self.claims.beat(facts)
        except StoreUnavailable as error:
            log.warning("the heartbeat was not written", extra={"why": str(error)})

    async def _watches(self) -> None:
        while True:
            await asyncio.sleep(min(2.0, self.settings.timing.beat))
            await self.workshop.watch()

    # Stopping --------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Give back what has not begun, finish what fits into the grace period, give back the rest."""
        self.stop.set()
        shop = self.workshop
        shop.closing = True
        back, batches = shop.not_begun, list(shop.batches.values())
        facts = {"given_back": len(back) + len(batches), "finishing": len(shop.jobs) - len(back)}
        log.info("draining", extra=facts)
        for _, task in batches:
            task.cancel()
        await asyncio.gather(
            *(shop.give_back(job) for job in back), *(shop.release(held) for held, _ in batches)
        )
        ends = self._clock() + self.settings.grace
        while (shop.jobs or shop.tasks) and self._clock() < ends:
            await asyncio.sleep(0.05)
        await asyncio.gather(*(shop.give_back(job) for job in list(shop.jobs.values())))

    def _guarded(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside the others; a failure that nobody foresaw ends the worker, in order."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("a loop of the worker failed; stopping", exc_info=task.exception())
            self.stop.set()
