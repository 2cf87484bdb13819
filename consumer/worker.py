"""The loop that joins everything, and how it stops.

A worker listens for requests, claims what it has room for, feeds its renderers, and delivers what
they draw. Beside that it shows life (only while its renderers do), sweeps up after the dead,
looks out for cancellations, and tells how far it is. No torch here: what crashes or hangs is a
child's problem.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumer import picture
from consumer.batches import Batches
from consumer.delivery import Delivery
from consumer.dispatch import Dispatch
from consumer.intake import Intake, has_expired
from consumer.job import Job
from consumer.tasks import Drawn, Event, RawPicture, Ready, Stepped, Undrawable
from infra.claims import Claims, Held, Timing
from infra.inbox import changes
from schemas import layout
from schemas.errors import DreamError, Rejected, StoreUnavailable
from schemas.limits import Limits
from schemas.manifest import Img2Img, Inpainting, parse_manifest
from schemas.plan import Plan
from schemas.result import Failure, Progress, Result

if TYPE_CHECKING:
    from consumer.cards import Cards
    from consumer.inputs import Inputs
    from consumer.renderer import Loss, Renderer
    from infra.store import Info, Store

log = logging.getLogger(__name__)

_TAKING = 8  # requests being claimed at a time
_STATUS_AFTER = 1.0  # seconds of work before a request gets a status object, and between two of them


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What an operator decides about the parent."""

    default_model: str = "doodle"
    timing: Timing = Timing()
    limits: Limits = Limits()
    grace: float = 25.0  # seconds to finish what is being drawn after SIGTERM
    ahead: int = 32  # images that a renderer may hold
    input_prefixes: tuple[str, ...] = ("uploads/",)  # keys that a manifest may name as input
    once: bool = False  # stop when there is nothing left to do


