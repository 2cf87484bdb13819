"""The trainer's main loop: it takes trainings of a store, one at a time, and gives them back when it must stop.

The parent holds the store's credentials and never imports torch. A child trains; see `training.lease.child`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.claims.claims import Claims, Held, Timing
from infra.claims.trainings import MAX_BODY, TrainingStore
from infra.stores.changes import changes
from infra.stores.store import Info
from infra.stores.timed import TimedStore
from schemas import layout
from schemas.errors import NotFound, Rejected, StoreUnavailable, TooLarge, Unavailable
from schemas.plan import Refusal
from schemas.result import Failure
from schemas.training import parse_training
from training.lease.inputs import Inputs
from training.lease.job import Job
from training.lease.pulse import Pulse

log = logging.getLogger("dreamdrop.trainer")

_SETTLED = 2.0  # seconds that a file which ends too early must stay the same until it counts as wrong
_LOOK_EVERY = 2.0  # seconds between two looks for a cancellation
_BEAT_TIMEOUT = 5.0  # seconds until an unanswered heartbeat is given up


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """What an operator decides."""

    timing: Timing = field(default_factory=Timing)
    work: Path = Path(tempfile.gettempdir())  # where the folder of a training is made
    patience: float = 1800.0  # seconds without a report of the child after which it is replaced
    grace: float = 100.0  # seconds to save a checkpoint after SIGTERM
    processes: int = 1  # that train together, one a device
    logs: Path | None = None  # for TensorBoard's files; None: none
    only: str = ""  # the id of the one training to take; "" for all
    once: bool = False  # stop when there is nothing to do


class Trainer:
    """One session on one store."""

    def __init__(
        self,
        claims: Claims,
        view: TrainingStore,
        inputs: Inputs,
        settings: TrainerSettings,
        versions: dict[str, str],
        on_event: Callable[[dict[str, Any]], None] = lambda _event: None,
    ) -> None:
        """
        Args:
            claims: on the store itself, because their heartbeats are no progress.
        """
        self._pulse = Pulse()
        moving = TimedStore(view.whole, self._pulse)
        self.stop = asyncio.Event()  # set it to drain
        self.failed = False
        self.job: Job | None = None
        self.claims = claims
        self.view = TrainingStore(moving)
        self.settings = settings
        self._inputs = inputs.on(moving, self._pulse)
        self._versions = versions
        self._on_event = on_event
        self._found_work = False  # so the next look comes soon
        self._unsettled: dict[str, tuple[str, float]] = {}  # key to (etag, first seen)

    async def run(self) -> None:
        """Train until `stop` is set, or with `once` or `only` until there is nothing to do."""
        await self._beat()
        loops = [asyncio.create_task(self._guarded(loop)) for loop in (self._beats(), self._looks())]
        work = asyncio.create_task(self._guarded(self._work()))
        try:
            stopped = asyncio.create_task(self.stop.wait())
            await asyncio.wait([stopped, work], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if self.job is not None:
                await self.job.drain()
            await asyncio.wait([work], timeout=self.settings.grace)
        finally:
            if self.job is not None:  # its checkpoint took too long: the lease runs out, and another goes on
                await self.job.abandon()
            for task in (*loops, work):
                task.cancel()
            await asyncio.gather(*loops, work, return_exceptions=True)
            # After the heartbeats have stopped: one more would make us look alive for a whole lease.
            with contextlib.suppress(StoreUnavailable):
                await self.claims.retire()

    # Finding work --------------------------------------------------------------------------------

    async def _work(self) -> None:
        looks = changes(
            self.view.whole,
            self.stop,
            prefixes=(layout.TRAININGS,),
            found_work=lambda: self._found_work,
            shortest=1.0,
            longest=2.0 if self._is_bounded else 15.0,
        )
        async for _ in looks:
            self._found_work = False
            try:
                held = await self._find()
                if held is None and self._is_bounded and await self._is_done():
                    return
            except StoreUnavailable as error:
                log.warning("trainings cannot be looked for", extra={"why": str(error)})
                continue
            if held is not None:
                self._found_work = True
                await self._train(held)

    @property
    def _is_bounded(self) -> bool:
        return self.settings.once or bool(self.settings.only)

    async def _is_done(self) -> bool:
        """Whether nothing is left to do: the one training has ended, or nothing is dropped or claimed."""
        if self.settings.only:
            return await self.view.head(layout.result_key(self.settings.only)) is not None
        for prefix in (layout.REQUESTS, layout.CLAIMS):
            async for info in self.view.list(prefix):
                if prefix == layout.CLAIMS or _is_training(info.key):
                    return False
        return True

    async def _find(self) -> Held | None:
        """Take over a training of a dead trainer, or claim a dropped one."""
        for held in await self.claims.sweep(1, self._is_wanted):
            log.info("took over", extra={"id": held.claim.id, "attempt": held.claim.attempt})
            return held
        async for info in self.view.list(layout.REQUESTS):
            id = layout.request_id(info.key)
            if not _is_training(info.key) or self.settings.only not in ("", id):
                continue
            if (claimed := await self._claim(info, id)) is not None:
                return claimed
            if self.stop.is_set():
                return None
        return None

    async def _is_wanted(self, claim: Any) -> bool:
        return self.settings.only in ("", claim.id)

    async def _claim(self, info: Info, id: str) -> Held | None:
        """Claim a dropped training. One that can never succeed is claimed too, and fails with the reason."""
        plan: dict[str, Any] = {"task": "train"}
        fingerprint = ""
        body = b""
        try:
            stored = await self.view.get(info.key, max_bytes=MAX_BODY)
            info, body = stored.info, stored.body
            parse_training(body)
        except NotFound:
            return None  # another trainer was faster
        except TooLarge as error:
            plan |= Refusal.of(error).document()
            fingerprint = layout.oversize_fingerprint(info.key, info.size, info.etag)
        except Rejected as error:
            if error.code == "invalid_json" and await self._may_be_unfinished(info, error):
                return None
            plan |= Refusal.of(error).document()
        log.info("claiming", extra={"id": id})
        return await self.claims.take(info, body, id=id, plan=plan, fingerprint=fingerprint)

    async def _may_be_unfinished(self, info: Info, error: Rejected) -> bool:
        """Whether a file that cannot be read may still be being written."""
        if not self.view.shows_partial_files:
            return False
        if await self.view.is_being_written(info.key):
            return True
        etag, since = self._unsettled.setdefault(info.key, (info.etag, time.monotonic()))
        if etag != info.etag:
            self._unsettled[info.key] = (info.etag, time.monotonic())
            return True
        return error.unfinished and time.monotonic() - since < _SETTLED

    # One training --------------------------------------------------------------------------------

    async def _train(self, held: Held) -> None:
        self.settings.work.mkdir(parents=True, exist_ok=True)
        folder = Path(
            tempfile.mkdtemp(prefix=f"{held.claim.id.replace('/', '-')[:60]}-", dir=self.settings.work)
        )
        self.job = Job(
            held=held,
            claims=self.claims,
            view=self.view,
            inputs=self._inputs,
            folder=folder,
            session=self.claims.session,
            versions=self._versions,
            on_event=self._on_event,
            processes=self.settings.processes,
            draining=self.stop.is_set(),
            pulse=self._pulse,
        )
        self._pulse.touch()
        try:
            await self.job.run()
        except Unavailable as error:
            log.warning("a training is given up here", extra={"id": held.claim.id, "why": str(error)})
            await self._hand_back(held, f"the trainer gave up: {error}")
        except Exception as error:  # one training's unforeseen error must not end the trainer
            log.exception("a training failed unexpectedly", extra={"id": held.claim.id})
            await self._hand_back(
                held, f"the trainer failed unexpectedly ({type(error).__name__}); see its log"
            )
        finally:
            self.job = None
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _hand_back(self, held: Held, why: str) -> None:
        """Release a claim as soon as the store answers: while we live and hold it, nobody takes it over."""
        failure = Failure(code="worker_crashed", message=why)
        while self.claims.holds(held.claim.id) and not self.stop.is_set():
            try:
                await self.claims.release(held, "retry", failure)
            except StoreUnavailable:
                await asyncio.sleep(self.settings.timing.beat)

    # Beside it -----------------------------------------------------------------------------------

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(self.settings.timing.beat)
            job = self.job
            if job is not None and time.monotonic() - job.pulse.at > self.settings.patience:
                log.warning("the training makes no progress: it is ended", extra={"id": job.id})
                await job.hang()
            await self._beat()

    async def _beat(self) -> None:
        facts = {"state": "training" if self.job else "idle", "training": self.job.id if self.job else None}
        try:
            async with asyncio.timeout(max(_BEAT_TIMEOUT, self.settings.timing.beat)):
                await self.claims.beat(facts)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("the heartbeat was not written", extra={"why": str(error) or "no answer"})

    async def _looks(self) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_EVERY, self.settings.timing.beat))
            if self.job is not None:
                with contextlib.suppress(StoreUnavailable):
                    await self.job.look()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """An unexpected error stops the trainer, in order."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a loop of the trainer failed; stopping")
            self.failed = True
            self.stop.set()


def _is_training(key: str) -> bool:
    """Whether a dropped file is a training; people leave other files there."""
    return key.lower().endswith(layout.SINGLE)


def make_claims(view: TrainingStore, session: str, timing: Timing, stamp: Callable[[], str]) -> Claims:
    """The protocol on trainings."""
    rng = random.Random(random.SystemRandom().getrandbits(64))
    return Claims(view, session=session, clock=time.monotonic, rng=rng, timing=timing, stamp=stamp)
