"""The requests in hand: from a claim, through the renderers, to a result.

Each claimed request is one task; whatever goes wrong in it is said of that request and of no
other. An unforeseen failure gives the claim back, so that it never waits behind a live heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal

from consumer.jobs.dispatch import Dispatch
from consumer.jobs.prepare import Preparation, refusal
from consumer.jobs.progress import StatusBoard
from consumer.renderer.process import Loss, Renderer
from consumer.renderer.protocol import Drawn, Event, Ready, RendererSettings, Stepped, Undrawable
from infra.logs import redacted
from schemas.errors import DreamError, Rejected, StoreUnavailable
from schemas.result import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer.jobs.batches import Batches
    from consumer.jobs.delivery import Delivery
    from consumer.jobs.inputs import Inputs
    from consumer.jobs.job import Job
    from infra.claims.claims import Claims, Held
    from infra.stores.store import Store
    from schemas.limits import Limits

log = logging.getLogger(__name__)


class Jobs:
    """What one worker holds. For one event loop."""

    def __init__(
        self,
        *,
        store: Store,
        claims: Claims,
        renderers: Sequence[RendererSettings],
        delivery: Delivery,
        batches: Batches,
        inputs: Inputs,
        limits: Limits,
        max_attempts: int,
        ahead: int,
        clock: Callable[[], float],
        previews: Literal["off", "express", "all"] = "express",
    ) -> None:
        self.closing = False  # nothing new is begun
        self.active: dict[str, Job] = {}  # by id
        self.batches: dict[str, tuple[Held, asyncio.Task[None]]] = {}  # by id
        self.tasks: set[asyncio.Task[None]] = set()
        self.board = StatusBoard(store, claims.session, clock, self.active)
        self._claims = claims
        self.renderers = [self._renderer(settings) for settings in renderers]
        self._dispatch = Dispatch(self.renderers, ahead)
        self._delivery = delivery
        self._rollup = batches
        self._preparation = Preparation(delivery, inputs, limits, clock)
        self._max_attempts = max_attempts
        self._clock = clock
        self._previews = previews
        self._preparing: dict[str, int] = {}  # claimed, not yet with the dispatch: images, by id

    @property
    def room(self) -> int:
        """How many more images to claim now; 0 or less while no renderer is ready, or the store is behind."""
        return self._dispatch.room - sum(self._preparing.values())

    @property
    def busy(self) -> bool:
        return bool(self.active or self.batches or self.tasks)

    @property
    def not_begun(self) -> list[Job]:
        """The jobs of which nothing is drawn, even in part."""
        waiting = self._dispatch.waiting
        return [
            j for j in self.active.values() if j in waiting or not (j.progress or j.images or j.finishing)
        ]

    def _renderer(self, settings: RendererSettings) -> Renderer:
        def on_loss(loss: Loss) -> None:
            self.on_loss(renderer, loss)

        renderer = Renderer(settings, self.on_event, on_loss)
        return renderer

    # From claim to renderer ------------------------------------------------------------------

    def begin(self, held: Held) -> None:
        """Work on a claim until it has ended."""
        id = held.claim.id
        if self.closing:
            self._spawn(held, self.release(held))  # claimed while the drain began
        elif held.claim.batch:
            self.batches[id] = (held, self._spawn(held, self._batch(held)))
        else:
            self._preparing[id] = len((held.claim.plan or {}).get("seeds", ())) or 1
            task = self._spawn(held, self._prepare(held))
            task.add_done_callback(lambda _: self._preparing.pop(id, None))

    def feed(self) -> None:
        """Hand out what can be handed out now."""
        self._dispatch.feed()

    async def _batch(self, held: Held) -> None:
        result = await self._delivery.insist(lambda: self._rollup.run(held))
        await self._delivery.insist(lambda: self._claims.commit(held, result))
        log.info("batch ended", extra={"id": held.claim.id, "status": result.status})
        self.batches.pop(held.claim.id, None)

    async def _prepare(self, held: Held) -> None:
        """Make a job of a claim, and have drawn what is not there yet."""
        try:
            job = self._preparation.read(held)
        except (Rejected, ValueError) as error:
            result = refusal(held, error, self._claims.session)
            await self._delivery.insist(lambda: self._claims.commit(held, result))
            assert result.failure is not None
            facts = {"code": result.failure.code, "field": result.failure.field}
            log.info("refused", extra={"id": held.result_id, **facts})
            return
        if (lost := self.active.get(job.id)) is not None:
            self.forget(lost)  # it was taken over, and has come back to us
        job.previews = self._previews == "all" or (self._previews == "express" and job.express)
        self.active[job.id] = job
        await self._preparation.make_ready(job)
        if self.active.get(job.id) is not job:
            return
        if job.complete:
            await self._finish(job)
        elif self.closing:
            await self.give_back(job)
        else:
            self._preparing.pop(job.id, None)
            self._dispatch.add(job)

    # What the renderers say ------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Hear from a renderer; runs in the event loop's thread."""
        if isinstance(event, Ready):
            self._delivery.versions.update(event.versions)
            self._dispatch.feed()
        elif isinstance(event, Stepped):
            now = self._clock()
            for (request, index), steps in event.steps.items():
                if (job := self.active.get(request)) is not None:
                    job.stepped(now, index, steps, event.previews.get((request, index)))
                    if job.express:
                        self.board.stepped(job)
        elif (job := self.active.get(event.request)) is not None and event.index in job.missing():
            if isinstance(event, Drawn):
                job.finishing.add(event.index)
                self._dispatch.drawn()  # at once, or the next image is begun in the meantime
                task = self._spawn(job.held, self._deliver(job, event))
                task.add_done_callback(lambda _: self._dispatch.stored())
            else:
                self._spawn(job.held, self._fail(job, event))

    async def _deliver(self, job: Job, drawn: Drawn) -> None:
        self._make_way(job)
        await self._delivery.image(job, drawn)
        job.finishing.discard(drawn.index)
        if job.complete:
            await self._finish(job)

    async def _fail(self, job: Job, event: Undrawable) -> None:
        facts = {"code": event.code, "message": event.message, "field": event.field, "index": event.index}
        failure = Failure.model_validate(facts)
        if event.retry and job.attempt < self._max_attempts:
            self.forget(job)
            log.warning("given back for another try", extra={"id": job.id, "code": event.code})
            await self._delivery.insist(lambda: self._claims.release(job.held, "retry", failure))
            return
        job.failures[event.index] = failure
        self._make_way(job)
        if job.complete:
            await self._finish(job)

    def _make_way(self, job: Job) -> None:
        """A job of which all is drawn makes way for the next."""
        if not job.missing():
            self._dispatch.drop(job)
        self._dispatch.feed()

    def on_loss(self, renderer: Renderer, loss: Loss) -> None:
        """A renderer died: whoever was in it is tried again, alone, as often as is allowed."""
        facts = {"device": renderer.settings.device, "why": loss.why}
        log.error("renderer lost", extra={**facts, "error": loss.redacted})
        for job in self._dispatch.lost(renderer):
            job.losses += 1
            if job.attempt <= self._max_attempts:
                self._dispatch.add(job)
                continue
            job.losses -= 1
            tried = f"given up after {job.attempt} attempts"
            text = f"the renderer {loss.why} each time that it drew this request; {tried}"
            job.failures |= dict.fromkeys(job.missing(), Failure(code="worker_crashed", message=text))
            if job.complete:
                self._spawn(job.held, self._finish(job))
        if all(one.hopeless for one in self.renderers):
            for job in self._dispatch.waiting:
                self.forget(job)
                self._spawn(job.held, self._hand_on(job, loss.why))

    async def _hand_on(self, job: Job, why: str) -> None:
        """No device is left here. It costs an attempt of those only that a renderer died with."""
        if not job.losses:
            await self.release(job.held)
            return
        text = f"the renderer {why} with this request, and no other could be started there"
        failure = Failure(code="worker_crashed", message=text)
        await self._delivery.insist(lambda: self._claims.release(job.held, "retry", failure))

    # How a request leaves --------------------------------------------------------------------

    async def _finish(self, job: Job) -> None:
        """Commit, once."""
        if self.active.get(job.id) is not job:
            return
        self.forget(job)
        await self._delivery.commit(job)
        await self.board.wipe(job)

    def forget(self, job: Job) -> None:
        """Draw no more of it; its claim is somebody else's, or about to be given back."""
        if self.active.get(job.id) is job:
            del self.active[job.id]
        self._dispatch.drop(job)

    async def give_back(self, job: Job) -> None:
        self.forget(job)
        await self.release(job.held)
        await self.board.wipe(job)

    async def release(self, held: Held) -> None:
        """Give a claim back at once, uncounted."""
        try:
            await self._claims.release(held, "drain")
        except DreamError as error:
            facts = {"id": held.claim.id, "why": str(error)}
            log.warning("not given back; its lease will run out", extra=facts)

    def drop_lost(self) -> None:
        """Stop working on what another worker took over."""
        for job in list(self.active.values()):
            if job.held.taken_over:
                log.warning("another worker took this request over", extra={"id": job.id})
                self.forget(job)
        for id, (held, task) in list(self.batches.items()):
            if held.taken_over:
                log.warning("another worker took this batch over", extra={"id": id})
                self._drop_batch(id, task)

    async def watch(self) -> None:
        """See who was cancelled, and tell how far the others are."""
        await asyncio.gather(*(self._watch(job) for job in list(self.active.values())))
        for id, (_, task) in list(self.batches.items()):
            with contextlib.suppress(StoreUnavailable):
                if not task.done() and await self._claims.is_over(id):
                    log.info("batch ended by somebody else", extra={"id": id})
                    self._drop_batch(id, task)

    def _drop_batch(self, id: str, task: asyncio.Task[None]) -> None:
        self.batches.pop(id, None)
        task.cancel()

    async def _watch(self, job: Job) -> None:
        with contextlib.suppress(StoreUnavailable):
            if await self._claims.is_over(job.id) and job.id in self.active:
                log.info("ended by somebody else", extra={"id": job.id})
                self.forget(job)
                await self.board.wipe(job)
            else:
                await self.board.tell(job)

    # Tasks -----------------------------------------------------------------------------------

    def _spawn(self, held: Held, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._guard(held, work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _guard(self, held: Held, work: Coroutine[Any, Any, None]) -> None:
        """An error that nobody foresaw costs an attempt of this request, not the worker."""
        try:
            await work
        except Exception as error:
            text, facts = "a request failed in an unforeseen way", {"id": held.claim.id}
            log.error(text, extra={**facts, "error": redacted(error)})
            log.debug(text, extra=facts, exc_info=error)
            if (job := self.active.get(held.claim.id)) is not None:
                self.forget(job)
            self.batches.pop(held.claim.id, None)
            text = f"the worker failed in a way that nobody foresaw ({type(error).__name__}); see its log"
            failure = Failure(code="render_error", message=text)
            await self._delivery.insist(lambda: self._claims.release(held, "retry", failure))
