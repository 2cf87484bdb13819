"""From a queue's messages to claimed requests, and back: a message goes when its result exists.

A message may name an object in the bucket (an event, a claim check) or be a manifest itself. Each
is judged alone. What nobody understands is left where it is: the queue's redrive policy moves it
to the dead-letter queue, and the log says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consumer.intake.claiming import Taken
from consumer.intake.queue_shares import QueueShares
from infra.backoff import backoff
from infra.queues.leases import TROUBLE, MessageLeases
from infra.queues.message import BATCH
from infra.stores.s3_location import S3Location, key_in_store
from infra.stores.store import InvalidKey
from schemas import layout
from schemas.errors import Rejected, StoreUnavailable
from schemas.events import Created, Direct, Ignored, Reference, Unknown, decode

if TYPE_CHECKING:
    from consumer.intake.claiming import Intake
    from infra.claims.claims import Claims, Held
    from infra.queues.sqs import Message
    from infra.stores.store import Info, Store
    from schemas.events import Item

log = logging.getLogger(__name__)

LONG = 20.0  # seconds that a receive waits for a message
_PATIENCE = (1.0, 30.0)  # seconds between receives while the queue does not answer: first, longest
_TICK = 0.2  # seconds between two looks at what has ended
_LOOKS = 3  # at a request that is not ours, a second apart; for it may be given back, or its worker dead
_PENDING = 2.0  # seconds that a receive under way is given when the worker stops
_SETTLES = 3.0  # seconds after which a broken object is judged again
_NOT_OURS = 5.0  # seconds, times the receives so far, until a message nobody understands is shown again


@dataclass(eq=False)
class Asked:
    """A message in hand, and the requests that it waits for."""

    message: Message
    bell: MessageLeases
    requests: list[Taken] = field(default_factory=list)
    looks: int = 0  # at what has become of them
    again: float = 0.0  # when to look next, by our clock


class Left(Exception):
    """This message is not for us to answer now: show it again later."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.seconds = seconds


