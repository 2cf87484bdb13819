"""A queue in the simulated world, and workers that hear of work from it.

The coroutines are the worker's own (`QueueReader` and `MessageLeases`); the queue does what SQS may do. It
shows messages twice and in any order, loses announcements, takes a delete and forgets it. What a
message alone carries is promised like everything else: deleting it before its result exists breaks
invariant 3.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from consumer.intake.claiming import ClaimOutcome
from consumer.intake.queue import QueueReader
from infra.claims.claims import Claims, Held
from infra.queues.leases import MessageLeases
from infra.queues.sqs import Message
from infra.stores.store import Info
from schemas import layout
from schemas.errors import NotFound
from tests.chaos.law import Broken, results_for
from tests.chaos.simulation import Simulation
from tests.chaos.worker import Worker
from tests.chaos.world import World

BUCKET = "chaos"


@dataclass(eq=False)
class Letter:
    """A message in the queue."""

    id: str
    body: str
    due: float = 0.0  # when it is shown next, virtual seconds
    receives: int = 0
    receipt: str = ""


@dataclass
class Post:
    """The queue."""

    world: World
    rng: random.Random
    letters: dict[str, Letter] = field(default_factory=dict)
    kind: bool = False  # no more duplicates and lost announcements
    sent: int = 0

    def __post_init__(self) -> None:
        self.world.law.is_carried = self._carries

    def put(self, body: str) -> str:
        self.sent += 1
        letter = Letter(f"m{self.sent}", body, self.world.now)
        self.letters[letter.id] = letter
        return letter.id

    def announce(self, key: str) -> None:
        """Once, as a rule; sometimes twice, sometimes never."""
        times = 1 if self.kind else self.rng.choices([0, 1, 2], [15, 75, 10])[0]
        for _ in range(times):
            entity = {"bucket": {"name": BUCKET}, "object": {"key": key}}
            record = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": entity}
            self.put(json.dumps({"Records": [record]}))

    def _carries(self, id: str, fingerprint: str) -> bool:
        letter = self.letters.get(id.removeprefix("queue/"))
        return letter is not None and layout.fingerprint(letter.body.encode()) == fingerprint

    # What a worker may ask; each happens at once.

    def show(self, most: int, visibility: float) -> list[Message]:
        found = [letter for letter in self.letters.values() if letter.due <= self.world.now]
        self.rng.shuffle(found)
        return [self._deliver(letter, visibility) for letter in found[:most]]

    def _deliver(self, letter: Letter, visibility: float) -> Message:
        letter.receives += 1
        letter.receipt = f"{letter.id}.{letter.receives}"
        twice = not self.kind and self.rng.random() < 0.1
        letter.due = self.world.now + (0 if twice else visibility)
        return Message(letter.id, letter.receipt, letter.body, letter.receives)

    def renew(self, messages: Sequence[Message], visibility: float) -> list[Message]:
        gone = []
        for message in messages:
            letter = self.letters.get(message.id)
            if letter is None or letter.receipt != message.receipt or letter.due <= self.world.now:
                gone.append(message)
            else:
                letter.due = self.world.now + visibility
        return gone

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """With an old receipt, and now and then with a good one, SQS says yes and does nothing."""
        for message in messages:
            letter = self.letters.get(message.id)
            if letter is not None and letter.receipt == message.receipt:
                self._judge_deletion(letter)
                if self.kind or self.rng.random() > 0.05:
                    del self.letters[message.id]
        return []

    def _judge_deletion(self, letter: Letter) -> None:
        id, fingerprint = f"queue/{letter.id}", layout.fingerprint(letter.body.encode())
        promised = (id, fingerprint) in self.world.law.promised
        if promised and not results_for(id, fingerprint, self.world.objects):
            history = "\n".join(self.world.log[-60:])
            raise Broken(f"invariant 3: {letter.id} was deleted before its result\n{history}")


@dataclass
class Window:
    """One session's way to the queue: a `QueueClient`."""

    post: Post
    worker: Worker
    url: str = "https://sqs.eu-west-1.amazonaws.com/000000000000/chaos"

    async def receive(self, most: int, *, wait: float = 20.0, visibility: float = 60.0) -> list[Message]:
        ends = self.post.world.now + wait
        while True:
            found: list[Message] = await self._ask("receive", lambda: self.post.show(most, visibility))
            if found or self.post.world.now >= ends:
                return found
            await self.worker.door.sleep(self.worker.rng.uniform(0.5, 3))

    async def renew(self, messages: Sequence[Message], visibility: float) -> list[Message]:
        names = " ".join(message.id for message in messages)
        what = f"renew {names} for {visibility:.0f} s"
        return list(await self._ask(what, lambda: self.post.renew(messages, visibility)))

    async def delete(self, messages: Sequence[Message]) -> list[Message]:
        names = " ".join(message.id for message in messages)
        return list(await self._ask(f"delete {names}", lambda: self.post.delete(messages)))

    async def _ask(self, what: str, act: Any) -> Any:
        return await self.post.world.wait(self.worker.session, f"queue: {what}", act, True)


