"""The messages that a worker has in hand, from receipt until they are deleted or given back.

A queue is a doorbell: a message says that there is work, the bucket says what has become of it. So a
message is deleted only when its result exists, and losing one, or its receipt, loses no work.
Every message is renewed from the moment it is received, for a receive of ten that is worked off
one by one would outlive the visibility of its last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from schemas.errors import Unavailable, Unsupported

if TYPE_CHECKING:
    from infra.queues.sqs import Message

log = logging.getLogger(__name__)

VISIBILITY = 60.0  # seconds that a message stays with us after each renewal
RENEW = 20.0  # seconds between two renewals
BATCH = 10  # messages in one call of the queue
LINGER = 1.0  # seconds that a delete waits for company
#: A queue that is gone or denied may come back, too; meanwhile requests are found by listing.
TROUBLE = (Unavailable, Unsupported)
ELSEWHERE = (60.0, 90.0)  # seconds until a message is shown again whose request somebody else draws


class QueueClient(Protocol):
    """What is asked of a queue; see `infra.sqs.Queue`."""

    url: str

    async def receive(self, most: int, *, wait: float = ..., visibility: float = ...) -> list[Message]: ...
    async def renew(self, messages: Sequence[Message], visibility: float) -> list[Message]: ...
    async def delete(self, messages: Sequence[Message]) -> list[Message]: ...


@dataclass
class MessageLeases:
    """One queue, as one worker uses it. For one event loop."""

    queue: QueueClient
    clock: Callable[[], float]
    rng: random.Random
    in_hand: dict[str, Message] = field(default_factory=dict)  # by receipt
    calls: int = 0  # receives and deletes sent
    _finished: dict[str, Message] = field(default_factory=dict)  # by receipt; to be deleted
    _oldest: float = 0.0  # when the first of them was finished

    async def receive(self, most: int, wait: float) -> list[Message]:
        """Wait for messages, `wait` seconds at most. Raises one of `TROUBLE`."""
        self.calls += 1
        found = await self.queue.receive(min(most, BATCH), wait=wait, visibility=VISIBILITY)
        self.in_hand |= {message.receipt: message for message in found}
        return found

    def finish(self, message: Message) -> None:
        """Its result exists, or it asks for nothing: delete it with the next ten."""
        if not self._finished:
            self._oldest = self.clock()
        self._finished[message.receipt] = message

    async def leave(self, message: Message, seconds: float) -> None:
        """Let it be shown again after a while; it is not ours any more."""
        self.in_hand.pop(message.receipt, None)
        with contextlib.suppress(*TROUBLE):  # then it is shown again when its time is up
            await self.queue.renew([message], seconds)

    async def leave_elsewhere(self, message: Message) -> None:
        """Somebody else draws its request: look again when that is likely to be over."""
        await self.leave(message, self.rng.uniform(*ELSEWHERE))

    async def renewals(self) -> None:
        """Keep what is in hand; to be run beside the rest, until cancelled."""
        while True:
            await asyncio.sleep(RENEW)
            await self._renew(list(self.in_hand.values()))

    async def _renew(self, messages: list[Message]) -> None:
        try:
            gone = await self.queue.renew(messages, VISIBILITY) if messages else []
        except TROUBLE as error:
            log.warning("messages were not renewed", extra={"why": str(error), "count": len(messages)})
            return
        for message in gone:  # shown again, to us or to others; the claim keeps the work single
            self.in_hand.pop(message.receipt, None)
            self._finished.pop(message.receipt, None)
            log.info("a message's receipt has expired", extra={"message_id": message.id})

    async def flush(self, *, at_once: bool = False) -> None:
        """Delete what is finished, when ten are or the first has waited long enough."""
        full = len(self._finished) >= BATCH or self.clock() - self._oldest >= LINGER
        if not self._finished or not (full or at_once):
            return
        now, self._finished = self._finished, {}
        self.calls += -(-len(now) // BATCH)
        try:
            stayed = await self.queue.delete(list(now.values()))
        except TROUBLE as error:
            log.warning("messages were not deleted; they will come again", extra={"why": str(error)})
            stayed = list(now.values())
        for receipt in now:
            self.in_hand.pop(receipt, None)
        if stayed:
            log.info("messages will come again", extra={"count": len(stayed)})

    async def close(self) -> None:
        """Delete what is finished, and give everything else back at once."""
        await self.flush(at_once=True)
        await self.give_back(self.in_hand.values())

    async def give_back(self, messages: Iterable[Message]) -> None:
        """Let others see these at once."""
        left = list(messages)
        for message in left:
            self.in_hand.pop(message.receipt, None)
        try:
            if left:
                await self.queue.renew(left, 0)
        except TROUBLE as error:
            log.warning("messages stay invisible until their time is up", extra={"why": str(error)})
