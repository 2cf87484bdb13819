"""What the pages show of a store: pictures as tiles, the queue with its prompts, batches side by side.

Nothing is kept but what cannot change: a result is written once, so its tiles are believed for as long as
its etag stands, and a watched batch costs one listing and its new rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from producer import overview, request_state
from producer.web.cache import CachedCall
from producer.web.facade import LATEST
from producer.web.pages.tiles import Tile, tiles
from schemas.batch import numbered
from schemas.errors import NotFound, Rejected
from schemas.layout import COMMIT, RESULTS, claims_prefix, is_batch, parse_claim, result_folder
from schemas.result import Frozen, Progress, Result
from schemas.strictjson import load_object

if TYPE_CHECKING:
    from infra.stores.store import Info
    from producer.overview import Overview
    from producer.web.api_keys import Key
    from producer.web.facade import Facade

SHOWN = 12  # requests of the queue that are shown with their prompts
ROWS = 500  # a batch's rows in its grid
BATCHES = 50  # in the list
HEAVY = 4 << 20  # bytes of a request from which it is not read for its prompt alone
LIGHT = 64 << 10  # bytes of a result up to which its request is kept in memory, too
KEPT = 20_000  # prompts and rows kept in memory
AT_ONCE = 16  # objects read at the same time


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that is not over."""

    id: str
    status: str
    prompt: str
    batch: bool
    ahead: int = 0
    progress: Progress | None = None
    rows: int = 0  # of a batch, where they are known
    over: int = 0  # of them


@dataclass(frozen=True, slots=True)
class Line:
    """A batch in the list."""

    id: str
    status: str
    done: int
    total: int
    failed: int = 0
    finished_at: str = ""


