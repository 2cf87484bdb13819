"""From a queue's messages to claimed requests; a message is deleted once its result exists.

A message may name an object in the bucket (an event, a claim check) or be a manifest itself. Each is
handled alone. A message that we do not understand is not deleted: the queue's redrive policy moves
it to the dead-letter queue, and the log says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consumer.intake.queue_items import SETTLES, ItemClaimer, Postponed
from consumer.intake.queue_shares import QueueShares
from infra.backoff import backoff
from infra.queues.leases import TROUBLE, MessageLeases
from infra.queues.message import BATCH
from schemas import layout
from schemas.errors import Rejected, StoreUnavailable
from schemas.events import decode

if TYPE_CHECKING:
    from consumer.intake.claiming import ClaimOutcome, RequestClaimer
    from infra.claims.claims import Claims, Held
    from infra.queues.sqs import Message
    from infra.stores.store import Store
    from schemas.events import Item

log = logging.getLogger(__name__)

LONG_POLL = 20.0  # seconds that a receive waits for a message
_RETRY_WAITS = (1.0, 30.0)  # seconds between receives while the queue does not answer: first, longest
_TICK = 0.2  # seconds between two checks for requests that have ended
_CHECKS = 3  # of a request that is not ours, a second apart: it may be released, or its worker dead
_LAST_RECEIVE = 2.0  # seconds that a receive under way gets when the worker stops
_FOR_ANOTHER = 15.0  # seconds until a message that another worker can use is shown again
_LONGEST_LEAVE = 300.0  # seconds until a message that cannot be handled is shown again, at most
_AFTER_AN_ERROR = 5.0  # seconds until a message that failed unexpectedly is shown again


@dataclass(eq=False)
class PendingMessage:
    """A message in hand, and the requests that must end before it is deleted."""

    message: Message
    queue: MessageLeases
    express: bool  # it came by the express queue
    requests: list[ClaimOutcome] = field(default_factory=list)
    checks: int = 0  # of requests that another worker has
    next_check: float = 0.0  # by our clock


class QueueReader:
    """Reads one worker's queues. For one event loop."""

    def __init__(
        self,
        queues: Sequence[MessageLeases],
        *,
        store: Store,
        claimer: RequestClaimer,
        claims: Claims,
        begin: Callable[[Held], None],
        room: Callable[[bool], int],
        ahead: int,
        stop: asyncio.Event,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            queues: express first; see `QueueShares` for how they share the room.
            begin: works on what was claimed.
            room: how many more images to take on, of the express lane (True) or the other.
            ahead: images that the worker holds when it is full.
        """
        self.sweep_wanted = asyncio.Event()  # set when a message's request may have lost its worker
        self.received = 0  # messages
        self._queues = queues
        self._items = ItemClaimer(store, claimer, claims)
        self._store = store
        self._claims = claims
        self._begin = begin
        self._room = room
        self._stop = stop
        self._clock = clock
        self._shares = QueueShares(queues, ahead)
        self._pending: dict[str, PendingMessage] = {}  # by receipt

    @property
    def idle(self) -> bool:
        """Whether no message is in hand, and the last receive of every queue brought none."""
        return not self._pending and self._shares.idle

    async def run(self) -> None:
        """Receive until `stop` is set; then only renew and delete what is in hand, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number, queue in enumerate(self._queues):
                tasks.create_task(queue.renewals())
                tasks.create_task(self._poll(number))
            tasks.create_task(self._settle())

    async def close(self) -> None:
        """Delete the messages whose requests have ended, and give the others back at once."""
        await self._check_pending()  # first: what has ended meanwhile must not be shown again
        await asyncio.gather(*(queue.close() for queue in self._queues))
        # A receive under way is not cancelled: the messages that it brings would stay invisible to everybody
        # until their visibility timeout. It gives them back itself.
        ends = self._clock() + _LAST_RECEIVE
        while any(self._shares.requested) and self._clock() < ends:
            await asyncio.sleep(_TICK / 4)
        facts = {"messages": self.received, "calls": sum(queue.calls for queue in self._queues)}
        log.info(
            "queues closed", extra={**facts, **{f"dropped_{k}": n for k, n in self._items.dropped.items()}}
        )

    # Receiving -------------------------------------------------------------------------------

    async def _poll(self, number: int) -> None:
        pauses = backoff(*_RETRY_WAITS)
        while not self._stop.is_set():
            most = self._shares.share(number, self._room, full=bool(self._pending))
            if most <= 0:
                await asyncio.sleep(_TICK / 4)
                continue
            self._shares.requested[number] = most
            try:
                await self._receive(number, most)
                pauses = backoff(*_RETRY_WAITS)
            except TROUBLE as error:
                pause = next(pauses)
                log.warning("the queue does not answer", extra={"why": str(error), "again_in": pause})
                await asyncio.sleep(pause)
            finally:
                self._shares.requested[number] = 0

    async def _receive(self, number: int, most: int) -> None:
        """Receive once and handle each message; give all back if the worker was stopped meanwhile."""
        queue = self._queues[number]
        messages = await queue.receive(most, LONG_POLL)
        self._shares.empty[number] = not messages
        self.received += len(messages)
        if self._stop.is_set():
            await queue.give_back(messages)
        else:
            express = self._shares.is_express(number)
            await asyncio.gather(*(self._handle(PendingMessage(one, queue, express)) for one in messages))

    async def _handle(self, pending: PendingMessage) -> None:
        """Claim what a message asks for; keep the message until that has ended, or postpone it."""
        message = pending.message
        postponed: Postponed | None = None
        try:
            for number, item in enumerate(decode(message.body)):
                try:
                    outcome = await self._claim(item, pending, number)
                except Postponed as reason:  # the other items are claimed all the same
                    postponed = reason
                    continue
                if outcome is not None and outcome.left:
                    postponed = Postponed("another worker can draw it", _FOR_ANOTHER)
                elif outcome is not None:
                    pending.requests.append(outcome)
                    if outcome.held is not None:
                        self._begin(outcome.held)
        except StoreUnavailable as error:
            log.warning("a message is postponed", extra={"message_id": message.id, "why": str(error)})
            await pending.queue.leave(message, min(_LONGEST_LEAVE, SETTLES * message.receives))
        except Exception:  # an unexpected error in one message must not stop the others
            log.exception("a message failed unexpectedly", extra={"message_id": message.id})
            await pending.queue.leave(message, _AFTER_AN_ERROR)
        else:
            if postponed is not None:
                await pending.queue.leave(message, postponed.seconds)
            else:
                self._pending[message.receipt] = pending

    async def _claim(self, item: Item, pending: PendingMessage, number: int) -> ClaimOutcome | None:
        """Claim the request of an item; None when the item asks for nothing. Raises `Postponed`."""
        return await self._items.claim(item, pending.message, number, express=pending.express)

    # Deleting --------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Delete messages as their requests end, until cancelled."""
        while True:
            await asyncio.sleep(_TICK)
            await self._check_pending()
            await asyncio.gather(*(queue.flush() for queue in self._queues))

    async def _check_pending(self) -> None:
        """Finish the messages whose requests have all ended; give up those that another worker draws."""
        now = self._clock()
        ready = [
            pending
            for pending in self._pending.values()
            if pending.next_check <= now and not any(map(self._is_held, pending.requests))
        ]
        for start in range(0, len(ready), BATCH):
            await asyncio.gather(*map(self._check, ready[start : start + BATCH]))

    async def _check(self, pending: PendingMessage) -> None:
        try:
            results = [await self._result_id(outcome) for outcome in pending.requests]
        except (StoreUnavailable, Rejected) as error:
            log.warning("a message waits for the store", extra={"why": str(error)})
            return
        if all(id is not None and self._claims.may_forget(id) for id in results):
            pending.queue.finish(pending.message)
        elif None in results:
            if any(map(self._is_held, pending.requests)):
                return  # we took it over meanwhile
            if self._stop.is_set():
                await pending.queue.give_back([pending.message])
                self._pending.pop(pending.message.receipt, None)
                return
            pending.checks, pending.next_check = pending.checks + 1, self._clock() + 1.0
            self.sweep_wanted.set()
            if pending.checks < _CHECKS:
                return
            await pending.queue.leave_elsewhere(pending.message)
        else:
            pending.next_check = self._clock() + 1.0
            return  # its end is not announced yet
        self._pending.pop(pending.message.receipt, None)

    async def _result_id(self, outcome: ClaimOutcome) -> str | None:
        """The id of the result that ends a request; None while there is none."""
        if outcome.held is not None and outcome.held.result_id:
            return outcome.held.result_id
        if not outcome.fingerprint:  # the object was gone when we came
            return outcome.id if await self._store.head(layout.result_key(outcome.id)) else None
        return await self._claims.ended(outcome.id, outcome.fingerprint)

    def _is_held(self, outcome: ClaimOutcome) -> bool:
        return self._claims.holds(outcome.id) or self._claims.holds(
            layout.other_body_id(outcome.id, outcome.fingerprint)
        )
