"""What the pages read from a store: the queue with its prompts, the latest results, and batches.

Results are cached by their etag, because a result is written once. So a batch that is watched costs one listing and
its new rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.claims.claim import Claim
from infra.claims.kept_request import with_request
from infra.lru import LruCache
from infra.stores.store import InvalidKey
from producer import overview, request_state
from producer.errors import Damaged
from producer.web.cache import CachedCall
from producer.web.facade import LATEST
from producer.web.pages.items import GalleryItem, items_of
from producer.web.pages.published import read_models
from schemas.batch import split_rows
from schemas.errors import Rejected
from schemas.layout import RESULTS, parse_result, result_folder, result_key
from schemas.result import Frozen, Progress, Result

if TYPE_CHECKING:
    from infra.stores.store import Info
    from producer.overview import Overview
    from producer.web.api_keys import Key
    from producer.web.facade import Facade

SHOWN = 12  # queued requests that are shown, and as many in progress
BATCHES_IN_ORDER = 4  # batches whose lines are remembered: some megabytes for each of 50,000 rows
ROWS = 200  # rows on a page of a batch's grid
LISTED = 10_000  # keys that are listed for a page at most
BATCHES = 50  # in the list
LIGHT = 8 << 10  # bytes up to which a cached result keeps its request
KEPT = 20_000  # prompts and rows in the caches
AT_ONCE = 16  # objects read at the same time


@dataclass(frozen=True, slots=True)
class QueuedItem:
    """A request that is not finished."""

    id: str
    status: str
    prompt: str
    batch: bool
    ahead: int = 0  # requests before this one in the queue
    progress: Progress | None = None
    rows: int = 0  # of a batch, if known
    finished: int = 0  # rows


@dataclass(frozen=True, slots=True)
class BatchItem:
    """A batch in the list of batches."""

    id: str
    status: str
    done: int  # finished rows
    total: int  # rows; 0 if not known
    failed: int = 0  # rows that did not succeed


@dataclass
class Gallery:
    """Reads and caches what the pages show. For one event loop."""

    facade: Facade
    #: id to prompt, and is it a batch
    _prompts: LruCache[str, tuple[str, bool]] = field(default_factory=lambda: LruCache(KEPT))
    _rows: LruCache[str, int] = field(default_factory=lambda: LruCache(KEPT))  # batch to its number of rows
    _lines: LruCache[str, dict[str, int]] = field(default_factory=lambda: LruCache(BATCHES_IN_ORDER))
    #: by key and etag
    _items: LruCache[tuple[str, str], list[GalleryItem]] = field(default_factory=lambda: LruCache(KEPT))
    _results: LruCache[tuple[str, str], Result] = field(default_factory=lambda: LruCache(10 * LATEST))
    _overviews: dict[str, CachedCall[Overview]] = field(default_factory=dict)  # by id prefix
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def __post_init__(self) -> None:
        self._commits: CachedCall[dict[str, Info]] = CachedCall(self._list_commits, seconds=2.0)
        self.models = CachedCall(lambda: read_models(self.facade.client.store), seconds=5.0)

    async def overview(self, id_prefix: str) -> Overview:
        """The queue and the latest results of ids with a prefix, at most a second old."""
        cached = self._overviews.setdefault(id_prefix, CachedCall(lambda: self.read_overview(id_prefix)))
        return await cached()

    async def read_overview(self, id_prefix: str) -> Overview:
        """The same as it is now; results that were read before are not read again."""
        return await overview.overview(self.facade.client.store, LATEST, self._cached_result, begin=id_prefix)

    async def _cached_result(self, id: str, info: Info) -> Result | None:
        known = self._results.get((info.key, info.etag))
        if known is not None:
            return known
        result = await self._read(id)
        if result is None:
            return None
        if info.size > LIGHT:
            result = result.model_copy(update={"request": Frozen(text="", cut=True)})
        self._results[info.key, info.etag] = result
        return result

    async def queue(self, overview: Overview, caller: Key) -> list[QueuedItem]:
        """Requests in progress, then queued ones in their order."""
        processing = [(id, p) for id, p in overview.processing.items() if caller.sees(id)]
        queued = [(id, ahead) for ahead, id in enumerate(overview.queued) if caller.sees(id)]
        items = await asyncio.gather(
            *(self._processing_item(id, progress) for id, progress in processing[:SHOWN]),
            *(self._queued_item(id, ahead) for id, ahead in queued[:SHOWN]),
        )
        return list(items)

    async def _processing_item(self, id: str, progress: Progress | None) -> QueuedItem:
        prompt, batch = await self.prompt_of(id)
        finished = await self.finished_rows(id) if batch else 0
        rows = self._rows.get(id, 0)
        return QueuedItem(id, "processing", prompt, batch, progress=progress, rows=rows, finished=finished)

    async def _queued_item(self, id: str, ahead: int) -> QueuedItem:
        prompt, batch = await self.prompt_of(id)
        return QueuedItem(id, "queued", prompt, batch, ahead=ahead)

    async def prompt_of(self, id: str) -> tuple[str, bool]:
        """The prompt of a request that is not finished, and whether it is a batch. Cached."""
        if id not in self._prompts:
            asked = None
            async with self._gate:
                with contextlib.suppress(Damaged, InvalidKey, ValueError):  # its own page says what is wrong
                    asked = await overview.asked(self.facade.client.store, id)
            if asked is None:
                return "", False
            if asked.batch:
                self._rows[id] = asked.rows
            self._prompts[id] = asked.prompt, asked.batch
        return self._prompts[id]

    async def row_count(self, batch: str) -> int:
        """How many rows an unfinished batch has; 0 if not known."""
        await self.prompt_of(batch)
        return self._rows.get(batch, 0)

    async def rows(self, batch: str, page: int) -> tuple[list[GalleryItem], int]:
        """The items of the finished rows on a page of a batch, in the order of its file, and the number of pages.

        What it costs depends on the page, not on the batch. `page`: from 1; one that is too high has no items.
        """
        order = await self._file_order(batch)
        ids = list(order)[(page - 1) * ROWS : page * ROWS]
        infos = await self._infos(batch, ids) if order else await self._first_infos(batch)

        def place(id: str) -> tuple[int, list[tuple[bool, int, str]]]:
            line = order.get(id, order.get(id.rpartition("~")[0], len(order)))  # `<id>~<hash>`: another body
            return line, _natural(infos[id].key)

        shown = sorted(infos, key=place)
        rows = await asyncio.gather(*(self._items_of_row(id, infos[id]) for id in shown))
        return [item for items in rows for item in items], -(-len(order) // ROWS) or 1

    async def _infos(self, batch: str, rows: Sequence[str]) -> dict[str, Info]:
        """The result objects of some rows."""
        store, wanted = self.facade.client.store, set(rows)
        infos: dict[str, Info] = {}
        folders = sorted(map(result_folder, wanted))
        last, listed = "", 0
        if folders:
            async for info in store.list(result_folder(batch), start_after=folders[0]):
                id, last, listed = parse_result(info.key), info.key, listed + 1
                if id is not None and (id in wanted or id.rpartition("~")[0] in wanted):
                    infos[id] = info
                # After its folder come those of its other bodies, `<id>~<hash>/`.
                if listed >= LISTED or last > folders[-1].removesuffix("/") + "~~":
                    break

        async def look(id: str) -> None:
            async with self._gate:
                info = await store.head(result_key(id))
            if info is not None:
                infos[id] = info

        if listed >= LISTED:  # the file's order is not that of its names: these are far apart
            await asyncio.gather(*(look(id) for id in rows if result_key(id) > last))
        return infos

    async def _first_infos(self, batch: str) -> dict[str, Info]:
        """The first result objects of a batch whose file cannot be read any more."""
        listing = request_state.first(self.facade.client.store.list(result_folder(batch)), LISTED)
        infos = {id: info async for info in listing if (id := parse_result(info.key)) and id != batch}
        return dict(sorted(infos.items(), key=lambda one: _natural(one[1].key))[:ROWS])

    async def finished_rows(self, batch: str) -> int:
        """How many rows of a batch have ended, a moment ago."""
        return sum(ended.startswith(f"{batch}/") for ended in await self._commits())

    async def _file_order(self, batch: str) -> dict[str, int]:
        """The lines of a batch's rows by id; none if the file cannot be read any more."""
        known = self._lines.get(batch)
        if known is not None:
            return known
        order: dict[str, int] = {}
        with contextlib.suppress(Rejected, ValueError):
            owner = await request_state.owner(self.facade.client.store, batch)
            if isinstance(owner, Result):
                owner = await with_request(self.facade.client.store, owner)
            frozen = (
                owner.frozen if isinstance(owner, Claim) else owner.request if owner is not None else None
            )
            if frozen is not None and not frozen.cut:
                rows = await asyncio.to_thread(split_rows, batch, frozen.body(), self.facade.settings.limits)
                order = {row.id: row.line for row in rows}
        if order:
            self._lines[batch] = order
        return order

    async def _items_of_row(self, id: str, info: Info) -> list[GalleryItem]:
        known = self._items.get((info.key, info.etag))
        if known is not None:
            return known
        result = await self._read(id)
        items = items_of(result) if result is not None else []
        self._items[info.key, info.etag] = items
        return items

    async def batches(self, overview: Overview, caller: Key) -> list[BatchItem]:
        """Unfinished batches, then finished ones, newest first."""
        # The queue before the results: a batch that ends in between is then in both, and never in neither.
        queue = await self.queue(overview, caller)
        commits = await self._commits_with(overview.latest)
        unfinished = [
            BatchItem(item.id, item.status, item.finished, item.rows)
            for item in queue
            if item.batch and item.id not in commits
        ]
        return unfinished + await self._finished_batches(commits, caller)

    async def _commits_with(self, latest: tuple[Result, ...]) -> dict[str, Info]:
        """All result objects by id. The cached listing is renewed if it is older than a batch in `latest`."""
        commits = await self._commits()
        if any(result.batch and result.id not in commits for result in latest):
            self._commits.forget()
            commits = await self._commits()
        return commits

    async def _finished_batches(self, commits: Mapping[str, Info], caller: Key) -> list[BatchItem]:
        rows = Counter(id.rpartition("/")[0] for id in commits if "/" in id)
        ids = [id for id in rows.keys() & commits.keys() if caller.sees(id)]
        newest = sorted(ids, key=lambda id: -commits[id].modified)[:BATCHES]
        results = await asyncio.gather(*map(self._read, newest))
        return [_batch_item(result, rows[result.id]) for result in results if result is not None]

    async def _read(self, id: str) -> Result | None:
        async with self._gate:
            return await request_state.read_result(self.facade.client.store, id)

    async def _list_commits(self) -> dict[str, Info]:
        infos = self.facade.client.store.list(RESULTS)
        return {id: info async for info in infos if (id := parse_result(info.key))}


def _batch_item(result: Result, rows: int) -> BatchItem:
    """A finished batch. `rows`: how many have a result, for a canceled batch, which has no counts."""
    if result.batch is None:
        return BatchItem(result.id, result.status, rows, rows)
    counts = result.batch.counts
    return BatchItem(result.id, result.status, counts.total, counts.total, counts.total - counts.succeeded)


def _natural(key: str) -> list[tuple[bool, int, str]]:
    """A sort key that puts row 10 after row 9."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", key)
    ]