@dataclass
class Gallery:
    """A facade's pages. For one event loop."""

    facade: Facade
    _words: dict[str, tuple[str, bool]] = field(default_factory=dict)  # id to prompt, whether it is a batch
    _rows: dict[str, int] = field(default_factory=dict)  # batch to how many rows it has
    _tiles: dict[tuple[str, str], list[Tile]] = field(default_factory=dict)  # key and etag to tiles
    _results: dict[tuple[str, str], Result] = field(default_factory=dict)  # the same, without heavy requests
    _overviews: dict[str, CachedCall[Overview]] = field(default_factory=dict)  # by what ids begin with
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def __post_init__(self) -> None:
        self._commits: CachedCall[list[Info]] = CachedCall(self._list_commits, seconds=2.0)

    async def look(self, begin: str) -> Overview:
        """What begins so, at a glance, now; results that were read before are not read again."""
        return await overview.overview(self.facade.client.store, LATEST, self._remembered, begin=begin)

    async def overview(self, begin: str) -> Overview:
        """The same as it was a moment ago."""
        return await self._overviews.setdefault(begin, CachedCall(lambda: self.look(begin)))()

    async def _remembered(self, info: Info) -> Result | None:
        known = self._results.get((info.key, info.etag))
        if known is not None:
            return known
        result = await self._read(_id(info))
        if result is None:
            return None
        if info.size > LIGHT:
            result = result.model_copy(update={"request": Frozen(text="", cut=True)})
        if len(self._results) >= 10 * LATEST:
            self._results.clear()
        self._results[info.key, info.etag] = result
        return result

    async def queue(self, found: Overview, caller: Key) -> list[Waiting]:
        """What is being drawn, then what waits, in turn."""
        drawn = [(id, p) for id, p in found.processing.items() if caller.sees(id)][:SHOWN]
        waits = [(n, id) for n, id in enumerate(found.queued) if caller.sees(id)][:SHOWN]
        words = await asyncio.gather(
            *(self.words(id) for id in [id for id, _ in drawn] + [w[1] for w in waits])
        )
        first, then = words[: len(drawn)], words[len(drawn) :]
        ended = [_id(info) for info in await self._commits()] if any(batch for _, batch in first) else []
        return [
            Waiting(
                id,
                "processing",
                prompt,
                batch,
                progress=progress,
                rows=self._rows.get(id, 0),
                over=sum(one.startswith(f"{id}/") for one in ended) if batch else 0,
            )
            for (id, progress), (prompt, batch) in zip(drawn, first, strict=True)
        ] + [
            Waiting(id, "queued", prompt, batch, ahead=n)
            for (n, id), (prompt, batch) in zip(waits, then, strict=True)
        ]

    async def words(self, id: str) -> tuple[str, bool]:
        """A request's prompt, and whether it is a batch; read once."""
        if id not in self._words:
            async with self._gate:
                found = await self._read_words(id)
            if found is None:
                return "", False
            if len(self._words) >= KEPT:
                self._words.clear()
            self._words[id] = found
        return self._words[id]

    async def _read_words(self, id: str) -> tuple[str, bool] | None:
        store = self.facade.client.store
        async for info in store.list(claims_prefix(id)):
            claimed = parse_claim(info.key)
            if claimed and claimed[0] == id and info.size < HEAVY:
                claim = await request_state.read_claim(store, id)
                if claim is None:
                    return None
                if claim.batch:
                    self._count_rows(id, claim.frozen.body())
                return str((claim.plan or {}).get("prompt") or ""), claim.batch
        request = await request_state.find_request(store, id)
        if request is None:
            return None
        if request.size >= HEAVY:
            return "", is_batch(request.key)
        with contextlib.suppress(NotFound, Rejected):
            body = (await store.get(request.key)).body
            if is_batch(request.key):
                self._count_rows(id, body)
                return "", True
            return str(load_object(body).get("prompt") or ""), False
        return None

    def _count_rows(self, batch: str, body: bytes) -> None:
        if len(self._rows) >= KEPT:
            self._rows.clear()
        self._rows[batch] = sum(1 for _ in numbered(body))

    async def size(self, batch: str) -> int:
        """How many rows a batch has that is not over; 0 where that is not known."""
        await self.words(batch)
        return self._rows.get(batch, 0)

    async def rows(self, batch: str) -> list[Tile]:
        """The pictures of a batch's rows that are over, in the order of their names."""
        folder = result_folder(batch)
        infos: list[Info] = []
        async for info in request_state.first(self.facade.client.store.list(folder), 20 * ROWS):
            if info.key.endswith(f"/{COMMIT}") and info.key != f"{folder}{COMMIT}":
                infos.append(info)
        infos.sort(key=lambda info: _natural(info.key))
        found = await asyncio.gather(*(self._tiles_of(info) for info in infos[:ROWS]))
        return [tile for some in found for tile in some]

    async def _tiles_of(self, info: Info) -> list[Tile]:
        known = self._tiles.get((info.key, info.etag))
        if known is not None:
            return known
        async with self._gate:
            result = await request_state.read_result(self.facade.client.store, _id(info))
        found = tiles(result) if result is not None else []
        if len(self._tiles) >= KEPT:
            self._tiles.clear()
        self._tiles[info.key, info.etag] = found
        return found

    async def batches(self, found: Overview, caller: Key) -> list[Line]:
        """Batches, the newest first."""
        queue = await self.queue(found, caller)
        commits = {_id(info): info for info in await self._commits()}
        if any(result.batch and result.id not in commits for result in found.latest):
            self._commits.forget()  # or one that has just ended were neither in the queue nor below it
            commits = {_id(info): info for info in await self._commits()}
        lines = [
            Line(one.id, one.status, one.over, one.rows)
            for one in queue
            if one.batch and one.id not in commits
        ]
        rows = Counter(id.rpartition("/")[0] for id in commits if "/" in id)
        ended = [id for id in rows.keys() & commits.keys() if caller.sees(id)]
        newest = sorted(ended, key=lambda id: -commits[id].modified)[:BATCHES]
        for result in await asyncio.gather(*map(self._read, newest)):
            if result is not None:  # a cancelled one has no counts
                total = result.batch.counts.total if result.batch else rows[result.id]
                failed = total - result.batch.counts.succeeded if result.batch else 0
                lines.append(Line(result.id, result.status, total, total, failed, result.finished_at))
        return lines

    async def _read(self, id: str) -> Result | None:
        async with self._gate:
            return await request_state.read_result(self.facade.client.store, id)

    async def _list_commits(self) -> list[Info]:
        return [i async for i in self.facade.client.store.list(RESULTS) if i.key.endswith(f"/{COMMIT}")]


def _id(info: Info) -> str:
    return info.key[len(RESULTS) : -len(COMMIT) - 1]


def _natural(key: str) -> list[tuple[bool, int, str]]:
    """So that row 10 comes after row 9."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", key)
    ]
