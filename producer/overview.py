"""An overview of a store, for people: its requests by state, and its live workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producer.liveness import looks_alive
from producer.request_state import find_request, read_claim, read_progress, read_result
from schemas.batch import numbered
from schemas.defaults import ModelDefaults
from schemas.errors import NotFound, Rejected
from schemas.layout import (
    CLAIMS,
    EXPRESS,
    REQUESTS,
    RESULTS,
    WORKERS,
    claims_prefix,
    is_batch,
    is_request,
    parse_claim,
    parse_result,
    request_id,
)
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from infra.stores.store import Info, Store
    from schemas.result import Progress, Result

LATEST = 20  # results that an overview reads
HEAVY = 4 << 20  # bytes from which a request is not read just for its prompt


@dataclass(frozen=True, slots=True)
class Overview:
    """A store at a glance."""

    queued: tuple[str, ...]  # ids, in order: the express lane first, then the oldest first
    processing: dict[str, Progress | None]
    over: int  # requests that have ended
    latest: tuple[Result, ...]  # the newest of them, newest first
    workers: int  # with a recent heartbeat


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request that has not ended asks for."""

    prompt: str  # "" for a batch, and where it cannot be read
    batch: bool
    since: float  # when it was dropped or claimed: seconds since 1970 by the store's clock, for people
    rows: int = 0  # of a batch


async def overview(
    store: Store,
    latest: int = LATEST,
    read: Callable[[str, Info], Awaitable[Result | None]] | None = None,
    *,
    begin: str = "",
) -> Overview:
    """Look at the whole store.

    Args:
        read: how the result of an id is read, for callers who look often and cache results.
        begin: of claimed and ended requests, take only those whose ids begin with it. The queued ones are all
            listed: a place in the queue depends on all of them.
    """
    requests = [info async for info in store.list(REQUESTS) if is_request(info.key)]
    claims = [parse_claim(info.key) async for info in store.list(CLAIMS + begin)]
    claimed = {claim[0] for claim in claims if claim is not None}
    ended = {id: info async for info in store.list(RESULTS + begin) if (id := parse_result(info.key))}
    queued = [request_id(i.key) for i in sorted(requests, key=_place)]
    processing = sorted(claimed - ended.keys())
    newest = sorted(ended, key=lambda id: (-ended[id].modified, ended[id].key))[:latest]
    reading = (read(id, ended[id]) if read else read_result(store, id) for id in newest)
    results = await asyncio.gather(*reading)
    return Overview(
        queued=tuple(id for id in queued if id not in claimed and id not in ended),
        processing={id: await read_progress(store, id) for id in processing[:LATEST]}
        | dict.fromkeys(processing[LATEST:]),
        over=len(ended),
        latest=tuple(result for result in results if result is not None),
        workers=len(await heartbeats(store)),
    )


def _place(request: Info) -> tuple[bool, float, str]:
    return not request.key.startswith(EXPRESS), request.modified, request.key


async def asked(store: Store, id: str) -> Asked | None:
    """What an open request asks for, from its claim, else from its object. None when it has neither any more.

    Raises:
        Damaged: its claim cannot be read.
    """
    claims = [i async for i in store.list(claims_prefix(id)) if (c := parse_claim(i.key)) and c[0] == id]
    if claims:
        since = min(info.modified for info in claims)
        if max(info.size for info in claims) >= HEAVY:
            return Asked("", False, since)
        claim = await read_claim(store, id)
        if claim is None:
            return None
        rows = _rows(claim.frozen.body()) if claim.batch else 0
        return Asked(str((claim.plan or {}).get("prompt") or ""), claim.batch, since, rows)
    request = await find_request(store, id)
    if request is None:
        return None
    batch = is_batch(request.key)
    if request.size >= HEAVY:
        return Asked("", batch, request.modified)
    body = b""
    with contextlib.suppress(NotFound):
        body = (await store.get(request.key)).body
    if batch:
        return Asked("", True, request.modified, _rows(body))
    with contextlib.suppress(Rejected):
        return Asked(str(load_object(body).get("prompt") or ""), False, request.modified)
    return Asked("", False, request.modified)


def _rows(body: bytes) -> int:
    return sum(1 for _ in numbered(body))


async def heartbeats(store: Store, is_alive: Callable[[Info], bool] = looks_alive) -> list[dict[str, Any]]:
    """The heartbeats of the workers that are alive.

    Args:
        is_alive: judges a listed heartbeat; `Liveness.is_alive` for who looks more than once.
    """
    beats = []
    async for info in store.list(WORKERS):
        if not is_alive(info):
            continue
        beat: object = None
        with contextlib.suppress(NotFound, ValueError, RecursionError):
            beat = json.loads((await store.get(info.key)).body)
        if isinstance(beat, dict) and isinstance(beat.get("seq"), int):  # else no worker wrote it
            beats.append(beat)
    return beats


def defaults_of(beats: Iterable[Mapping[str, Any]], model: str) -> ModelDefaults:
    """What fills the fields that a request for a model leaves open; null where live workers differ or do not say."""
    told = [beat.get("defaults") for beat in beats if model in _names(beat, "models")]
    return ModelDefaults.common(
        ModelDefaults.read(each.get(model) if isinstance(each, dict) else None) for each in told
    )


def models_of(beat: Mapping[str, Any]) -> set[str]:
    """The models that a worker can draw with."""
    return _names(beat, "models")


def models_here(beat: Mapping[str, Any]) -> set[str]:
    """The models whose weights a worker has; all of them where an older one does not say."""
    return _names(beat, "available" if "available" in beat else "models")


def addons_of(beats: Iterable[Mapping[str, Any]], kind: str) -> set[str]:
    """What live workers know beside models: their `controlnets` or `ip_adapters`."""
    return {name for beat in beats for name in _names(beat, kind)}


def _names(beat: Mapping[str, Any], field: str) -> set[str]:
    names = beat.get(field)
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
