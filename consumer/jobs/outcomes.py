"""What renderers report, and how a request leaves: with a result, or with its claim given back.

The work for each request runs in tasks of its own, so an error costs that request and no other. An
unexpected error gives the claim back: nobody would take it over while this worker's heartbeat goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from consumer import metrics
from consumer.jobs.dispatch import Dispatch
from consumer.jobs.progress import ProgressReporter
from consumer.renderer.process import Loss, Renderer
from consumer.renderer.protocol import Drawn, Event, Ready, RendererSettings, Stepped, Undrawable
from consumer.speeds import Speeds
from infra.logs import redacted
from schemas.errors import DreamError
from schemas.result import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer.jobs.delivery import Delivery
    from consumer.jobs.job import Job
    from infra.claims.claims import Claims, Held
    from infra.stores.store import Store

log = logging.getLogger(__name__)


class Outcomes:
    """The jobs that one worker's renderers draw, until they leave. For one event loop."""

    def __init__(
        self,
        *,
        store: Store,
        claims: Claims,
        delivery: Delivery,
        renderers: Sequence[RendererSettings],
        ahead: int,
        memory: int,
        max_attempts: int,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            ahead: images that a renderer may hold.
            memory: bytes of pixels for images that are being drawn or wait for the store.
            max_attempts: renderers may die while they draw a request as often as this.
        """
        self.active: dict[str, Job] = {}  # by id
        self.tasks: set[asyncio.Task[None]] = set()
        self.progress = ProgressReporter(store, claims.session, clock, self.active)
        self.speeds = Speeds()
        self.renderers = [self._renderer(settings) for settings in renderers]
        self.dispatch = Dispatch(self.renderers, ahead, memory)
        self._claims = claims
        self._delivery = delivery
        self._max_attempts = max_attempts
        self._clock = clock

    def _renderer(self, settings: RendererSettings) -> Renderer:
        def on_event(event: Event) -> None:
            self.on_event(event, settings.device)

        def on_loss(loss: Loss) -> None:
            self.on_loss(renderer, loss)

        renderer = Renderer(settings, on_event, on_loss)
        return renderer

    # What renderers report -------------------------------------------------------------------

    def on_event(self, event: Event, device: str) -> None:
        """Handle a renderer's report; called in the event loop's thread."""
        if isinstance(event, Ready):
            self._delivery.versions.update(event.versions)
            self.dispatch.feed()
        elif isinstance(event, Stepped):
            for call in event.calls:
                self.speeds.called(call)
                if call.kind == "unet":
                    metrics.unet_called(call.model, call.rows, call.slots, call.seconds)
            now = self._clock()
            for (request, index), steps in event.steps.items():
                if (job := self.active.get(request)) is not None:
                    job.stepped(now, index, steps, event.previews.get((request, index)))
                    if job.express:
                        self.progress.stepped(job)
        elif (job := self.active.get(event.request)) is not None and event.index in job.missing():
            if isinstance(event, Drawn):
                job.finishing.add(event.index)
                metrics.drawn(device, job.plan.model, job.plan.task, job.drawn_size(), event.seconds)
                lane, size = job.express, len(event.picture.data)
                self.dispatch.drawn(lane, size)  # before anything else is fed: it takes memory from now on
                task = self.spawn(job.held, self._deliver(job, event))
                task.add_done_callback(lambda _: self.dispatch.stored(lane, size))
            else:
                self.spawn(job.held, self._fail(job, event))

    async def _deliver(self, job: Job, drawn: Drawn) -> None:
        self._make_way(job)  # before the upload: the device goes on while the picture is encoded and stored
        await self._delivery.image(job, drawn)
        job.finishing.discard(drawn.index)
        if job.complete:  # the last image that is stored commits the result, whichever it is
            await self.finish(job)

    async def _fail(self, job: Job, event: Undrawable) -> None:
        facts = {"code": event.code, "message": event.message, "field": event.field, "index": event.index}
        failure = Failure.model_validate(facts)
        if event.retry and job.attempt < self._max_attempts:
            self.forget(job)
            # Only this message is ours alone; a pipeline's own may quote the prompt, which no log may hold.
            why = {"why": event.message} if event.code == "model_unavailable" else {}
            log.warning("given back for another attempt", extra={"id": job.id, "code": event.code, **why})
            await self._delivery.retry(job.held, failure)
            return
        metrics.failed(failure.code)
        job.failures[event.index] = failure
        self._make_way(job)
        if job.complete:
            await self.finish(job)

    async def without_model(self, job: Job, why: str) -> None:
        """End an attempt whose model has no place on this machine."""
        if self.active.get(job.id) is not job:
            return
        self.forget(job)
        log.warning("given back: its model has no place here", extra={"id": job.id, "why": why})
        await self._delivery.retry(job.held, Failure(code="model_unavailable", message=why, field="model"))

    def _make_way(self, job: Job) -> None:
        """Let the next job begin once all images of this one are drawn."""
        if not job.missing():
            self.dispatch.drop(job)
        self.dispatch.feed()

    def on_loss(self, renderer: Renderer, loss: Loss) -> None:
        """Handle a renderer's death: draw its jobs again, each alone, while they have attempts left."""
        facts = {"device": renderer.settings.device, "why": loss.why}
        log.error("renderer lost", extra={**facts, "error": loss.redacted})
        metrics.renderer_lost(renderer.settings.device, loss.why)
        for job in self.dispatch.lost(renderer):
            job.losses += 1
            if job.attempt <= self._max_attempts:
                self.dispatch.add(job)
                continue
            job.losses -= 1
            tried = f"given up after {job.attempt} attempts"
            text = f"the renderer {loss.why} each time that it drew this request; {tried}"
            job.failures |= dict.fromkeys(job.missing(), Failure(code="worker_crashed", message=text))
            if job.complete:
                self.spawn(job.held, self.finish(job))
        if all(one.hopeless for one in self.renderers):
            for job in self.dispatch.waiting:
                self.forget(job)
                self.spawn(job.held, self._hand_on(job, loss.why))

    async def _hand_on(self, job: Job, why: str) -> None:
        """Give a job back because no device is left. Counts as an attempt only if a renderer died with it."""
        if not job.losses:
            await self.release(job.held)
            return
        text = f"the renderer {why} with this request, and no other could be started there"
        await self._delivery.retry(job.held, Failure(code="worker_crashed", message=text))

    # How a request leaves --------------------------------------------------------------------

    async def finish(self, job: Job) -> None:
        """Commit the result of a job; a second call does nothing."""
        if self.active.get(job.id) is not job:
            return
        self.forget(job)  # before the commit, which may wait for the store: nobody may finish it twice
        await self._delivery.finish(job)
        await self.progress.remove(job)  # after the commit: until then the status is all that a client sees

    def forget(self, job: Job) -> None:
        """Draw no more of a job; it ends here, or its claim is given back or taken over."""
        if self.active.get(job.id) is job:
            del self.active[job.id]
        self.dispatch.drop(job)
        job.fetched.release()

    async def give_back(self, job: Job) -> None:
        self.forget(job)
        await self.release(job.held)
        await self.progress.remove(job)  # its next worker writes one of its own

    async def release(self, held: Held) -> None:
        """Release a claim, so that another worker takes it at once; does not count as an attempt."""
        try:
            await self._claims.release(held, "drain")
        except DreamError as error:
            facts = {"id": held.claim.id, "why": str(error)}
            log.warning("a claim was not released; others take it when the lease has run out", extra=facts)

    # Tasks -----------------------------------------------------------------------------------

    def spawn(self, held: Held, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work for a claim beside everything else."""
        task = asyncio.get_running_loop().create_task(self._guard(held, work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _guard(self, held: Held, work: Coroutine[Any, Any, None]) -> None:
        """Let an unexpected error cost an attempt of this request, not the worker."""
        try:
            await work
        except Exception as error:
            text, facts = "a request failed unexpectedly", {"id": held.claim.id}
            log.error(text, extra={**facts, "error": redacted(error)})
            log.debug(text, extra=facts, exc_info=error)
            if (job := self.active.get(held.claim.id)) is not None:
                self.forget(job)
            text = f"the worker failed unexpectedly ({type(error).__name__}); see its log"
            await self._delivery.retry(held, Failure(code="render_error", message=text))