@dataclass(eq=False)
class Worker:
    """One session on one store."""

    store: Store
    claims: Claims
    renderers: list[Renderer]
    cards: Cards
    settings: WorkerSettings
    inputs: Inputs
    clock: Callable[[], float]
    rng: random.Random
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stop = asyncio.Event()  # set it to drain
        self._jobs: dict[str, Job] = {}
        self._batches: dict[str, tuple[Held, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._preparing = 0  # claimed, not yet with the dispatch
        self._idle_looks = 0
        self._found = False
        self._delivery = Delivery(self.claims, self.clock, self.versions)
        self._rollup = Batches(self.store, self.settings.limits, self.clock, self.claims.session)
        self._intake = Intake(
            self.store,
            self.claims,
            self.cards,
            self.settings.default_model,
            self.settings.limits,
            self.clock,
            self.rng,
        )

    def join(self) -> None:
        """Take the renderers in, which had to know this worker first."""
        self._dispatch = Dispatch(self.renderers, self.settings.ahead)

    # The loops -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop` is set (or, with `once`, until all is done), then drain."""
        await self._beat()  # before the first claim: a claim without a heartbeat looks abandoned
        loops = [self._guarded(loop) for loop in (self._beats(), self._sweeps(), self._watches())]
        try:
            async for _ in changes(self.store, self.stop, found_work=lambda: self._found, shortest=0.2):
                await self._look()
                if self.settings.once and await self._is_done():
                    break
        finally:
            await self._drain()
            for loop in [*loops, *self._tasks]:
                loop.cancel()
            await asyncio.gather(*loops, *self._tasks, return_exceptions=True)
            with contextlib.suppress(StoreUnavailable):
                await self.claims.retire()

    @property
    def _room(self) -> int:
        """How many more images to claim now."""
        return self._dispatch.room - self._preparing

    async def _look(self) -> None:
        """List the inbox and claim what there is room for."""
        self._found = False
        self._dispatch.feed()
        if self._room <= 0 or not any(r.ready for r in self.renderers):
            self._found = True  # look again soon
            return
        try:
            async for page in self._pages():
                self.rng.shuffle(page)  # so that workers do not all begin with the same request
                for start in range(0, len(page), _TAKING):
                    room = self._room
                    if room <= 0 or self.stop.is_set():
                        self._found = True
                        return
                    part = page[start : start + min(_TAKING, room)]
                    await asyncio.gather(*(self._take(info) for info in part))
        except StoreUnavailable as error:
            log.warning("the inbox cannot be listed", extra={"why": str(error)})

    async def _pages(self) -> AsyncIterator[list[Info]]:
        """The request objects, express ones first, a page at a time."""
        page: list[Info] = []
        for prefix in (layout.EXPRESS, layout.REQUESTS):
            async for info in self.store.list(prefix):
                if prefix == layout.REQUESTS and info.key.startswith(layout.EXPRESS):
                    continue
                if layout.is_request(info.key):
                    page.append(info)
                if len(page) >= 64:
                    yield page
                    page = []
            if page:
                yield page
                page = []

    async def _take(self, info: Info) -> None:
        try:
            held = await self._intake.take(info)
        except StoreUnavailable as error:
            log.warning("a request is left for later", extra={"key": info.key, "why": str(error)})
            return
        self._found = self._found or self._intake.waits_for(info.key)
        if held is not None:
            self._found = True
            self._begin(held)

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
            "state": "draining" if self.stop.is_set() else "working" if self._jobs else "idle",
            "models": self.cards.known(),
            "default_model": self.settings.default_model,
            "devices": [r.device for r in ready],
        }
        try:
            await self.claims.beat(facts)
        except StoreUnavailable as error:
            log.warning("the heartbeat was not written", extra={"why": str(error)})

    async def _sweeps(self) -> None:
        while not self.stop.is_set():
            try:
                for held in await self.claims.sweep(max(0, self._room)):
                    log.info("took over", extra={"id": held.claim.id, "attempt": held.claim.attempt})
                    if self.stop.is_set():
                        await self._release(held)  # the drain began while we looked
                    else:
                        self._begin(held)
                self._drop_lost()
            except StoreUnavailable as error:
                log.warning("the sweep is put off", extra={"why": str(error)})
            await asyncio.sleep(self.claims.until_sweep())

    def _drop_lost(self) -> None:
        for job in list(self._jobs.values()):
            if job.held.lost:
                log.warning("another worker took this request over", extra={"id": job.id})
                self._forget(job)

    async def _watches(self) -> None:
        """Look whether a held request was ended by somebody else: cancelled, most likely."""
        while True:
            await asyncio.sleep(min(2.0, self.settings.timing.beat))
            await asyncio.gather(*(self._watch(job) for job in list(self._jobs.values())))
            for id, (_, task) in list(self._batches.items()):
                with contextlib.suppress(StoreUnavailable):
                    if not task.done() and await self.claims.is_over(id):
                        log.info("batch ended by somebody else", extra={"id": id})
                        self._batches.pop(id, None)
                        task.cancel()

    async def _watch(self, job: Job) -> None:
        with contextlib.suppress(StoreUnavailable):
            if await self.claims.is_over(job.id) and job.id in self._jobs:
                log.info("ended by somebody else", extra={"id": job.id})
                self._forget(job)
            elif self.clock() - job.began > _STATUS_AFTER and job.id in self._jobs:
                await self._tell(job)

    # One request ---------------------------------------------------------------------------

    def _begin(self, held: Held) -> None:
        if held.claim.batch:
            self._batches[held.claim.id] = (held, self._spawn(self._batch(held)))
        else:
            self._preparing += 1
            self._spawn(self._prepare(held)).add_done_callback(self._prepared)

    def _prepared(self, _: asyncio.Task[None]) -> None:
        self._preparing -= 1

    async def _batch(self, held: Held) -> None:
        result = await self._delivery.insist(lambda: self._rollup.run(held))
        await self._delivery.insist(lambda: self.claims.commit(held, result))
        log.info("batch ended", extra={"id": held.claim.id, "status": result.status})
        self._batches.pop(held.claim.id, None)

    async def _prepare(self, held: Held) -> None:
        """Decode what was sent in, adopt what is drawn already, and queue the rest."""
        began = self.clock()
        try:
            manifest = parse_manifest(held.claim.frozen.body(), self.settings.limits)
            plan = Plan.model_validate(held.claim.plan)
        except (Rejected, ValueError) as error:
            await self._give_up(held, error)
            return
        job = Job(held, manifest, plan, began, notes=list(plan.notes))
        self._jobs[job.id] = job
        await self._delivery.adopt(job)
        if has_expired(manifest) and not job.images:
            job.failures = {
                i: Failure(code="expired", message="expires_at has passed") for i in job.missing()
            }
        elif isinstance(manifest, Img2Img | Inpainting) and job.missing():
            try:
                job.inputs = await self._decode(manifest, job)
            except Rejected as error:
                failure = Failure.model_validate(
                    {"code": error.code, "message": error.message, "field": error.field}
                )
                job.failures = dict.fromkeys(job.missing(), failure)
            job.spent("decode", self.clock() - began)
        if job.manifest.strict and job.notes:
            failure = Failure(code="invalid_manifest", message="strict is set")
            job.failures = dict.fromkeys(job.missing(), failure)
        if job.complete:
            await self._finish(job)
        elif self._jobs.get(job.id) is job and not self.stop.is_set():
            self._dispatch.add(job)

    async def _decode(
        self, manifest: Img2Img | Inpainting, job: Job
    ) -> tuple[RawPicture | None, RawPicture | None]:
        """The input picture and mask, at the size that will be drawn."""
        limits = self.settings.limits
        mask_text = manifest.mask_image if isinstance(manifest, Inpainting) else None
        image_bytes = await self.inputs.read(manifest.image, "image")
        mask_bytes = await self.inputs.read(mask_text, "mask_image") if mask_text else None

        def decode() -> tuple[RawPicture | None, RawPicture | None]:
            image, notes = picture.decode_picture(image_bytes, "image", limits)
            mask = None
            if mask_bytes is not None:
                mask, more = picture.decode_picture(mask_bytes, "mask_image", limits, mask=True)
                notes += more
            image, mask, more = picture.fit(image, mask, limits)
            for note in notes + more:
                job.note(note)
            return image, mask

        return await asyncio.to_thread(decode)

    async def _give_up(self, held: Held, error: Exception) -> None:
        """A claim whose request cannot be read, such as one by a worker with other limits."""
        code = error.code if isinstance(error, Rejected) else "invalid_manifest"
        result = Result(
            id=held.claim.id,
            status="failed",
            failure=Failure.model_validate({"code": code, "message": str(error)}),
            worker=self.claims.session,
            attempts=held.claim.attempt,
            fingerprint=held.claim.fingerprint,
            request=held.claim.frozen,
        )
        await self._delivery.insist(lambda: self.claims.commit(held, result))

    # What the renderers say ----------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Hear from a renderer; runs in the event loop's thread."""
        if isinstance(event, Ready):
            self.versions.update(event.versions)
            self._delivery.versions.update(event.versions)
            self._dispatch.feed()
        elif isinstance(event, Stepped):
            for (request, index), steps in event.steps.items():
                if request in self._jobs:
                    self._jobs[request].progress[index] = steps
        elif (job := self._jobs.get(event.request)) is not None:
            if isinstance(event, Drawn):
                job.finishing.add(event.index)
                self._spawn(self._deliver(job, event))
            else:
                self._spawn(self._fail(job, event))
            if not job.missing():
                self._dispatch.drop(job)
            self._dispatch.feed()

    async def _deliver(self, job: Job, drawn: Drawn) -> None:
        await self._delivery.image(job, drawn)
        job.finishing.discard(drawn.index)
        if job.complete:
            await self._finish(job)

    async def _fail(self, job: Job, event: Undrawable) -> None:
        failure = Failure.model_validate(
            {"code": event.code, "message": event.message, "field": event.field, "index": event.index}
        )
        if event.retry and job.attempt < self.settings.timing.max_attempts:
            self._forget(job)
            log.warning("given back for another try", extra={"id": job.id, "why": event.message})
            await self._delivery.insist(lambda: self.claims.release(job.held, "retry", failure))
            return
        job.failures[event.index] = failure
        if job.complete:
            await self._finish(job)

    def on_loss(self, renderer: Renderer, loss: Loss) -> None:
        """A renderer died: whoever was in it is tried again, alone, as often as is allowed."""
        log.error("renderer lost", extra={"why": loss.why, "detail": loss.detail[-300:]})
        for job in self._dispatch.lost(renderer):
            job.losses += 1
            if job.attempt <= self.settings.timing.max_attempts:
                self._dispatch.add(job)
                continue
            job.losses -= 1
            tried = f"given up after {job.attempt} attempts"
            text = f"the renderer {loss.why} each time that it drew this request; {tried}"
            job.failures |= dict.fromkeys(job.missing(), Failure(code="worker_crashed", message=text))
            if job.complete:
                self._spawn(self._finish(job))

    async def _finish(self, job: Job) -> None:
        """Commit, once."""
        if self._jobs.get(job.id) is not job:
            return
        self._forget(job)
        await self._delivery.commit(job)
        if job.told:
            with contextlib.suppress(StoreUnavailable):
                await self.store.delete(layout.status_key(job.id))

    def _forget(self, job: Job) -> None:
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
        self._dispatch.drop(job)

    async def _tell(self, job: Job) -> None:
        """Write how far a request is, for people."""
        count = len(job.plan.seeds)
        done, total = zip(*job.progress.values(), strict=True) if job.progress else ((0,), (job.plan.steps,))
        progress = Progress(
            id=job.id,
            steps_done=sum(done),
            steps_total=max(sum(total), job.plan.steps * count),
            images_done=len(job.images),
            images_total=count,
            worker=self.claims.session,
            attempts=job.attempt,
        )
        job.told = True
        await self.store.put(layout.status_key(job.id), progress.model_dump_json().encode())

    # Stopping ------------------------------------------------------------------------------

    async def _is_done(self) -> bool:
        """Whether nothing is left: no job, no batch, no request object, and it stayed so for two looks."""
        busy = bool(self._jobs or self._batches or self._tasks)
        if not busy:
            async for info in self.store.list(layout.REQUESTS):
                busy = busy or layout.is_request(info.key)
        self._idle_looks = 0 if busy else self._idle_looks + 1
        return self._idle_looks >= 2

    async def _drain(self) -> None:
        """Give back what has not begun, finish what fits into the grace period, give back the rest."""
        self.stop.set()
        waiting = self._dispatch.waiting
        begun = [job for job in self._jobs.values() if job not in waiting]
        idle = [job for job in begun if not job.progress and not job.images and not job.finishing]
        back = [*waiting, *idle]
        batches = list(self._batches.values())
        facts = {"given_back": len(back) + len(batches), "finishing": len(begun) - len(idle)}
        log.info("draining", extra=facts)
        for _, task in batches:
            task.cancel()
        await asyncio.gather(
            *(self._give_back(job) for job in back), *(self._release(held) for held, _ in batches)
        )
        ends = self.clock() + self.settings.grace
        while (self._jobs or self._tasks) and self.clock() < ends:
            await asyncio.sleep(0.05)
        await asyncio.gather(*(self._give_back(job) for job in list(self._jobs.values())))

    async def _give_back(self, job: Job) -> None:
        self._forget(job)
        await self._release(job.held)

    async def _release(self, held: Held) -> None:
        try:
            await self.claims.release(held, "drain")
        except DreamError as error:
            log.warning(
                "not given back; its lease will run out", extra={"id": held.claim.id, "why": str(error)}
            )

    def _guarded(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside the others; a failure that nobody foresaw ends the worker, in order."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._reap)
        return task

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._guarded(work)
        self._tasks.add(task)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the worker failed; stopping", exc_info=task.exception())
            self.stop.set()
