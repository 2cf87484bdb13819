"""The worker's main loop, what runs beside it, and how it stops.

A worker finds requests, claims as many as it has room for, and hands them to its jobs. Beside that it
writes heartbeats (only while its renderers make progress), takes over the requests of dead workers,
and notices cancellations. It never imports torch: a crash or a hang happens in a child process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from consumer import metrics, spot
from consumer.heartbeats import Heartbeats
from consumer.intake.claiming import RequestClaimer
from consumer.intake.fleet import Capabilities, Fleet
from consumer.intake.inbox import Inbox
from consumer.jobs.batches import Batches
from consumer.jobs.delivery import Delivery
from consumer.jobs.jobs import Jobs
from consumer.jobs.outcomes import Outcomes
from consumer.jobs.prepare import Preparation
from infra.claims.claims import Claims, Timing
from infra.models.hub_caches import HUB
from infra.stores.changes import tidying
from schemas.errors import StoreUnavailable
from schemas.limits import Limits

if TYPE_CHECKING:
    from consumer.announce.announcer import Announcer
    from consumer.intake.queue import QueueReader
    from consumer.jobs.inputs import Inputs
    from consumer.jobs.models import ModelFetcher
    from consumer.renderer.protocol import RendererSettings
    from infra.models.cards import Cards
    from infra.queues.leases import MessageLeases
    from infra.stores.store import Store

log = logging.getLogger(__name__)

_BETWEEN_SWEEPS = 1.0  # seconds at least, when messages ask for more sweeps
_LAST_ANNOUNCEMENTS = 5.0  # seconds for announcements that wait when the worker stops
_LAST_WRITES = 1.0  # seconds for a status or a release that is being written when the worker stops
_LAST_SWEEP = 2.0  # seconds for a sweep under way when the worker stops: what it takes over must be released


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What an operator decides about the parent process."""

    default_model: str = "doodle"
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)
    grace: float = 25.0  # seconds to finish what is being drawn after SIGTERM
    ahead: int = 32  # images that a renderer may hold
    picture_memory: int = 256 << 20  # bytes of pixels, for each renderer
    decode_seconds: float = 30.0  # of processor time to decode the pictures of one request
    reconcile: float = 60.0  # with a queue: seconds in the inbox after which a message counts as lost
    spot: bool = False  # watch for the notice that this machine will be taken away
    previews: Literal["off", "express", "all"] = "express"  # for which requests the status shows previews
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
        queues: Sequence[MessageLeases] = (),
        announcer: Announcer | None = None,
        announced: asyncio.Queue[str] | None = None,
        models: ModelFetcher | None = None,  # of what is published; None: that cannot be drawn
    ) -> None:
        """
        Args:
            queues: express first.
            announced: the ids of ended requests that the announcer has announced.
        """
        self.stop = asyncio.Event()  # set it to drain
        self.failed = False  # it stops because of an unexpected error
        self.store = store
        self.claims = claims
        self.settings = settings
        self._clock = clock
        self._idle_looks = 0
        self._sweeping = asyncio.Lock()
        self._announcer = announcer
        self._announced = announced
        delivery = Delivery(claims, clock, rng, versions)
        half = settings.picture_memory * len(renderers) // 2  # for inputs; the other is for what is drawn
        hub = None if all(renderer.kind == "null" for renderer in renderers) else HUB
        ready = Preparation(
            delivery, inputs, cards, settings.limits, clock, half, settings.decode_seconds, models, hub
        )
        self.jobs = self._make_jobs(renderers, delivery, ready)
        loras = {name for renderer in renderers for name, _ in renderer.loras}
        own = Capabilities.own(cards.known(), loras, settings.limits, cards.addons)
        self._fleet = Fleet(store, claims.session, own, lease=settings.timing.lease, clock=clock)
        claimer = RequestClaimer(
            store, claims, cards, settings.default_model, settings.limits, clock, rng, self._fleet
        )
        reconcile = settings.reconcile if queues else None
        self._inbox = Inbox(
            store,
            claimer,
            self.jobs,
            self._room,
            self.stop,
            clock,
            rng,
            reconcile=reconcile,
            once=settings.once,
        )
        self._reader = self._make_reader(queues, claimer)
        self.heartbeats = Heartbeats(
            claims, own, cards, settings.default_model, self.renderers, self._speeds, self._state, clock
        )

    def _state(self) -> str:
        return "draining" if self.stop.is_set() else "working" if self.jobs.active else "idle"

    def _make_jobs(
        self, renderers: Sequence[RendererSettings], delivery: Delivery, preparation: Preparation
    ) -> Jobs:
        settings, clock = self.settings, self._clock
        half = settings.picture_memory * len(renderers) // 2  # for what is drawn; the other is for inputs
        outcomes = Outcomes(
            store=self.store,
            claims=self.claims,
            delivery=delivery,
            renderers=renderers,
            ahead=settings.ahead,
            memory=half,
            max_attempts=settings.timing.max_attempts,
            clock=clock,
        )
        self.renderers, self._speeds = outcomes.renderers, outcomes.speeds
        return Jobs(
            outcomes,
            claims=self.claims,
            delivery=delivery,
            batches=Batches(self.store, settings.limits, clock, self.claims.session),
            preparation=preparation,
            stop=self.stop,
            clock=clock,
            previews=settings.previews,
            may_fetch=4 * settings.ahead * len(renderers),
        )

    def _make_reader(self, queues: Sequence[MessageLeases], claimer: RequestClaimer) -> QueueReader | None:
        if not queues:
            return None
        from consumer.intake.queue import QueueReader  # a worker without a queue needs no AWS library

        return QueueReader(
            queues,
            store=self.store,
            claimer=claimer,
            claims=self.claims,
            begin=self.jobs.begin,
            room=self._room,
            ahead=self.settings.ahead * len(self.renderers),
            stop=self.stop,
            clock=self._clock,
        )

    def _room(self, express: bool) -> int:
        """How many more images of a lane to claim now; none before a renderer is ready."""
        return self.jobs.room(express=express) if any(renderer.ready for renderer in self.renderers) else 0

    async def run(self) -> None:
        """Work until `stop` is set (or, with `once`, until all is done), then drain."""
        await self.heartbeats.beat()  # before the first claim: a claim without a heartbeat looks abandoned
        loops = [self._start(loop) for loop in self._loops()]
        try:
            await self._look_for_requests()
        finally:
            await self._drain()
            # After the drain: a message is deleted if its request ended, and the others are given back now.
            if self._reader is not None:
                await self._reader.close()
            # After the drain: the requests that ended in it are announced too.
            if self._announcer is not None:
                await self._announcer.drain(min(_LAST_ANNOUNCEMENTS, self.settings.grace))
                await self._announcer.close()
            # Only now are tasks cut off: all that was worth waiting for has had its time.
            await self.jobs.close(_LAST_WRITES)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            # Last, and after the heartbeats have stopped: one more would make us look alive for a whole lease.
            with contextlib.suppress(StoreUnavailable):
                await self.claims.retire()

    def _loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside the main loop."""
        loops = [
            self.heartbeats.run(),
            self._sweeps(),
            self._watches(),
            self._inbox.express_looks(),
            tidying(self.store),
        ]
        if self.settings.spot:
            loops.append(spot.watch(self.stop))
        if self._announcer is not None:
            loops += [self._announcer.run(), self._forgets()]
        if self._reader is not None:
            loops.append(self._reader.run())
        return loops

    async def _look_for_requests(self) -> None:
        """List the inbox again and again."""
        async for _ in self._inbox.looks():
            if self.settings.once and await self._is_done():
                break

    async def _is_done(self) -> bool:
        """Whether two looks in a row found no request in hand and none in the inbox."""
        busy = self.jobs.busy or self._inbox.busy or (self._reader is not None and not self._reader.idle)
        announcing = self._announcer is not None and self._announcer.owed and not self._inbox.found_work
        if not busy and not announcing:  # a request that only waits for its announcement may stay
            busy = not await self._inbox.is_empty()
        self._idle_looks = 0 if busy else self._idle_looks + 1
        return self._idle_looks >= 2

    # Sweeping --------------------------------------------------------------------------------

    async def _sweeps(self) -> None:
        while not self.stop.is_set():
            try:
                async with self._sweeping:
                    await self._sweep()
            except StoreUnavailable as error:
                log.warning("the sweep is put off", extra={"why": str(error)})
            await self._until_sweep()

    async def _sweep(self) -> None:
        """Take over the requests of dead workers, as many as there is room for."""
        room, express = (max(0, self.jobs.room(express=lane)) for lane in (False, True))
        for held in await self.claims.sweep(room, self._fleet.may_take_over, express_limit=express):
            log.info("took over", extra={"id": held.claim.id, "attempt": held.claim.attempt})
            metrics.took_over()
            self.jobs.begin(held)
        self.jobs.drop_lost()

    async def _until_sweep(self) -> None:
        """Wait for the next sweep, which is due sooner if a message's request may have lost its worker."""
        seconds = self.claims.until_sweep()
        if self._reader is None or seconds <= _BETWEEN_SWEEPS:
            await asyncio.sleep(seconds)
            return
        self._reader.sweep_wanted.clear()
        await asyncio.sleep(_BETWEEN_SWEEPS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._reader.sweep_wanted.wait(), seconds - _BETWEEN_SWEEPS)

    async def _forgets(self) -> None:
        """Remove the claims of ended requests once they are announced; a sweep repeats what fails here."""
        assert self._announced is not None, "given with the announcer"
        while True:
            id = await self._announced.get()
            with contextlib.suppress(StoreUnavailable):
                await self.claims.forget(id)

    # Cancellations ---------------------------------------------------------------------------

    async def _watches(self) -> None:
        while True:
            await asyncio.sleep(min(2.0, self.settings.timing.beat))
            await self.jobs.watch()

    # Stopping --------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Take nothing new, then finish or give back what is in hand."""
        self.stop.set()  # it may not be set yet: with `once`, or after an error
        await self._inbox.close()  # first: claims under way must be in hand before the drain counts them
        await self.jobs.drain(self.settings.grace)
        # A sweep under way may take over one more request; with `stop` set it is released at once.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SWEEP), self._sweeping:
                pass

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside the others; an unexpected error stops the worker, in order."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._stop_on_error)
        return task

    def _stop_on_error(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("a loop of the worker failed; stopping", exc_info=task.exception())
            self.failed = True
            self.stop.set()
