"""The loop that joins everything, and how it stops.

A worker listens for requests, claims what it has room for, and hands them to its jobs. Beside
that it shows life (only while its renderers do), sweeps up after the dead, and looks out for
cancellations. No torch here: what crashes or hangs is a child's problem.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from consumer import spot
from consumer.intake.claiming import Intake
from consumer.intake.listing import Listing
from consumer.jobs.batches import Batches
from consumer.jobs.delivery import Delivery
from consumer.jobs.jobs import Jobs
from infra.claims.claims import Claims, Timing
from infra.stores.changes import IDLE, changes
from schemas.errors import StoreUnavailable
from schemas.limits import Limits

if TYPE_CHECKING:
    from consumer.announce.announcer import Announcer
    from consumer.intake.queue import Messages
    from consumer.jobs.inputs import Inputs
    from consumer.models.cards import Cards
    from consumer.renderer.protocol import RendererSettings
    from infra.queues.leases import MessageLeases
    from infra.stores.store import Store

log = logging.getLogger(__name__)

_BETWEEN_SWEEPS = 1.0  # seconds at least, when messages ask for more of them
_LAST_WORDS = 5.0  # seconds for announcements that wait when the worker stops
_LAST_STATUS = 1.0  # seconds for a status, or a claim given back, that is on its way when the worker stops
_LAST_SWEEP = 2.0  # seconds for a sweep that is under way then: what it takes over has to be given back
_BEAT = 5.0  # seconds at least that a heartbeat has to be written; then a new one is tried
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
    previews: Literal["off", "express", "all"] = "express"  # whose images are shown while they are drawn
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
        bells: Sequence[MessageLeases] = (),
        announcer: Announcer | None = None,
        told: asyncio.Queue[str] | None = None,
    ) -> None:
        """
        Args:
            told: the ids of ended requests that the announcer has announced.
        """
        self.stop = asyncio.Event()  # set it to drain
        self.failed = False  # it stops because of a failure that nobody foresaw
        self.store = store
        self.claims = claims
        self.settings = settings
        self._cards = cards
        self._clock = clock
        self._idle_looks = 0
        self._sweeping = asyncio.Lock()
        intake = Intake(store, claims, cards, settings.default_model, settings.limits, clock, rng)
        self.jobs = Jobs(
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
            previews=settings.previews,
        )
        self.renderers = self.jobs.renderers
        self._announcer = announcer
        self._told = told
        room = self._room
        self._listing = Listing(
            store, intake, self.jobs, room, self.stop, clock, rng, settings.reconcile if bells else None
        )
        self.messages: Messages | None = None
        if bells:
            from consumer.intake.queue import Messages

            self.messages = Messages(
                bells,
                store=store,
                intake=intake,
                claims=claims,
                begin=self.jobs.begin,
                room=room,
                ahead=settings.ahead * len(renderers),
                stop=self.stop,
                clock=clock,
            )

    def _room(self) -> int:
        """How many more images to claim now; none before a renderer is ready."""
        return self.jobs.room if any(renderer.ready for renderer in self.renderers) else 0

    async def run(self) -> None:
        """Work until `stop` is set (or, with `once`, until all is done), then drain."""
        await self._beat()  # before the first claim: a claim without a heartbeat looks abandoned
        loops = [self._guarded(loop) for loop in (self._beats(), self._sweeps(), self._watches())]
        if self.settings.spot:
            loops.append(self._guarded(spot.watch(self.stop)))
        if self._announcer is not None:
            loops += [self._guarded(self._announcer.run()), self._guarded(self._forgets())]
        if self.messages is not None:
            loops.append(self._guarded(self.messages.run()))
        try:
            longest = _SHORTEST if self.settings.once else self.settings.reconcile if self.messages else IDLE
            looks = changes(
                self.store,
                self.stop,
                found_work=lambda: self._listing.found or self._listing.busy,
                shortest=_SHORTEST,
                longest=longest,
            )
            async for _ in looks:
                await self._listing.look()
                if self.settings.once and await self._is_done():
                    break
        finally:
            await self._drain()
            if self.messages is not None:
                await self.messages.close()
            if self._announcer is not None:
                await self._announcer.drain(min(_LAST_WORDS, self.settings.grace))
                await self._announcer.close()
            if last := self.jobs.board.tasks | self.jobs.tasks:
                await asyncio.wait(last, timeout=_LAST_STATUS)
            rest = [*loops, *self.jobs.tasks, *self.jobs.board.tasks]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            with contextlib.suppress(StoreUnavailable):
                await self.claims.retire()

    # Nothing stays with the dead -------------------------------------------------------------

    async def _sweeps(self) -> None:
        while not self.stop.is_set():
            try:
                async with self._sweeping:
                    await self._sweep()
            except StoreUnavailable as error:
                log.warning("the sweep is put off", extra={"why": str(error)})
            await self._until_sweep()

    async def _sweep(self) -> None:
        for held in await self.claims.sweep(max(0, self.jobs.room)):
            log.info("took over", extra={"id": held.claim.id, "attempt": held.claim.attempt})
            if self.stop.is_set():
                await self.jobs.release(held)  # the drain began while we looked
            else:
                self.jobs.begin(held)
        self.jobs.drop_lost()

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

    async def _forgets(self) -> None:
        """Remove the traces of what is announced; a sweep finds what fails here."""
        assert self._told is not None, "given with the announcer"
        while True:
            id = await self._told.get()
            with contextlib.suppress(StoreUnavailable):
                await self.claims.forget(id)

    async def _is_done(self) -> bool:
        """Whether nothing is left, for two looks: no request in hand and none in the inbox."""
        busy = self.jobs.busy or self._listing.busy or (self.messages is not None and not self.messages.idle)
        if not busy and not (
            self._announcer is not None and self._announcer.owed and not self._listing.found
        ):
            busy = not await self._listing.is_empty()  # what is only to be announced may stay
        self._idle_looks = 0 if busy else self._idle_looks + 1
        return self._idle_looks >= 2

    # Being alive -----------------------------------------------------------------------------

    async def _beats(self) -> None:
        due = self._clock()
        while True:
            due = max(due + self.settings.timing.beat, self._clock())  # not later for a slow one before
            await asyncio.sleep(due - self._clock())
            if any(renderer.healthy for renderer in self.renderers):
                await self._beat()
            else:
                log.warning("no renderer makes progress: the heartbeat is held back")

    async def _beat(self) -> None:
        ready = [renderer.ready for renderer in self.renderers if renderer.ready]
        facts = {
            "state": "draining" if self.stop.is_set() else "working" if self.jobs.active else "idle",
            "models": self._cards.known(),
            "default_model": self.settings.default_model,
            "devices": [r.device for r in ready],
        }
        try:
            async with asyncio.timeout(max(_BEAT, self.settings.timing.beat)):
                await self.claims.beat(facts)
        except StoreUnavailable as error:
            log.warning("the heartbeat was not written", extra={"why": str(error)})
        except TimeoutError:  # one lost answer must not cost the lease
            log.warning("the heartbeat was not written", extra={"why": "the store is silent"})

    async def _watches(self) -> None:
        while True:
            await asyncio.sleep(min(2.0, self.settings.timing.beat))
            await self.jobs.watch()

    # Stopping --------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Give back what has not begun, finish what fits into the grace period, give back the rest."""
        self.stop.set()
        await self._listing.close()
        jobs = self.jobs
        jobs.closing = True
        back, batches = jobs.not_begun, list(jobs.batches.values())
        facts = {"given_back": len(back) + len(batches), "finishing": len(jobs.active) - len(back)}
        log.info("draining", extra=facts)
        for _, task in batches:
            task.cancel()
        await asyncio.gather(
            *(jobs.give_back(job) for job in back), *(jobs.release(held) for held, _ in batches)
        )
        ends = self._clock() + self.settings.grace
        while (jobs.active or jobs.tasks) and self._clock() < ends:
            await asyncio.sleep(0.05)
        await asyncio.gather(*(jobs.give_back(job) for job in list(jobs.active.values())))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SWEEP), self._sweeping:
                pass

    def _guarded(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside the others; a failure that nobody foresaw ends the worker, in order."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("a loop of the worker failed; stopping", exc_info=task.exception())
            self.failed = True
            self.stop.set()
