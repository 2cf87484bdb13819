"""A simulated worker: the real `Claims`, a make-believe renderer.

Its renderer is the worst there can be: no two attempts paint the same bytes. A request whose
body says "poison" kills whoever paints it; one that says "invalid" is answered without work.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from infra.claims.claims import Claims, Held, Timing
from schemas import layout
from schemas.errors import NotFound, StoreUnavailable
from schemas.result import Failure, Result
from tests.chaos.world import Door, World

IMAGES = 2  # per request
TIMING = Timing(beat=2, lease=6, sweep=(2, 4), retry_after=(1, 3, 10))  # seconds: short, so that much happens


class Worker:
    """One session: beats, takes, works, sweeps, until it is killed or drained."""

    def __init__(self, world: World, session: str, seed: int, make: type[Claims], capacity: int = 3) -> None:
        self.world, self.session, self.capacity = world, session, capacity
        self.rng = random.Random(f"{seed}/{session}")
        self.door = Door(world, session)
        self.claims = make(
            self.door,
            session=session,
            clock=world.clock,
            rng=random.Random(f"{session}/{seed}"),
            timing=replace(TIMING, few=0) if seed % 2 else TIMING,  # 0: as in a large fleet
        )
        self.work: set[asyncio.Task[None]] = set()
        self.stubborn = self.rng.random() < 0.5  # goes on with what somebody else has taken over
        self.draining = False  # set from outside: give back what is held, take no more
        self.failure: BaseException | None = None
        self.tasks = [
            asyncio.create_task(self._watched(run)) for run in (self._beats, self._takes, self._sweeps)
        ]

    def kill(self) -> None:
        self.world.kill(self.session)
        for task in [*self.tasks, *self.work]:
            task.cancel()

    async def _watched(self, run: Callable[[], Awaitable[None]]) -> None:
        """Remember what no worker may raise."""
        try:
            await run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the test shows it
            self.failure = self.failure or error

    async def _beats(self) -> None:
        while True:
            await self._patiently(self.claims.beat)
            if self.draining and not self.work:
                await self._patiently(self.claims.retire)
                self.kill()
            await self.door.sleep(self.claims.timing.beat)

    async def _takes(self) -> None:
        while not self.draining:
            await self.door.sleep(self.rng.uniform(0.2, 2))
            try:
                keys = [info.key async for info in self.door.list(layout.REQUESTS)]
                self.rng.shuffle(keys)
                for key in keys:
                    if len(self.work) < self.capacity:
                        await self._take(key)
            except StoreUnavailable:
                continue

    async def _take(self, key: str) -> None:
        try:
            stored = await self.door.get(key)
        except NotFound:
            return
        id = layout.request_id(key)
        plan = {"task": "text2img", "lot": self.rng.getrandbits(32)}
        held = await self.claims.take(stored.info, stored.body, id=id, plan=plan)
        if held is not None:
            self._start(held)

    async def _sweeps(self) -> None:
        while not self.draining:
            try:
                room = max(0, self.capacity - len(self.work))
                for held in await self.claims.sweep(limit=room, express_limit=max(1, room)):
                    self._start(held)
            except StoreUnavailable:
                pass
            await self.door.sleep(self.claims.until_sweep())

    def _start(self, held: Held) -> None:
        self.world.law.working(held.claim.nonce, self.world.log)
        task = asyncio.create_task(self._watched(lambda: self._work(held)))
        self.work.add(task)
        task.add_done_callback(self.work.discard)

    async def _work(self, held: Held) -> None:
        if "invalid" in (held.claim.frozen.text or ""):
            await self._patiently(lambda: self.claims.commit(held, refusal(held)))
            return
        images = []
        for index in range(IMAGES):
            if await self._patiently(lambda: self.claims.is_over(held.claim.id)):
                return
            if held.taken_over and not self.stubborn:
                return
            image = await self._patiently(lambda index=index: self.claims.stored_image(held, index, "png"))
            images.append(image or await self._paint(held, index))
            if self.draining or self.rng.random() < 0.03:
                reason = "drain" if self.draining else "retry"
                await self._patiently(lambda reason=reason: self.claims.release(held, reason))
                return
        claim = held.claim
        result = Result(
            id=claim.id,
            status="succeeded",
            images=tuple(images),
            worker=self.session,
            attempts=claim.attempt,
            fingerprint=claim.fingerprint,
            request=claim.frozen,
        )
        await self._patiently(lambda: self.claims.commit(held, result))

    async def _paint(self, held: Held, index: int):  # type: ignore[no-untyped-def]
        await self.door.sleep(self.rng.uniform(0.5, 8))
        if "poison" in (held.claim.frozen.text or ""):
            self.kill()
            await self.door.sleep(0)
        body = f"{held.claim.id} {index} by {self.session} {self.rng.random()}".encode()
        facts = {"seed": index, "width": 8, "height": 8, "content_type": "image/png"}
        return await self._patiently(lambda: self.claims.store_image(held, index, "png", body, **facts))

    async def _patiently(self, act: Callable[[], Awaitable[object]]):  # type: ignore[no-untyped-def]
        """Try until the store answers: what a worker does with work that it holds."""
        while True:
            try:
                return await act()
            except StoreUnavailable:
                await self.door.sleep(self.rng.uniform(0.2, 3))


def refusal(held: Held) -> Result:
    failure = Failure(code="invalid_manifest", message="the request says that it is invalid")
    claim = held.claim
    return Result(
        id=claim.id, status="failed", failure=failure, fingerprint=claim.fingerprint, request=claim.frozen
    )