class Listener(Worker):
    """A worker that hears from the queue, and looks at the inbox only now and then."""

    def __init__(
        self,
        world: World,
        session: str,
        seed: int,
        make: type[Claims],
        post: Post,
        messages: type[QueueReader] = QueueReader,
    ) -> None:
        super().__init__(world, session, seed, make)
        self.door.url = f"s3://{BUCKET}"
        self.stop = asyncio.Event()
        leases = MessageLeases(Window(post, self), world.clock, random.Random(f"bell {session} {seed}"))
        self.messages = messages(
            [leases],
            store=self.door,
            claimer=self,  # type: ignore[arg-type]  # `claim_object` and `claim_body` below are what it calls
            claims=self.claims,
            begin=self._start,
            room=lambda _express: max(0, self.capacity - len(self.work)),
            ahead=self.capacity,
            stop=self.stop,
            clock=world.clock,
        )
        self.tasks.append(asyncio.create_task(self._watched(self.messages.run)))

    async def claim_object(self, info: Info, *, express: bool = False) -> ClaimOutcome:
        id = layout.request_id(info.key)
        try:
            stored = await self.door.get(info.key)
        except NotFound:
            return ClaimOutcome(id)
        return await self.claim_body(stored.body, id=id, source=stored.info, express=express)

    async def claim_body(
        self, body: bytes, *, id: str, source: Info | None = None, express: bool = False
    ) -> ClaimOutcome:
        fingerprint = layout.fingerprint(body)
        express = express or fingerprint < "4"  # as if a quarter came by an express queue
        plan = {"task": "text2img", "lot": self.rng.getrandbits(32)}
        held = await self.claims.take(source, body, id=id, plan=plan, express=express)
        return ClaimOutcome(id, fingerprint, held)

    async def _takes(self) -> None:
        await self.door.sleep(self.rng.uniform(20, 60))
        await super()._takes()

    async def _beats(self) -> None:
        while True:
            await self._patiently(self.claims.beat)
            if self.draining:
                self.stop.set()
                if not self.work:
                    await self.messages.close()
                    await self._patiently(self.claims.retire)
                    self.kill()
            await self.door.sleep(self.claims.timing.beat)

    def _start(self, held: Held) -> None:
        try:
            super()._start(held)
        except Broken as error:  # `QueueReader` would take it for one message's own problem
            self.failure = error
            raise


@dataclass
class QueueSimulation(Simulation):
    """A history with a queue."""

    messages: type[QueueReader] = QueueReader
    patience: float = (
        3000.0  # virtual seconds: a message that is somebody else's rests for more than a minute
    )

    def __post_init__(self) -> None:
        self.post = Post(self.world, random.Random(f"post {self.seed}"))

    def new_worker(self, session: str) -> Worker:
        return Listener(self.world, session, self.seed, self.make, self.post, self.messages)

    def drop(self, id: str, kind: str, *, again: bool = False) -> None:
        """To the bucket, or straight to the queue."""
        if self.post.rng.random() < 0.6:
            super().drop(id, kind, again=again)
            self.post.announce(layout.request_key(id))
            return
        self.bodies += 1
        body = json.dumps({"prompt": f"{kind} request {self.bodies}"})

        def send() -> None:
            name = self.post.put(body)
            self.world.law.dropped(f"queue/{name}", body.encode(), self.world.objects)

        self.world.client(f"sends {body}", send)

    async def finish(self, rng: random.Random) -> None:
        self.post.kind = True
        await super().finish(rng)

    def is_over(self) -> bool:
        return not self.post.letters and super().is_over()
