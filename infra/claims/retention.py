"""Removes what ended long ago: results, with all that lies beside them.

The order makes a crash, a running worker and a request that comes again harmless:

- Only what is over is touched: no claim and no request object has the id, or the id of a batch above it.
- Of a request the result manifest is deleted last. While it is there nobody begins to draw the id, so no worker
  adopts an image that is about to go.
- Of a batch the rows go first, and its own result last of all, so nobody sums up rows that are going.

A crash leaves results that name images which are gone; the next run ends the work. Ages are differences of the
store's own dates. What is younger than the longest pause of a worker must stay: one that sleeps between its last
image and its commit would then commit images that are gone. `LEAST` keeps far away from that.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from infra.claims.claim import Timing
from infra.gather import gather_bounded
from infra.stores.directory.store import DirectoryStore
from infra.stores.store import InvalidKey
from schemas import layout
from schemas.errors import NotFound, StoreUnavailable, TooLarge
from schemas.limits import Limits
from schemas.manifest import chosen_id
from schemas.result import Result

if TYPE_CHECKING:
    from infra.stores.store import Info, Store

Without = Callable[[str], Awaitable[bool]]  # whether the request of an id ended without pictures

LEAST = Timing().forget  # seconds: the least age; workers that were silent for so long are forgotten, too
AT_ONCE = 8  # requests that are looked at, or removed, at a time
_OTHER_BODY = re.compile(r"~[0-9a-f]{8}$")
_SUMMARIES = ("batch.json", "results.jsonl", "errors.jsonl")  # files that only a batch has
_WITHOUT_PICTURES = ("failed", "canceled", "expired")
_MAX_RESULT = 128 << 20  # bytes of a result manifest that is read


@dataclass(slots=True)
class Ended:
    """An ended request, with what lies in its folder."""

    id: str
    modified: float = 0.0  # of its result manifest: seconds since 1970 by the store's clock; 0: it has none
    etag: str = ""  # of its result manifest
    objects: int = 0
    bytes: int = 0
    is_batch: bool = False
    rows: list[Ended] = field(default_factory=list)  # of a batch: those that go with it

    def total(self) -> tuple[int, int]:
        """(objects, bytes), rows included."""
        parts = [self, *self.rows]
        return sum(part.objects for part in parts), sum(part.bytes for part in parts)


@dataclass(slots=True)
class Survey:
    """What a removal would take, and what it leaves although it is old enough."""

    going: list[Ended] = field(default_factory=list)  # in the order of their ids
    open: list[str] = field(default_factory=list)  # ids that are asked for again, or belong to an open batch
    in_batch: int = 0  # rows that stay until their batch goes

    def totals(self) -> dict[str, int]:
        """Counts of what would go, for people and programs."""
        sums = Counter[str](requests=0, batches=0, rows=0, objects=0, bytes=0)
        for ended in self.going:
            objects, size = ended.total()
            kind = "batches" if ended.is_batch else "requests"
            sums.update({kind: 1, "rows": len(ended.rows), "objects": objects, "bytes": size})
        return dict(sums)


async def survey(store: Store, older_than: float, *, failed: bool = False) -> Survey:
    """What ended more than `older_than` seconds ago by the store's clock; nothing is removed.

    Args:
        failed: only what ended without pictures: failed, canceled or expired. A row goes with its batch only.

    Raises:
        ValueError: `older_than` is less than `LEAST`.
        StoreUnavailable: the store does not answer.
    """
    if older_than < LEAST:
        raise ValueError(f"older_than is {older_than:g} s; the least is {LEAST:g} s")
    before = await store_time(store) - older_than
    # In the order in which a request moves, so that it is seen, however fast it is.
    waiting = [info async for info in store.list(layout.REQUESTS) if layout.is_request(info.key)]
    ids = {layout.request_id(info.key) for info in waiting}
    ids |= {claim[0] async for info in store.list(layout.CLAIMS) if (claim := layout.parse_claim(info.key))}
    found = await _ended(store)
    if any(layout.CHOSEN_ID.fullmatch(id) for id, ended in found.items() if ended.modified < before):
        ids |= await _chosen(store, waiting)
    return await _sort(found, _Open(ids), before, partial(_is_without_pictures, store) if failed else None)


async def remove(store: Store, going: list[Ended]) -> None:
    """Remove a survey's requests, batches with their rows. It may be repeated after any error.

    What was asked for, or removed and drawn again, since the survey stays; so does a batch of which a row stays.

    Raises:
        StoreUnavailable: the store does not answer; a part is removed.
    """

    async def one(ended: Ended) -> None:
        rows = {row.id: row for row in ended.rows}
        files = await _files(store, ended.id, {ended.id, *rows})
        gone = await gather_bounded(
            rows.values(), AT_ONCE, lambda row: _remove_one(store, row, files[row.id])
        )
        if all(gone):
            await _remove_one(store, ended, files[ended.id])

    await gather_bounded([ended for ended in going if not ended.rows], AT_ONCE, one)
    for batch in going:
        if batch.rows:
            await one(batch)
    if isinstance(store, DirectoryStore) and going:
        await store.remove_empty_folders(layout.RESULTS)


async def _remove_one(store: Store, ended: Ended, files: list[Info]) -> bool:
    """Remove one id's files. False when it stays."""
    commit = layout.result_key(ended.id)
    if (commit, ended.etag) not in [(info.key, info.etag) for info in files]:
        return not files  # somebody else removed it, and it may be drawn again
    if await _is_asked_for(store, ended.id):
        return False  # since the survey: a worker may be about to answer it with this result
    await store.delete(layout.status_key(ended.id))
    others = [info for info in files if info.key != commit]
    await gather_bounded(others, AT_ONCE, lambda info: store.delete(info.key, etag=info.etag))
    await store.delete(commit, etag=ended.etag)  # last: see the module's docstring
    return True


