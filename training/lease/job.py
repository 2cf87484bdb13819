"""One attempt at a training, by a process that holds its claim.

It fetches the inputs and the newest checkpoint, lets a child train, stores each checkpoint as it comes, and
publishes the product. Where it is cut off, the next attempt goes on from the newest stored checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from infra.claims.claims import Claims, Held
from infra.claims.trainings import TrainingStore
from infra.stores.store import Store
from schemas import layout
from schemas.errors import NotFound, Rejected, StoreUnavailable, Unavailable
from schemas.plan import Refusal
from schemas.result import Failure, FailureCode, ModelUsed, Result, utc_now
from schemas.training import Training, TrainingProgress, parse_training
from training.lease import saved
from training.lease.base_models import FetchedBase
from training.lease.child import TrainingChild
from training.lease.inputs import Inputs
from training.lease.publish import publish
from training.lease.saver import CheckpointSaver, trying

log = logging.getLogger("dreamdrop.trainer")

STOP = "stop.json"  # a client creates it in the training's result folder: keep what has been learned so far
_STATUS_EVERY = 2.0  # seconds between two writes of the status
# Folders of pictures, in the work folder and in the store.
_CLASS, _VALIDATION = layout.CLASS_PICTURES.rstrip("/"), "validation"
#: Codes of the child that end a training; any other trouble may be this machine's, and another one tries again.
_FINAL = frozenset(get_args(FailureCode))
Ended = Literal["committed", "released", "lost"]


@dataclass
class Job:
    """A training in hand."""

    held: Held
    claims: Claims
    view: TrainingStore
    inputs: Inputs
    folder: Path  # empty; ours alone
    session: str
    versions: dict[str, str]
    on_event: Callable[[dict[str, Any]], None] = lambda _event: None
    processes: int = 1
    draining: bool = False
    progress_at: float = field(default_factory=time.monotonic)  # when the child last reported, or we did
    _child: TrainingChild | None = None
    _base: FetchedBase | None = None
    _stopping: bool = False  # the client wants what there is
    _abandoned: bool = False  # canceled, or another worker's: nothing is kept
    _began: float = field(default_factory=time.monotonic)
    _progress: TrainingProgress | None = None
    _status_at: float = 0.0
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))  # of the latest steps

    def __post_init__(self) -> None:
        self._saver = CheckpointSaver(self.store, self.id, self.held.claim.epoch, self.folder / "saving")

    @property
    def id(self) -> str:
        return self.held.claim.id

    @property
    def store(self) -> Store:
        return self.view.whole

    # What others tell it -------------------------------------------------------------------------

    async def drain(self) -> None:
        """Save a checkpoint and give the training back."""
        self.draining = True
        if self._child is not None:
            self._child.save_and_stop()

    async def abandon(self) -> None:
        """End at once: the training has ended, or is another worker's."""
        self._abandoned = True
        if self._child is not None:
            await self._child.kill()

    async def hang(self) -> None:
        """End the child, which makes no progress; the training is given back, and counts as an attempt."""
        self.progress_at = time.monotonic()
        if self._child is not None:
            await self._child.kill()

    async def look(self) -> None:
        """Notice that the training was canceled, taken over, or is to stop. Raises `StoreUnavailable`."""
        if await self.claims.is_over(self.id) or await self._is_taken_over():
            await self.abandon()
        elif not self._stopping and await self.view.head(layout.result_folder(self.id) + STOP):
            log.info("stopping early, as asked", extra={"id": self.id})
            self._stopping = True
            if self._child is not None:
                self._child.save_and_stop()

    async def _is_taken_over(self) -> bool:
        """Whether the next epoch's claim exists. A trainer sweeps between trainings only, so it looks here."""
        return await self.view.head(layout.claim_key(self.id, self.held.claim.epoch + 1)) is not None

    # The attempt ---------------------------------------------------------------------------------

    async def run(self) -> Ended:
        """Train until there is a result, or until the training is given back.

        Raises:
            StoreUnavailable: the claim may still be held; the caller gives it back.
        """
        try:
            return await self._run()
        except Rejected as error:
            return await self._fail(Failure.of(error))
        except StoreUnavailable:
            raise
        except Unavailable as error:  # such as a base that cannot be downloaded here
            return await self._release(
                "retry", Failure(code="model_unavailable", message=str(error), field="base")
            )
        finally:
            if self._base is not None:
                self._base.release()
            if self._child is not None:
                await self._child.kill()
            await self._saver.finish()

    async def _run(self) -> Ended:
        plan = self.held.claim.plan or {}
        if "refusal" in plan:
            raise Refusal.model_validate(plan["refusal"]).error()
        training = parse_training(self.held.claim.frozen.body())
        await self._report(phase="fetching")
        work, self._base = await self.inputs.fetch(self.id, training, self.folder)
        await self._fetch_progress(training)
        (self.folder / "training.json").write_text(work.model_dump_json())
        while True:
            last = {} if self.draining else await self._train(training, finish=self._stopping)
            if self._abandoned:
                return "lost"
            if self.draining and last.get("event") not in ("done", "failed"):
                return await self._release("drain", None)
            kind = last.get("event")
            if kind == "done":
                return await self._publish(training)
            if kind == "stopped" and self._stopping:
                continue  # once more, to make a product of the checkpoint
            if kind in ("refused", "failed") and last["code"] in _FINAL:
                facts = {key: last.get(key) for key in ("code", "message", "field")}
                return await self._fail(Failure.model_validate(facts))
            assert self._child is not None
            words = last["message"] if kind == "failed" else self._child.last_words()
            why = Failure(code="worker_crashed", message=f"the training stopped: {words}")
            return await self._release("retry", why)

    async def _fetch_progress(self, training: Training) -> None:
        """Fetch what earlier attempts stored: the newest checkpoint and the class pictures."""
        id = self.id
        if training.resume_from and not await saved.checkpoints(self.store, id):
            id = training.resume_from
            if not await saved.checkpoints(self.store, id):
                raise Rejected.of_field("resume_from", f"names {id!r}, which has no checkpoint in this store")
        for checkpoint in reversed(await saved.checkpoints(self.store, id)):
            target = self.folder / "checkpoints" / f"{checkpoint.step:06d}"
            try:
                await saved.load_checkpoint(self.store, id, checkpoint, target)
            except NotFound:  # the attempt before ours still lives, and has just deleted it
                shutil.rmtree(target, ignore_errors=True)
                continue
            log.info("going on from a checkpoint", extra={"id": self.id, "step": checkpoint.step})
            break
        for name in (_CLASS, _VALIDATION):
            await saved.load_folder(self.store, f"{saved.folder_of(id)}{name}/", self.folder / name)

    async def _train(self, training: Training, *, finish: bool) -> dict[str, Any]:
        """Run the child once; returns the last thing that it reported."""
        self._child = TrainingChild(self.folder, processes=self.processes)
        await self._child.start(finish=finish)
        if self.draining or (self._stopping and not finish):  # it was told before there was a child
            self._child.save_and_stop()
        last: dict[str, Any] = {}
        async for event in self._child.events():
            last = event
            self.progress_at = time.monotonic()
            await self._on_report(event, training)
        return last

    async def _on_report(self, event: dict[str, Any], training: Training) -> None:
        self.on_event(event)
        kind = event.get("event")
        if kind == "step":
            self._seconds.append(event["seconds"])
            left = event["steps"] - event["step"]
            await self._report(
                phase="training",
                steps_done=event["step"],
                steps_total=event["steps"],
                loss=event["loss"],
                eta=left * statistics.median(self._seconds),
            )
        elif kind == "class pictures":
            await self._report(phase="class pictures", steps_done=event["done"], steps_total=event["count"])
        elif kind == "start":
            await self._report(phase="training", steps_done=event["step"], steps_total=event["steps"])
            if (self.folder / _CLASS).is_dir():
                await self._keep(self.folder / _CLASS, f"{_CLASS}/")
        elif kind == "checkpoint":
            await self._saver.add(self.folder / event["folder"], event["step"], training.keep)
        elif kind == "validation":
            await self._keep(self.folder / _VALIDATION, f"{_VALIDATION}/")
        elif kind == "warning":
            log.warning(event["message"], extra={"id": self.id})

    async def _keep(self, folder: Path, where: str, last: str = "") -> None:
        await trying(
            self.id,
            lambda: saved.save_folder(self.store, folder, saved.folder_of(self.id) + where, last=last),
        )

    async def _keep_file(self, name: str) -> None:
        key = saved.folder_of(self.id) + name
        await trying(self.id, lambda: saved.save_file(self.store, self.folder / name, key))

    async def _report(self, **facts: Any) -> None:
        """Tell people how far it is, at most every two seconds within a phase."""
        before = self._progress or TrainingProgress(
            id=self.id, worker=self.session, attempts=self.held.claim.attempt
        )
        self._progress = before.model_copy(update=facts)
        self.held.has_status = True
        now = time.monotonic()
        if self._progress.phase == before.phase and now - self._status_at < _STATUS_EVERY:
            return
        self._status_at = now
        with contextlib.suppress(StoreUnavailable):
            await self.view.put(layout.status_key(self.id), self._progress.model_dump_json().encode())

    # How it ends ---------------------------------------------------------------------------------

    async def _publish(self, training: Training) -> Ended:
        await self._report(phase="publishing")
        product = json.loads((self.folder / "product.json").read_text())
        assert self._base is not None
        card = await publish(self.store, self.folder, product, self._base, training_id=self.id)
        for name in ("loss.jsonl", "report.html"):
            await self._keep_file(name)
        await self._saver.finish()
        result = Result.ended(
            self.id,
            "succeeded",
            None,
            request=self.held.claim.frozen,
            fingerprint=self.held.claim.fingerprint,
            task="train",
            parameters=product["options"],
            model=ModelUsed(name=card.name, revision=str(card.version), licence=card.licence),
            versions=self.versions,
            worker=self.session,
            attempts=self.held.claim.attempt,
            metadata={},
        )
        await self._commit(result)
        log.info("published", extra={"id": self.id, "model": f"{card.name}@{card.version}"})
        return "committed"

    async def _fail(self, failure: Failure) -> Ended:
        claim = self.held.claim
        log.warning("a training failed", extra={"id": self.id, "code": failure.code, "field": failure.field})
        await self._commit(
            claim.ended(
                "failed", failure, worker=self.session, finished_at=utc_now(), task="train", metadata={}
            )
        )
        return "committed"

    async def _commit(self, result: Result) -> None:
        while True:  # the work of hours must not be lost to a store that is away for a minute
            try:
                await self.claims.commit(self.held, result)
                return
            except StoreUnavailable as error:
                log.warning("the result is not stored yet", extra={"id": self.id, "why": str(error)})
                if self.draining:
                    raise
                await asyncio.sleep(self.claims.timing.beat)

    async def _release(self, reason: Literal["drain", "retry"], why: Failure | None) -> Ended:
        await self._saver.finish()  # what was learned last; the next attempt goes on from there
        log.info("given back", extra={"id": self.id, "reason": reason})
        await self.claims.release(self.held, reason, why)
        return "released"
