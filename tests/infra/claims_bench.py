"""What the stories about claims are told with: a clock to turn, sessions, and a store that dies."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.claims.claims import Claims, Held, Timing
from infra.stores.memory import MemoryStore
from infra.stores.store import Info, Store, Stored
from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.result import ImageResult, Result

BODY = b'{"prompt": "a red circle", "metadata": {"order": 17}}'
PLAN = {"task": "text2img", "seeds": [5, 6]}
LEASE = Timing().lease


@dataclass
class Bench:
    """A bucket and a clock that several sessions share."""

    store: Store = field(default_factory=MemoryStore)
    now: float = 1000.0  # seconds
    few: int = Timing().few  # workers up to which each one reads every claim

    def session(self, name: str, store: Store | None = None, make: type[Claims] = Claims) -> Claims:
        timing = Timing(retry_after=(5.0, 30.0), few=self.few)
        rng = random.Random(name)
        return make(store or self.store, session=name, clock=lambda: self.now, rng=rng, timing=timing)

    async def drop(self, id: str = "cat", body: bytes = BODY) -> Info:
        await self.store.put(layout.request_key(id), body)
        return (await self.store.get(layout.request_key(id))).info

    async def take(self, claims: Claims, id: str = "cat", body: bytes = BODY) -> Held | None:
        """Drop a request and take it."""
        return await claims.take(await self.drop(id, body), body, id=id, plan=PLAN)

    async def must_take(self, claims: Claims, id: str = "cat", body: bytes = BODY) -> Held:
        held = await self.take(claims, id, body)
        assert held is not None
        return held

    async def sweep_after_lease(self, claims: Claims) -> list[Held]:
        """Look, wait for a lease and a bit, and look again."""
        await claims.sweep(limit=0)
        self.now += LEASE + 1
        return await claims.sweep()

    async def keys(self, *beginnings: str) -> list[str]:
        return [i.key async for i in self.store.list("") if i.key.startswith(beginnings or "")]

    async def result(self, id: str = "cat") -> Result:
        return Result.model_validate_json((await self.store.get(layout.result_key(id))).body)


async def paint(claims: Claims, held: Held, index: int, body: bytes | None = None) -> ImageResult:
    """Store what this attempt painted: by default no two attempts paint the same bytes."""
    body = body or f"{index} by {held.claim.nonce}".encode()
    return await claims.store_image(
        held, index, "png", body, seed=5 + index, width=8, height=8, content_type="image/png"
    )


def success(held: Held, images: list[ImageResult]) -> Result:
    claim = held.claim
    return Result(
        id=claim.id,
        status="succeeded",
        images=tuple(images),
        worker=claim.session,
        attempts=claim.attempt,
        fingerprint=claim.fingerprint,
        request=claim.frozen,
    )


async def work(claims: Claims, held: Held) -> bool:
    """Render what is not there yet, and commit."""
    images = [await claims.stored_image(held, i, "png") or await paint(claims, held, i) for i in range(2)]
    return await claims.commit(held, success(held, images))


async def live(bench: Bench, claims: Claims) -> None:
    """A worker's rounds, until everything must be over."""
    mine: list[Held] = []
    for _ in range(8):
        try:
            await claims.beat()
            async for source in bench.store.list(layout.REQUESTS):
                body = (await bench.store.get(source.key)).body
                held = await claims.take(source, body, id=layout.request_id(source.key), plan=PLAN)
                mine += [held] if held else []
            mine += await claims.sweep()
            while mine:
                await work(claims, mine[-1])
                mine.pop()
        except StoreUnavailable:
            continue
        bench.now += LEASE / 2


class Dies(BaseException):
    """The process ends here."""


@dataclass
class Mortal:
    """A store whose user dies, or hears nothing, at its n-th call."""

    store: Store
    fatal: int  # from 1
    how: str  # "before", "after" (the effect), "lost" (effect, but StoreUnavailable), "refused"
    calls: int = 0
    url: str = "mortal://"
    is_remote: bool = False

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        return await self._call(self.store.get, key, max_bytes=max_bytes)  # type: ignore[no-any-return]

    async def head(self, key: str) -> Info | None:
        return await self._call(self.store.head, key)  # type: ignore[no-any-return]

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        return await self._call(self.store.create, key, body, metadata=metadata)  # type: ignore[no-any-return]

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        await self._call(self.store.put, key, body)

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        await self._call(self.store.delete, key, etag=etag)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        for info in await self._call(self._listed, prefix, start_after):
            yield info

    async def close(self) -> None:
        return None

    async def _listed(self, prefix: str, start_after: str) -> list[Info]:
        return [info async for info in self.store.list(prefix, start_after=start_after)]

    async def _call(self, verb: Any, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.fatal and self.how in ("before", "refused"):
            raise Dies if self.how == "before" else StoreUnavailable("refused")
        value = await verb(*args, **options)
        if self.calls == self.fatal:
            raise Dies if self.how == "after" else StoreUnavailable("the answer was lost")
        return value
