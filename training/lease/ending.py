"""How an attempt at a training ends: with a result, or by giving the training back."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from schemas.errors import StoreUnavailable
from schemas.result import Failure, Result, utc_now

if TYPE_CHECKING:
    from infra.claims.claims import Claims, Held
    from training.lease.saver import CheckpointSaver

log = logging.getLogger("dreamdrop.trainer")

Ended = Literal["committed", "released", "lost"]


@dataclass
class Ending:
    """Ends one claim."""

    held: Held
    claims: Claims
    session: str
    saver: CheckpointSaver
    draining: bool = False
    begun: bool = False  # the result or the release is being written

    async def fail(self, failure: Failure) -> Ended:
        log.warning("a training failed", extra={"id": self._id, "code": failure.code, "field": failure.field})
        return await self._end("failed", failure)

    async def end_with_nothing(self) -> Ended:
        """The client stopped it before its first step: it gets what it asked for, and that is no model."""
        log.info("stopped before its first step", extra={"id": self._id})
        message = "stopped before its first step: nothing is learned yet, so no model is published"
        return await self._end("canceled", Failure(code="canceled", message=message))

    async def _end(self, status: Literal["failed", "canceled"], failure: Failure) -> Ended:
        result = self.held.claim.ended(
            status, failure, worker=self.session, finished_at=utc_now(), task="train", metadata={}
        )
        await self.commit(result)
        return "committed"

    async def commit(self, result: Result) -> None:
        """Create the result, however long the store is away; a trainer that drains leaves it to the next one.

        Raises:
            StoreUnavailable: while it drains.
        """
        self.begun = True
        while True:  # the work of hours must not be lost to a store that is away for a minute
            try:
                await self.claims.commit(self.held, result)
                return
            except StoreUnavailable as error:
                log.warning("the result is not stored yet", extra={"id": self._id, "why": str(error)})
                if self.draining:
                    raise
                await asyncio.sleep(self.claims.timing.beat)

    async def release(self, reason: Literal["drain", "retry"], why: Failure | None) -> Ended:
        """Give the training back, when its last checkpoint is stored: the next attempt goes on from there."""
        await self.saver.finish()
        self.begun = True
        log.info("given back", extra={"id": self._id, "reason": reason})
        await self.claims.release(self.held, reason, why)
        return "released"

    @property
    def _id(self) -> str:
        return self.held.claim.id
