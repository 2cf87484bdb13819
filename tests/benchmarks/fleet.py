"""Many real workers in one process, in virtual time, over a store that counts calls.

Everything of a worker is real: heartbeats, sweeps, inbox, claims, jobs, status, delivery. Only what costs a machine is
not: the renderer child (an image takes a fixed number of virtual seconds) and the store (objects in memory, each call
a fixed number of virtual seconds, listings in pages of 1,000 as S3 has them). So the counts are those of the project's
own protocol code, and do not depend on this machine.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import random
import selectors
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from consumer.jobs.inputs import Inputs
from consumer.renderer.protocol import (
    DeviceCall,
    Drawn,
    ImageTask,
    RawPicture,
    Ready,
    RendererSettings,
    Stepped,
)
from consumer.worker import Worker, WorkerSettings
from infra.claims.claims import Claims, Timing
from infra.models.cards import Cards
from infra.stores.memory import MemoryStore
from infra.stores.store import Info, Stored
from schemas.limits import Limits
from schemas.result import utc_now

T = TypeVar("T")
PAGE = 1000  # keys of a listing that cost one call (S3, ListObjectsV2)
CALL = 0.04  # virtual seconds of a store call


class _Skips(selectors.SelectSelector):
    """Waits for nothing: the time that the loop would wait passes at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds pass when nothing else is to be done. Nobody may call it from outside."""

    def __init__(self) -> None:
        self._skips = _Skips()
        super().__init__(self._skips)
        self.set_default_executor(_AtOnce())

    def time(self) -> float:
        return self._skips.now


class _AtOnce(ThreadPoolExecutor):
    """Runs work where it is submitted: there are no threads in virtual time."""

    def submit(self, work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except BaseException as error:
            future.set_exception(error)
        return future


def live(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class CountedStore(MemoryStore):
    """A bucket that counts its calls by verb and top folder. All workers share its objects and counts."""

    is_remote = True

    def __init__(self) -> None:
        super().__init__(url="s3://simulated")
        self.calls: Counter[tuple[str, str]] = Counter()
        self._keys: dict[str, list[str]] = {}  # in order, by top folder: a listing must not sort all keys

    async def _count(self, verb: str, key: str, calls: int = 1) -> None:
        self.calls[verb, key.partition("/")[0]] += calls
        await asyncio.sleep(CALL * calls)

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        await self._count("get", key)
        return await super().get(key, max_bytes=max_bytes)

    async def head(self, key: str) -> Info | None:
        await self._count("head", key)
        return await super().head(key)

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        await self._count("create", key)
        created = await super().create(key, body, metadata=metadata)
        self.calls["lost", key.partition("/")[0]] += not created
        return created

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        await self._count("put", key)
        await super().put(key, body)

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        await self._count("delete", key)
        await super().delete(key, etag=etag)
        keys = self._keys.get(key.partition("/")[0], [])
        place = bisect.bisect_left(keys, key)
        if key not in self._objects and place < len(keys) and keys[place] == key:
            del keys[place]

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        keys = self._keys.get(prefix.partition("/")[0], [])
        last = max(start_after, prefix)
        while True:
            await self._count("list", prefix)
            place = bisect.bisect_right(keys, last) if last != prefix else bisect.bisect_left(keys, prefix)
            page = [key for key in keys[place : place + PAGE] if key.startswith(prefix)]
            for key in page:
                if (stored := self._objects.get(key)) is not None:
                    yield stored.info
            if len(page) < PAGE:
                return
            last = page[-1]

    def _write(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        if key not in self._objects:
            bisect.insort(self._keys.setdefault(key.partition("/")[0], []), key)
        super()._write(key, body, metadata)


class _Renderer:
    """Stands where a worker has its handle on a renderer child: one image after the other, each in `seconds`."""

    def __init__(self, real: Any, seconds: float, clock: Callable[[], float]) -> None:
        real.ready = Ready("simulated", "none", {})
        real._progress_at = math.inf  # by the machine's clock it would seem to hang
        real.submit, real.cancel = self.submit, self.cancel
        self._real, self._seconds, self._clock = real, seconds, clock
        self._free_at = 0.0

    def submit(self, task: ImageTask) -> None:
        self._real._held[task.request, task.index] = task
        self._free_at = max(self._free_at, self._clock()) + self._seconds
        asyncio.get_running_loop().call_at(self._free_at, self._drawn, task)

    def cancel(self, request: str) -> None:
        for name in [name for name in self._real._held if name[0] == request]:
            del self._real._held[name]

    def _drawn(self, task: ImageTask) -> None:
        name = (task.request, task.index)
        if self._real._held.pop(name, None) is None:
            return  # cancelled
        call = DeviceCall("unet", task.model, task.width * task.height, 2, 2, self._seconds, self._seconds)
        self._real._on_event(Stepped({name: (task.steps, task.steps)}, calls=(call,)))
        picture = RawPicture(task.width, task.height, 3, bytes(3 * task.width * task.height))
        facts = {"name": task.model, "revision": "", "source": "none", "licence": "", "dtype": "none"}
        self._real._on_event(Drawn(task.request, task.index, picture, (), facts, self._seconds))


def make_worker(store: CountedStore, number: int, *, ahead: int, seconds: float, few: int) -> Worker:
    """A worker with one renderer, ready to run.

    Args:
        ahead: images that it may hold.
        seconds: virtual, for an image.
        few: workers up to which each one reads every claim.
    """
    clock = asyncio.get_running_loop().time
    rng = random.Random(f"worker {number}")
    timing = Timing(few=few)
    worker = Worker(
        store=store,
        claims=Claims(store, session=f"w{number:05}", clock=clock, rng=rng, timing=timing, stamp=utc_now),
        renderers=[RendererSettings(kind="null")],
        cards=Cards.of(),
        settings=WorkerSettings(timing=timing, ahead=ahead),
        inputs=Inputs(store, Limits(), ("uploads/",)),
        clock=clock,
        rng=rng,
        versions={},
    )
    _Renderer(worker.renderers[0], seconds, clock)
    return worker