async def _is_asked_for(store: Store, id: str) -> bool:
    """Whether a request object or a claim has an id; in this order, in which a request moves."""
    for lane in (layout.REQUESTS, layout.EXPRESS):
        for kind in (layout.SINGLE, layout.BATCH):
            if await store.head(f"{lane}{id}{kind}") is not None:
                return True
    async for info in store.list(layout.claims_prefix(id)):
        if (claim := layout.parse_claim(info.key)) and claim[0] == id:
            return True
    return False


async def _files(store: Store, id: str, ids: set[str]) -> dict[str, list[Info]]:
    """Our files in the folders of these ids, which are `id` or below it."""
    files: dict[str, list[Info]] = {each: [] for each in ids}
    async for info in store.list(layout.result_folder(id)):
        owner = layout.parse_result_file(info.key)
        if owner in files:
            files[owner].append(info)
    return files


async def _ended(store: Store) -> dict[str, Ended]:
    """Every id that has a result manifest, in the order of the ids."""
    found: dict[str, Ended] = {}
    async for info in store.list(layout.RESULTS):
        owner = layout.parse_result_file(info.key)
        if owner is None:
            continue
        ended = found.setdefault(owner, Ended(owner))
        ended.objects += 1
        ended.bytes += info.size
        ended.is_batch = ended.is_batch or info.key.endswith(_SUMMARIES)
        if info.key == layout.result_key(owner):
            ended.modified, ended.etag = info.modified, info.etag
    return {id: found[id] for id in sorted(found) if found[id].etag}


async def _sort(found: dict[str, Ended], open_: _Open, before: float, without: Without | None) -> Survey:
    """Which of the ended requests go."""
    result = Survey()
    going: dict[str, Ended] = {}
    rows: dict[str, list[Ended]] = {}  # of ended batches, old enough and not open, by batch
    for id, ended in found.items():
        if ended.modified >= before:
            continue
        if open_.has(id) or (ended.is_batch and id in open_.parents):
            result.open.append(id)
        elif (batch := found.get(id.rpartition("/")[0])) is not None and batch.is_batch:
            rows.setdefault(batch.id, []).append(ended)
        else:
            going[id] = ended
    if without is not None:
        answers = await gather_bounded(going, AT_ONCE, without)
        going = {id: going[id] for id, answer in zip(going, answers, strict=True) if answer}
    for id, ended in going.items():
        ended.rows = rows.pop(id, [])
        result.going.append(ended)
    result.in_batch = sum(map(len, rows.values()))
    return result


class _Open:
    """The ids that are claimed, or asked for by a request object."""

    def __init__(self, ids: set[str]) -> None:
        self.ids = ids
        self.parents = {above for id in ids for above in _above(id)}

    def has(self, id: str) -> bool:
        """Whether an id is open, or the batch that it may be a row of."""
        return any(each in self.ids or _OTHER_BODY.sub("", each) in self.ids for each in (id, *_above(id)))


def _above(id: str) -> Iterator[str]:
    while id := id.rpartition("/")[0]:
        yield id


async def _chosen(store: Store, waiting: list[Info]) -> set[str]:
    """The ids that request objects have inside their bodies."""

    async def read(info: Info) -> str | None:
        with contextlib.suppress(NotFound, TooLarge, InvalidKey):
            return chosen_id((await store.get(info.key, max_bytes=Limits().max_body_bytes)).body)
        return None

    single = [info for info in waiting if not layout.is_batch(info.key)]
    return {id for id in await gather_bounded(single, AT_ONCE, read) if id}


async def _is_without_pictures(store: Store, id: str) -> bool:
    """Whether a result says so, or cannot be read."""
    try:
        body = (await store.get(layout.result_key(id), max_bytes=_MAX_RESULT)).body
        return Result.model_validate_json(body).status in _WITHOUT_PICTURES
    except NotFound:
        return False
    except (ValueError, TooLarge):
        return True


async def store_time(store: Store) -> float:
    """The time by the store's clock: the date of an object that is written for this, and deleted."""
    key = layout.worker_key(f".probe-clock-{secrets.token_hex(8)}")  # workers tidy there what a crash leaves
    await store.put(key, b"")
    try:
        info = await store.head(key)
    finally:
        await store.delete(key)
    if info is None:
        raise StoreUnavailable(f"{store.url} does not show what was just written")
    return info.modified
