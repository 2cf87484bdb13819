"""One attempt at a training, by a process that holds its claim.

It fetches the inputs and the newest checkpoint, lets a child train, stores each checkpoint as it comes, and
publishes the product. Where it is cut off, the next attempt goes on from the newest stored checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from infra.claims.claims import Claims, Held
from infra.claims.trainings import TrainingStore
from infra.stores.store import Store
from schemas import layout
from schemas.errors import NotFound, Rejected, StoreUnavailable, Unavailable
from schemas.plan import Refusal
from schemas.result import Failure, FailureCode, ModelUsed, Result
from schemas.training import Training, TrainingProgress, parse_training
from training.lease import saved
from training.lease.base_models import FetchedBase
from training.lease.child import TrainingChild
from training.lease.ending import Ended, Ending
from training.lease.inputs import Inputs
from training.lease.publish import publish
from training.lease.pulse import Pulse, Status
from training.lease.saver import CheckpointSaver, trying

log = logging.getLogger("dreamdrop.trainer")

STOP = "stop.json"  # a client creates it in the training's result folder: keep what has been learned so far
#: Codes of the child that end a training; any other trouble may be this machine's, and another one tries again.
_FINAL = frozenset(get_args(FailureCode))


class Unwanted(Exception):
    """The training has ended, or is another trainer's."""


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
    pulse: Pulse = field(default_factory=Pulse)
    _child: TrainingChild | None = None
    _base: FetchedBase | None = None
    _stopping: bool = False  # the client wants what there is
    _abandoned: bool = False  # canceled, or another worker's: nothing is kept
    _hung: bool = False  # ended from outside, for want of progress
    _attempt: asyncio.Task[Any] | None = None
    _unstored: list[str] = field(
        default_factory=list
    )  # files beside the checkpoints, by path in the work folder
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))  # of the latest steps

    def __post_init__(self) -> None:
        self._saver = CheckpointSaver(self.store, self.id, self.held.claim.epoch, self.folder / "saving")
        before = TrainingProgress(id=self.id, worker=self.session, attempts=self.held.claim.attempt)
        self._status = Status(self.view, before)
        self._ending = Ending(self.held, self.claims, self.session, self._saver, self.draining)

    @property
    def id(self) -> str:
        return self.held.claim.id

    @property
    def store(self) -> Store:
        return self.view.whole

    # What others tell it -------------------------------------------------------------------------

    async def drain(self) -> None:
        """Save a checkpoint and give the training back."""
        self.draining = self._ending.draining = True
        if self._child is not None:
            self._child.save_and_stop()
        elif self._attempt is not None and not self._ending.begun:
            self._attempt.cancel()  # it fetches, and has nothing to save

    async def abandon(self) -> None:
        """End at once: the training has ended, or is another worker's."""
        self._abandoned = True
        await self._interrupt()

    async def hang(self) -> None:
        """End an attempt that makes no progress; the training is given back, and it counts as an attempt."""
        self.pulse.touch()
        self._hung = True
        self._saver.give_up()
        await self._interrupt()

    async def _interrupt(self) -> None:
        """End the child; without one end what the parent does, such as a transfer that hangs."""
        if self._child is not None and self._child.is_running:
            await self._child.kill()
        elif self._attempt is not None and not (self._ending.begun and self._abandoned):
            self._attempt.cancel()

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
        self._attempt = asyncio.current_task()
        try:
            return await self._run()
        except Unwanted:
            return "lost"
        except Rejected as error:
            return await self._ending.fail(Failure.of(error))
        except asyncio.CancelledError:
            if not (self._hung or self._abandoned or self.draining):
                raise
            assert self._attempt is not None
            self._attempt.uncancel()
            if self._abandoned:
                return "lost"
            if self._hung:
                return await self._ending.release("retry", self._status.hang_failure())
            return await self._ending.release("drain", None)
        except StoreUnavailable:
            raise
        except Unavailable as error:  # such as a base that cannot be downloaded here
            why = Failure(code="model_unavailable", message=str(error), field="base")
            return await self._ending.release("retry", why)
        finally:
            if self._base is not None:
                self._base.release()
            if self._child is not None:
                await self._child.kill()
            await self._saver.finish()
            self._attempt = None

    async def _run(self) -> Ended:
        plan = self.held.claim.plan or {}
        if "refusal" in plan:
            raise Refusal.model_validate(plan["refusal"]).error()
        training = parse_training(self.held.claim.frozen.body())
        await self.look()  # it may have been stopped while it waited
        if self._stopping and not await self._has_learned(training):
            return await self._ending.end_with_nothing()
        await self._report(phase="fetching")
        work, self._base = await self.inputs.fetch(self.id, training, self.folder)
        await self._fetch_progress(training)
        (self.folder / "training.json").write_text(work.model_dump_json())
        while True:
            if self._abandoned:
                return "lost"
            finish = self._stopping
            if finish and not self.draining and not await self._has_learned(training):
                return await self._ending.end_with_nothing()
            last = {} if self.draining else await self._train(training, finish=finish)
            if self._abandoned:
                return "lost"
            if self.draining and last.get("event") not in ("done", "failed"):
                return await self._ending.release("drain", None)
            kind = last.get("event")
            if kind == "done":
                return await self._publish(training)
            if self._stopping and not finish and kind not in ("refused", "failed"):
                continue  # once more, to make a product of the checkpoint
            if kind in ("refused", "failed") and last["code"] in _FINAL:
                facts = {key: last.get(key) for key in ("code", "message", "field")}
                return await self._ending.fail(Failure.model_validate(facts))
            if self._hung:
                return await self._ending.release("retry", self._status.hang_failure())
            assert self._child is not None
            words = last["message"] if kind == "failed" else self._child.last_words()
            words = f"the training stopped: {words}"
            return await self._ending.release("retry", Failure(code="worker_crashed", message=words))

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
        for name in ("class", "validation"):
            await saved.load_folder(self.store, f"{saved.folder_of(id)}{name}/", self.folder / name)
            if id != self.id:
                files = sorted(path for path in (self.folder / name).rglob("*") if path.is_file())
                await self._keep([path.relative_to(self.folder).as_posix() for path in files])

    async def _has_learned(self, training: Training) -> bool:
        """Whether there is a checkpoint, here or in the store, to make a model of."""
        if any((self.folder / "checkpoints").glob(f"*/{saved.COMMIT}")):
            return True
        ids = [self.id, *([training.resume_from] if training.resume_from else [])]
        return any([await saved.checkpoints(self.store, id) for id in ids])

    async def _train(self, training: Training, *, finish: bool) -> dict[str, Any]:
        """Run the child once; returns the last thing that it reported."""
        self._child = TrainingChild(self.folder, processes=self.processes)
        await self._child.start(finish=finish)
        if self.draining or (self._stopping and not finish):  # it was told before there was a child
            self._child.save_and_stop()
        last: dict[str, Any] = {}
        async for event in self._child.events():
            last = event
            self.pulse.touch()
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
        elif kind == "checkpoint":
            await self._saver.add(self.folder / event["folder"], event["step"], training.keep)
        elif kind == "warning":
            log.warning(event["message"], extra={"id": self.id})
        await self._keep(event.get("files", ()))  # class pictures and validation pictures, which are whole

    async def _keep(self, files: Iterable[str]) -> None:
        """Store files; what a store that is away does not take now is tried again with the next ones."""
        self._unstored += files
        await trying(self.id, self._store_files)

    async def _store_files(self) -> None:
        while self._unstored:
            name = self._unstored[0]
            await saved.save_file(self.store, self.folder / name, saved.folder_of(self.id) + name)
            del self._unstored[0]

    async def _report(self, **facts: Any) -> None:
        """Tell people how far it is."""
        self.held.has_status = True
        await self._status.tell(**facts)

    # How it ends ---------------------------------------------------------------------------------

    async def _publish(self, training: Training) -> Ended:
        await self._report(phase="publishing")
        product = json.loads((self.folder / "product.json").read_text())
        assert self._base is not None
        await self._keep(["loss.jsonl", "report.html"])
        await self._saver.finish()
        card = await publish(
            self.store, self.folder, product, self._base, training_id=self.id, confirm=self._still_wanted
        )
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
        await self.pulse.during(self._ending.commit(result))  # it may wait for a store that is away
        log.info("published", extra={"id": self.id, "model": f"{card.name}@{card.version}"})
        return "committed"

    async def _still_wanted(self) -> None:
        """Asked when only the card is missing. Raises `Unwanted`."""
        if self._abandoned or await self.claims.is_over(self.id) or await self._is_taken_over():
            raise Unwanted
