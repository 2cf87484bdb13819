"""Which request a name means, where a dropped file asks under an id of its own.

A file's path names its request, unless its body has an `id`: then that is the name, and results stand
there. People remember the file. So until the request is over either name leads to it: the file, or the
claim that was made of it, tells the other one.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from infra.claims.claim import Claim, answers
from producer import request_state
from producer.errors import Conflict, UnknownRequest
from schemas.errors import NotFound, TooLarge
from schemas.layout import (
    CLAIMS,
    REQUESTS,
    fingerprint,
    is_batch,
    is_request,
    other_body_id,
    parse_claim,
    request_id,
)
from schemas.limits import Limits
from schemas.manifest import chosen_id

if TYPE_CHECKING:
    from infra.stores.store import Info, Store
    from producer.requests import Ticket

READ = 50  # objects that a name which is no id may cost, of each kind
SMALL = 65_536  # bytes; a larger request is not read just to learn its name


async def state_of(store: Store, name: str, limits: Limits) -> request_state.State:
    """As `request_state.state_of`, and a dropped file is also found by its path when its body has an `id`.

    Returns:
        The state under the request's id, with its `source` where that is another name.

    Raises:
        UnknownRequest: with the nearest known ids.
    """
    try:
        found = await request_state.state_of(store, name)
    except UnknownRequest:
        return await _elsewhere(store, name, limits)
    if found.status != "queued":
        return found
    request = await request_state.find_request(store, name)
    meant = None if request is None else await own_id(store, request, limits.max_body_bytes)
    if request is None or meant in (None, name):
        return found
    assert meant is not None
    return await _under(store, meant, request)


async def own_id(store: Store, request: Info, most: int) -> str | None:
    """The id that a dropped file asks for; None when it asks for none, or has more bytes than `most`."""
    if not is_batch(request.key):
        with contextlib.suppress(NotFound, TooLarge):
            return await asked_id(store, (await store.get(request.key, max_bytes=most)).body)
    return None


async def make_sure_it_is_free(store: Store, id: str, body: bytes, limits: Limits, *, batch: bool) -> None:
    """Look at the files that wait under an id, in either lane and of either kind. Raises `Conflict`.

    A key is created once, but an id has four of them. What was claimed is known by its claim.
    """
    for info in filter(None, await asyncio.gather(*map(store.head, request_state.request_keys(id)))):
        with contextlib.suppress(NotFound):  # a worker took it just now
            same = is_batch(info.key) == batch and info.size == len(body)
            if same and (await store.get(info.key)).body == body:
                continue
            if await own_id(store, info, limits.max_body_bytes) in (None, id):
                raise Conflict(id, "it is waiting to be drawn")


async def make_sure_it_came_first(store: Store, ticket: Ticket) -> None:
    """Take a request back that was dropped while another body was under way with its id. Raises `Conflict`.

    To be called after it was dropped: since the look before, another may have come and been claimed, and its
    key is free then.
    """
    owner = await request_state.owner(store, ticket.id)
    if owner is None or answers(owner.fingerprint, ticket.fingerprint):
        return
    with contextlib.suppress(NotFound):  # a worker has it, and answers it under another name
        mine = await store.get(ticket.key)
        if fingerprint(mine.body) == ticket.fingerprint:
            await store.delete(ticket.key, etag=mine.info.etag)
    raise Conflict(ticket.id, "it came at the same moment")


async def asked_id(store: Store, body: bytes) -> str | None:
    """The id in a request's body; where that stands for another body, the one its answer will have. None: none."""
    chosen = chosen_id(body)
    if chosen is None:
        return None
    print_ = fingerprint(body)
    owner = await request_state.owner(store, chosen)
    mine = owner is None or answers(owner.fingerprint, print_)
    return chosen if mine else other_body_id(chosen, print_)


async def _under(store: Store, id: str, request: Info) -> request_state.State:
    try:
        found = await request_state.state_of(store, id)
    except UnknownRequest:  # no worker has seen it
        found = request_state.State(id, "queued", position=await request_state.position(store, request))
    return replace(found, source=request.key)


async def _elsewhere(store: Store, name: str, limits: Limits) -> request_state.State:
    """By the files that wait, then by the claims: a request moves in that order."""
    waiting = [
        i async for i in request_state.first(store.list(REQUESTS), request_state.MOST) if is_request(i.key)
    ]
    small = [i for i in waiting if i.size <= SMALL and not is_batch(i.key)][:READ]
    asked = await asyncio.gather(*(own_id(store, i, SMALL) for i in small))
    for request, id in zip(small, asked, strict=True):
        if id is not None and name in (id, request_id(request.key)):
            return await _under(store, id, request)
    latest: dict[str, str] = {}
    async for info in request_state.first(store.list(CLAIMS), request_state.MOST):
        found = parse_claim(info.key)
        if found and not found[2]:
            latest[found[0]] = info.key
    for claim in await asyncio.gather(*(_claim(store, key) for key in [*latest.values()][:READ])):
        if claim is not None and claim.source is not None and request_id(claim.source) == name:
            return replace(await request_state.state_of(store, claim.id), source=claim.source)
    return await request_state.state_of(store, name)  # it may have moved on meanwhile; raises if not


async def _claim(store: Store, key: str) -> Claim | None:
    with contextlib.suppress(NotFound, ValueError):
        return Claim.model_validate_json((await store.get(key)).body)
    return None
