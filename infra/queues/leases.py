"""The messages that a worker holds, from receipt until they are deleted or given back.

A message says that there is work; the bucket says what has become of it. So a message is deleted only when
its result exists, and to lose a message or its receipt loses no work. Every message is renewed from the
moment of receipt: of ten messages that are received together and worked on one by one, the visibility of
the last would run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from infra.queues.message import BATCH
from schemas.errors import Unavailable, Unsupported

if TYPE_CHECKING:
    from infra.queues.message import Message

log = logging.getLogger(__name__)

VISIBILITY = 60.0  # seconds for which each renewal hides a message from others
RENEW = 20.0  # seconds between two renewals
LINGER = 1.0  # seconds that a delete waits for others, to share a call
#: A queue that is gone or denied may come back too; meanwhile requests are found by listing.
TROUBLE = (Unavailable, Unsupported)
ELSEWHERE = (60.0, 90.0)  # seconds until a message is visible again whose request another worker draws


class QueueClient(Protocol):
    """The queue's methods that are used here; see `infra.queues.sqs.Queue`."""

    url: str

    async def receive(self, most: int, *, wait: float = ..., visibility: float = ...) -> list[Message]: ...
    async def renew(self, messages: Sequence[Message], visibility: float) -> list[Message]: ...
    async def delete(self, messages: Sequence[Message]) -> list[Message]: ...


@dataclass
class MessageLeases:
    """One worker's messages of one queue. For one event loop."""

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
        messages = await self.queue.receive(min(most, BATCH), wait=wait, visibility=VISIBILITY)
        self.in_hand |= {message.receipt: message for message in messages}
        return messages

    def finish(self, message: Message) -> None:
        """Delete a message with the next call: its result exists, or it asks for nothing."""
        if not self._finished:
            self._oldest = self.clock()
        self._finished[message.receipt] = message

    async def leave(self, message: Message, seconds: float) -> None:
        """Give a message up; it becomes visible again after some seconds."""
        self.in_hand.pop(message.receipt, None)  # first, so that no renewal takes it back
        with contextlib.suppress(*TROUBLE):  # then it becomes visible when its time is up
            await self.queue.renew([message], seconds)

    async def leave_elsewhere(self, message: Message) -> None:
        """Give up a message whose request another worker draws, until that has probably ended."""
        await self.leave(message, self.rng.uniform(*ELSEWHERE))

    async def renewals(self) -> None:
        """Renew what is in hand, until cancelled; run it as a task of its own."""
        while True:
            await asyncio.sleep(RENEW)
            await self._renew(list(self.in_hand.values()))

    async def _renew(self, messages: list[Message]) -> None:
        try:
            gone = await self.queue.renew(messages, VISIBILITY) if messages else []
        except TROUBLE as error:
            log.warning("messages were not renewed", extra={"why": str(error), "count": len(messages)})
            return
        for message in gone:  # visible again, to us or others; the claim prevents double work
            self.in_hand.pop(message.receipt, None)
            self._finished.pop(message.receipt, None)
            log.info("a message's receipt has expired", extra={"message_id": message.id})

    async def flush(self, *, at_once: bool = False) -> None:
        """Delete finished messages, once there are ten or the first has waited long enough."""
        full = len(self._finished) >= BATCH or self.clock() - self._oldest >= LINGER
        if not self._finished or not (full or at_once):
            return
        now, self._finished = self._finished, {}
        self.calls += -(-len(now) // BATCH)
        try:
            stayed = await self.queue.delete(list(now.values()))
        except TROUBLE as error:
            log.warning("messages were not deleted and will be received again", extra={"why": str(error)})
            stayed = list(now.values())
        for receipt in now:  # only now: until they are deleted they must be renewed
            self.in_hand.pop(receipt, None)
        if stayed:
            log.info("messages will be received again", extra={"count": len(stayed)})

    async def close(self) -> None:
        """Delete finished messages, and give all others back at once."""
        await self.flush(at_once=True)  # first, or the next line would give finished ones back
        await self.give_back(self.in_hand.values())

    async def give_back(self, messages: Iterable[Message]) -> None:
        """Make messages visible to others at once."""
        left = list(messages)
        for message in left:  # first, so that no renewal takes them back
            self.in_hand.pop(message.receipt, None)
        try:
            if left:
                await self.queue.renew(left, 0)
        except TROUBLE as error:
            log.warning("messages stay invisible until their visibility runs out", extra={"why": str(error)})
