"""An overview of a store, for people: its requests by state, its models, and its live workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producer.liveness import looks_alive
from producer.request_state import read_progress, read_result
from schemas.errors import NotFound
from schemas.layout import (
    CLAIMS,
    EXPRESS,
    MODELS,
    REQUESTS,
    RESULTS,
    WORKERS,
    is_request,
    parse_claim,
    parse_result,
    request_id,
)
from schemas.models import parse_card

if TYPE_CHECKING:
    from infra.stores.store import Info, Store
    from schemas.result import Progress, Result

LATEST = 20  # results that an overview reads


@dataclass(frozen=True, slots=True)
class Overview:
    """A store at a glance."""

    queued: tuple[str, ...]  # ids, in order: the express lane first, then the oldest first
    processing: dict[str, Progress | None]
    over: int  # requests that have ended
    latest: tuple[Result, ...]  # the newest of them, newest first
    workers: int  # with a recent heartbeat


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model that a request may name, and where it was found."""

    name: str
    workers: int  # live ones that announce it
    versions: tuple[str, ...]  # in the store
    here: int = 0  # live workers that need not download it first


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


async def models(store: Store) -> list[ModelName]:
    """The models that live workers announce, and those in the store."""
    beats = await heartbeats(store)
    announced = Counter(name for beat in beats for name in _names(beat, "models"))
    here = Counter(name for beat in beats for name in models_here(beat))
    stored: dict[str, list[int]] = {}
    async for info in store.list(MODELS):
        if (version := parse_card(info.key)) is not None:
            stored.setdefault(version[0], []).append(version[1])
    names = sorted(announced.keys() | stored.keys())
    return [
        ModelName(name, announced[name], tuple(map(str, sorted(stored.get(name, ())))), here[name])
        for name in names
    ]


def models_here(beat: Mapping[str, Any]) -> set[str]:
    """The models whose weights a worker has; all of them where an older one does not say."""
    return _names(beat, "available" if "available" in beat else "models")


def _names(beat: Mapping[str, Any], field: str) -> set[str]:
    names = beat.get(field)
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