class Messages:
    """What one worker hears from its queues. For one event loop."""

    def __init__(
        self,
        bells: Sequence[MessageLeases],
        *,
        store: Store,
        intake: Intake,
        claims: Claims,
        begin: Callable[[Held], None],
        room: Callable[[], int],
        ahead: int,
        stop: asyncio.Event,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            bells: the queues, express first; see `QueueShares` for who gets how much.
            begin: works on what was claimed.
            room: how many more images to take on.
            ahead: images that the worker holds when it is full.
        """
        self.doubt = asyncio.Event()  # a request that we have a message for is nobody's, perhaps: sweep soon
        self.heard = 0  # messages received
        self.dropped: Counter[str] = Counter()  # messages and records that asked for nothing, by reason
        self._bells = bells
        self._store = store
        self._intake = intake
        self._claims = claims
        self._begin = begin
        self._room = room
        self._stop = stop
        self._clock = clock
        self._home = S3Location.of(store.url)
        self._lanes = QueueShares(bells, ahead)
        self._waiting: dict[str, Asked] = {}  # by receipt

    @property
    def idle(self) -> bool:
        """Whether nothing is in hand, and every queue was empty when last asked."""
        return not self._waiting and self._lanes.idle

    async def run(self) -> None:
        """Receive until `stop` is set; then keep what is in hand, and delete what ends, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for lane, bell in enumerate(self._bells):
                tasks.create_task(bell.renewals())
                tasks.create_task(self._listen(lane))
            tasks.create_task(self._settle())

    async def close(self) -> None:
        """Delete what has ended, and give the rest back at once.

        A receive that is under way gets some of that back, and gives it back again.
        """
        await self._look()
        await asyncio.gather(*(bell.close() for bell in self._bells))
        ends = self._clock() + _PENDING
        while any(self._lanes.asked) and self._clock() < ends:
            await asyncio.sleep(_TICK / 4)
        facts = {"messages": self.heard, "calls": sum(bell.calls for bell in self._bells)}
        log.info("queues left", extra={**facts, **{f"dropped_{k}": n for k, n in self.dropped.items()}})

    # Hearing ---------------------------------------------------------------------------------

    async def _listen(self, lane: int) -> None:
        pauses = backoff(*_PATIENCE)
        while not self._stop.is_set():
            most = self._lanes.share(lane, self._room(), full=bool(self._waiting))
            if most <= 0:
                await asyncio.sleep(_TICK / 4)
                continue
            self._lanes.asked[lane] = most
            try:
                await self._receive(lane, most)
                pauses = backoff(*_PATIENCE)
            except TROUBLE as error:
                pause = next(pauses)
                log.warning("the queue does not answer", extra={"why": str(error), "again_in": pause})
                await asyncio.sleep(pause)
            finally:
                self._lanes.asked[lane] = 0

    async def _receive(self, lane: int, most: int) -> None:
        """One receive; then judge each message alone, or give all back if the worker stops meanwhile.

        Nobody hangs up on a receive in mid-air: what the queue hands to a closed line stays
        invisible to everybody for as long as to us.
        """
        bell = self._bells[lane]
        found = await bell.receive(most, LONG)
        self._lanes.dry[lane] = not found
        self.heard += len(found)
        if self._stop.is_set():
            await bell.give_back(found)
        else:
            await asyncio.gather(*(self._hear(Asked(message, bell)) for message in found))

    async def _hear(self, asked: Asked) -> None:
        message = asked.message
        left: Left | None = None
        try:
            for number, item in enumerate(decode(message.body)):
                try:
                    taken = await self._judge(item, message, number)
                except Left as reason:  # the other items are judged all the same
                    left = reason
                    continue
                if taken is not None:
                    asked.requests.append(taken)
                    if taken.held is not None:
                        taken.held.express = len(self._bells) > 1 and asked.bell is self._bells[0]
                        self._begin(taken.held)
        except StoreUnavailable as error:
            log.warning("a message is left for later", extra={"message_id": message.id, "why": str(error)})
            await asked.bell.leave(message, _SETTLES)
        except Exception:  # each message alone: what nobody foresaw in one is no other's problem
            log.exception("a message failed in an unforeseen way", extra={"message_id": message.id})
            await asked.bell.leave(message, _NOT_OURS)
        else:
            if left is not None:
                await asked.bell.leave(message, left.seconds)
            else:
                self._waiting[message.receipt] = asked

    async def _judge(self, item: Item, message: Message, number: int) -> Taken | None:
        """Take what an item asks for; None when it asks for nothing. Raises `Left`."""
        match item:
            case Ignored(reason=reason):
                self._drop(reason, message)
                return None
            case Direct(body=body):
                name = f"queue/{message.id}" + (f"-{number}" if number else "")
                return await self._intake.take_body(body, id=layout.safe_id(name))
            case Created(bucket=bucket, keys=keys):
                if self._home is None or bucket != self._home.bucket:
                    raise self._not_ours(
                        message, f"the event is of bucket {bucket!r}, not of {self._store.url}"
                    )
                return await self._object([self._home.inside(key) for key in keys], message)
            case Reference(key=key):
                inside = key_in_store(self._home, key)
                if inside is None or not layout.is_request(inside):
                    raise self._not_ours(
                        message, f"the reference names no request of {self._store.url}: a key under requests/"
                    )
                return await self._object([inside], message)
            case Unknown(reason=reason):
                raise self._not_ours(message, reason)

    async def _object(self, keys: list[str | None], message: Message) -> Taken | None:
        requests = [key for key in keys if key is not None and layout.is_request(key)]
        if not requests:
            self._drop("not a request", message)
            return None
        info = await self._first(requests)
        if info is not None:
            taken = await self._intake.take(info)
            if taken.settling:
                raise Left("the object may be half copied", _SETTLES)
            return taken
        for key in requests:  # it is gone: taken, or over, or removed by its owner
            id = layout.request_id(key)
            if await self._claims.is_claimed(id):
                return Taken(id)
            if await self._store.head(layout.result_key(id)) is not None:
                self._drop("over", message)
                return None
        self._drop("vanished", message)
        return None

    async def _first(self, keys: list[str]) -> Info | None:
        """The object under the first reading of a key that there is."""
        for key in keys:
            with contextlib.suppress(InvalidKey):
                info = await self._store.head(key)
                if info is not None:
                    return info
        return None

    def _drop(self, reason: str, message: Message) -> None:
        self.dropped[reason] += 1
        log.info("a message asks for nothing", extra={"message_id": message.id, "why": reason})

    def _not_ours(self, message: Message, why: str) -> Left:
        facts = {"message_id": message.id, "why": why, "receives": message.receives}
        log.warning("a message cannot be used; it is left to the dead-letter queue", extra=facts)
        return Left(why, min(600.0, _NOT_OURS * message.receives))

    # Letting go ------------------------------------------------------------------------------

    async def _settle(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            await self._look()
            await asyncio.gather(*(bell.flush() for bell in self._bells))

    async def _look(self) -> None:
        """Finish the messages whose requests are all over, leave those that others draw."""
        now = self._clock()
        ready = [
            asked
            for asked in self._waiting.values()
            if asked.again <= now and not any(map(self._holds, asked.requests))
        ]
        for start in range(0, len(ready), BATCH):
            await asyncio.gather(*map(self._close, ready[start : start + BATCH]))

    async def _close(self, asked: Asked) -> None:
        try:
            ends = [await self._end_of(taken) for taken in asked.requests]
        except (StoreUnavailable, Rejected) as error:
            log.warning("a message waits for the store", extra={"why": str(error)})
            return
        if all(end is not None and self._claims.may_forget(end) for end in ends):
            asked.bell.finish(asked.message)
        elif None in ends:
            if any(self._holds(taken) for taken in asked.requests):
                return  # taken over by us meanwhile
            if self._stop.is_set():
                await asked.bell.give_back([asked.message])
                self._waiting.pop(asked.message.receipt, None)
                return
            asked.looks, asked.again = asked.looks + 1, self._clock() + 1.0
            self.doubt.set()
            if asked.looks < _LOOKS:
                return
            await asked.bell.leave_elsewhere(asked.message)
        else:
            asked.again = self._clock() + 1.0
            return  # it is being announced
        self._waiting.pop(asked.message.receipt, None)

    async def _end_of(self, taken: Taken) -> str | None:
        """The id of the result that ends a request; None while there is none."""
        if taken.held is not None and taken.held.result_id:
            return taken.held.result_id
        if not taken.fingerprint:  # the object was gone when we came
            return taken.id if await self._store.head(layout.result_key(taken.id)) else None
        return await self._claims.ended(taken.id, taken.fingerprint)

    def _holds(self, taken: Taken) -> bool:
        return self._claims.holds(taken.id) or self._claims.holds(
            layout.other_body_id(taken.id, taken.fingerprint)
        )
