"""The requests that a worker has in hand, and how each of them begins.

A claim comes in by `begin`. A single request is prepared and handed to the renderers; a batch is split into
rows. How a request leaves is in `outcomes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from consumer import metrics
from consumer.jobs.prepare import Preparation, refusal
from infra.decoding.process import DecoderDown
from schemas.errors import Rejected, StoreUnavailable, Unavailable
from schemas.result import Failure

if TYPE_CHECKING:
    from consumer.jobs.batches import Batches
    from consumer.jobs.delivery import Delivery
    from consumer.jobs.job import Job
    from consumer.jobs.outcomes import Outcomes
    from infra.claims.claims import Claims, Held

log = logging.getLogger(__name__)

_TICK = 0.05  # seconds between two looks at whether a drain is done


class Jobs:
    """What one worker holds. For one event loop."""

    def __init__(
        self,
        outcomes: Outcomes,
        *,
        claims: Claims,
        delivery: Delivery,
        batches: Batches,
        preparation: Preparation,
        stop: asyncio.Event,
        clock: Callable[[], float],
        previews: Literal["off", "express", "all"] = "express",
        may_fetch: int = 0,
    ) -> None:
        """
        Args:
            may_fetch: images that may wait for their models beside those that there is room for, so that a slow
                download does not keep other requests from being drawn.
            stop: once it is set, nothing new is begun.
            previews: for which requests the status shows how the images look so far.
        """
        self.active = outcomes.active  # jobs by id
        self.batches: dict[str, tuple[Held, asyncio.Task[None]]] = {}  # by id
        self._outcomes = outcomes
        self._claims = claims
        self._delivery = delivery
        self._runner = batches
        self._preparation = preparation
        self._stop = stop
        self._clock = clock
        self._previews = previews
        #: Claimed, not yet with the dispatch: lane (True: express) and images, by id.
        self._preparing: dict[str, tuple[bool, int]] = {}
        self._fetching: dict[str, tuple[bool, int]] = {}  # those of them that wait for a model
        self._may_fetch = may_fetch

    def room(self, *, express: bool = False) -> int:
        """How many more images of a lane to claim now.

        0 or less while no renderer is ready, or the store is behind.
        """
        preparing: Counter[bool] = Counter()
        for lane, images in self._preparing.values():
            preparing[lane] += images
        # What waits for a model takes room only beyond `may_fetch`.
        preparing[False] += max(0, sum(images for _, images in self._fetching.values()) - self._may_fetch)
        return self._outcomes.dispatch.room(express, preparing)

    @property
    def busy(self) -> bool:
        return bool(self.active or self.batches or self._outcomes.tasks)

    def picture_bytes(self) -> tuple[int, int]:
        """Bytes of decoded pictures: of inputs, and of images that are being drawn or not stored yet."""
        return self._preparation.room.held, self._outcomes.dispatch.picture_bytes

    # How a request begins --------------------------------------------------------------------

    def begin(self, held: Held) -> None:
        """Work on a claim until it has ended."""
        id, spawn = held.claim.id, self._outcomes.spawn
        if self._stop.is_set():
            spawn(held, self._outcomes.release(held))  # it was being claimed when the worker was stopped
        elif held.claim.batch:
            self.batches[id] = (held, spawn(held, self._batch(held)))
        else:
            images = len((held.claim.plan or {}).get("seeds", ())) or 1
            self._preparing[id] = (held.claim.in_express_lane, images)
            task = spawn(held, self._prepare(held))
            task.add_done_callback(lambda _: self._preparing.pop(id, None))

    def feed(self) -> None:
        """Hand out as many images as the renderers may have now."""
        self._outcomes.dispatch.feed()

    async def _batch(self, held: Held) -> None:
        try:
            result = await self._delivery.insist(lambda: self._runner.run(held))
            await self._delivery.commit(held, result)
            log.info("batch ended", extra={"id": held.claim.id, "status": result.status})
        finally:
            if (entry := self.batches.get(held.claim.id)) is not None and entry[0] is held:
                del self.batches[held.claim.id]

    async def _prepare(self, held: Held) -> None:
        """Make a claim a job, and let its missing images be drawn."""
        try:
            job = self._preparation.read(held)
        except (Rejected, ValueError) as error:
            await self._refuse(held, error)
            return
        if (earlier := self.active.get(job.id)) is not None:
            self._outcomes.forget(earlier)  # another worker had taken it over, and we have it again
        job.previews = self._previews == "all" or (self._previews == "express" and job.express)
        self.active[job.id] = job  # before the first wait: a cancellation or a takeover must find it
        await self._preparation.adopt(job)
        if job.needs_models and not await self._fetch(job):
            return
        try:
            await self._preparation.make_ready(
                job, wanted=lambda: self.active.get(job.id) is job and not self._stop.is_set()
            )
        except DecoderDown as error:
            self._outcomes.forget(job)
            log.warning("given back for another attempt", extra={"id": job.id, "why": str(error)})
            await self._delivery.retry(held, Failure(code="worker_crashed", message=str(error)))
            return
        if self.active.get(job.id) is not job:
            job.let_go()  # it was cancelled, or another worker took it over
            job.fetched.release()
            return
        if job.complete:
            await self._outcomes.finish(job)
        elif self._stop.is_set():
            await self._outcomes.give_back(job)
        else:
            self._preparing.pop(job.id, None)  # first, as the dispatch counts its images from now on
            self._outcomes.dispatch.add(job)

    async def _fetch(self, job: Job) -> bool:
        """Wait for a job's models; False when it was given back."""
        self._fetching[job.id] = self._preparing.pop(job.id, (job.express, 0))
        try:
            await self._preparation.fetch(job)
        except Unavailable as error:
            await self._outcomes.without_model(job, str(error))
            return False
        finally:
            self._preparing[job.id] = self._fetching.pop(job.id, (job.express, 0))
        return True

    async def _refuse(self, held: Held, error: Rejected | ValueError) -> None:
        result = refusal(held, error, self._claims.session)
        await self._delivery.commit(held, result)
        assert result.failure is not None
        facts = {"code": result.failure.code, "field": result.failure.field}
        log.info("refused", extra={"id": held.result_id, **facts})

    # What happens to it elsewhere ------------------------------------------------------------

    def drop_lost(self) -> None:
        """Stop working on what another worker took over."""
        for job in list(self.active.values()):
            if job.held.taken_over:
                log.warning("another worker took this request over", extra={"id": job.id})
                metrics.claim_lost()
                self._outcomes.forget(job)
        for id, (held, task) in list(self.batches.items()):
            if held.taken_over:
                log.warning("another worker took this batch over", extra={"id": id})
                metrics.claim_lost()
                self._drop_batch(id, task)

    async def watch(self) -> None:
        """Drop what was cancelled, and report the progress of the other requests."""
        await asyncio.gather(*(self._watch(job) for job in list(self.active.values())))
        for id, (_, task) in list(self.batches.items()):
            with contextlib.suppress(StoreUnavailable):
                if not task.done() and await self._claims.is_over(id):
                    log.info("a batch in hand was ended by somebody else", extra={"id": id})
                    self._drop_batch(id, task)

    async def _watch(self, job: Job) -> None:
        with contextlib.suppress(StoreUnavailable):
            if await self._claims.is_over(job.id) and job.id in self.active:
                log.info("a request in hand was ended by somebody else", extra={"id": job.id})
                self._outcomes.forget(job)
                await self._outcomes.progress.remove(job)
            else:
                await self._outcomes.progress.report(job)

    def _drop_batch(self, id: str, task: asyncio.Task[None]) -> None:
        self.batches.pop(id, None)
        task.cancel()

    # Stopping --------------------------------------------------------------------------------

    async def drain(self, grace: float) -> None:
        """Give back what has not begun, finish what fits into the grace period, give back the rest.

        Args:
            grace: seconds.
        """
        waiting, batches = self._outcomes.dispatch.waiting, list(self.batches.values())
        back = [job for job in self.active.values() if job in waiting or not job.partly_drawn]
        facts = {"given_back": len(back) + len(batches), "finishing": len(self.active) - len(back)}
        log.info("draining", extra=facts)
        for _, task in batches:  # a batch waits for its rows, which may take longer than any grace period
            task.cancel()
        # Before we wait for what is being drawn: other workers can begin with these now.
        give_back, release = self._outcomes.give_back, self._outcomes.release
        await asyncio.gather(*map(give_back, back), *(release(held) for held, _ in batches))
        ends = self._clock() + grace
        while (self.active or self._outcomes.tasks) and self._clock() < ends:
            await asyncio.sleep(_TICK)
        await asyncio.gather(*map(give_back, list(self.active.values())))

    async def close(self, seconds: float) -> None:
        """Give the writes under way some seconds, then cancel what is still running."""
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=seconds)
        rest = self._tasks()  # again: one that ended may have started another
        for task in rest:
            task.cancel()
        self._preparation.close()  # a thread that waits for a decoder ends, too
        await asyncio.gather(*rest, return_exceptions=True)

    def _tasks(self) -> set[asyncio.Task[None]]:
        return self._outcomes.tasks | self._outcomes.progress.tasks
