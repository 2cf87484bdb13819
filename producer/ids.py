"""The ids of requests: which one a name stands for, and whether one is free.

A file's path is its request's id, unless its body has an `id`: then that is the id, and the result is
stored under it. People remember the file. So until the request has ended, either name leads to it: the
file, or the claim that was made of it, tells the other one.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from infra.claims.claim import Claim, answers
from infra.claims.trainings import TrainingStore
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

READ = 50  # objects of each kind that are read to find a name that is not an id
SMALL = 65_536  # bytes; a larger request is not read just to learn its id


async def state_of(store: Store, name: str, limits: Limits) -> request_state.State:
    """As `request_state.state_of`, and a dropped file is also found by its path when its body has an `id`.

    Returns:
        The state under the request's id, with its `source` where that is another name.

    Raises:
        UnknownRequest: with the nearest known ids.
    """
    try:
        state = await request_state.state_of(store, name)
    except UnknownRequest:
        return await _state_by_path(store, name, limits)
    if state.status != "queued":
        return state
    request = await request_state.find_request(store, name)
    id = None if request is None else await id_of_file(store, request, limits.max_body_bytes)
    if request is None or id is None or id == name:
        return state
    return await _state_under(store, id, request)


async def id_of_file(store: Store, request: Info, max_bytes: int) -> str | None:
    """The id that a dropped file's body has; None when it has none, or more bytes than `max_bytes`."""
    if not is_batch(request.key):
        with contextlib.suppress(NotFound, TooLarge):
            return await id_of_body(store, (await store.get(request.key, max_bytes=max_bytes)).body)
    return None


async def make_sure_it_is_free(store: Store, id: str, body: bytes, limits: Limits, *, batch: bool) -> None:
    """Look whether another body waits under an id, in either lane and of either kind. Raises `Conflict`.

    A key is created once, but an id has four of them. A body that was claimed is known by its claim.
    """
    for info in filter(None, await asyncio.gather(*map(store.head, request_state.request_keys(id)))):
        with contextlib.suppress(NotFound):  # a worker took it just now
            same = is_batch(info.key) == batch and info.size == len(body)
            if same and (await store.get(info.key)).body == body:
                continue
            if await id_of_file(store, info, limits.max_body_bytes) in (None, id):
                raise Conflict(id, "it belongs to another request, which is waiting")


async def make_sure_it_came_first(store: Store, ticket: Ticket) -> None:
    """Take back a request that was dropped while another body with its id was in progress. Raises `Conflict`.

    Call it after the request was dropped: since the check before, another body may have been dropped and
    claimed, which frees its key.
    """
    owner = await request_state.owner(store, ticket.id)
    if owner is None or answers(owner.fingerprint, ticket.fingerprint):
        return
    with contextlib.suppress(NotFound):  # a worker has it, and answers it under another id
        mine = await store.get(ticket.key)
        if fingerprint(mine.body) == ticket.fingerprint:
            await store.delete(ticket.key, etag=mine.info.etag)
    raise Conflict(ticket.id, "it belongs to another request, which came at the same moment")


async def id_of_body(store: Store, body: bytes) -> str | None:
    """The id under which a body that names one is answered; None if it names none.

    It is the id in the body, or `<id>~<hash>` where that id stands for another body already. A training's body
    names none: its id is the path of its file.
    """
    chosen = None if isinstance(store, TrainingStore) else chosen_id(body)
    if chosen is None:
        return None
    print_ = fingerprint(body)
    owner = await request_state.owner(store, chosen)
    mine = owner is None or answers(owner.fingerprint, print_)
    return chosen if mine else other_body_id(chosen, print_)


async def _state_under(store: Store, id: str, request: Info) -> request_state.State:
    try:
        state = await request_state.state_of(store, id)
    except UnknownRequest:  # no worker has seen it
        state = request_state.State(id, "queued", position=await request_state.position(store, request))
    return replace(state, source=request.key)


async def _state_by_path(store: Store, name: str, limits: Limits) -> request_state.State:
    """Search the files that wait, then the claims: a request moves in that order, so it cannot slip past both."""
    waiting = [
        i async for i in request_state.first(store.list(REQUESTS), request_state.MOST) if is_request(i.key)
    ]
    small = [i for i in waiting if i.size <= SMALL and not is_batch(i.key)][:READ]
    chosen = await asyncio.gather(*(id_of_file(store, i, SMALL) for i in small))
    for request, id in zip(small, chosen, strict=True):
        if id is not None and name in (id, request_id(request.key)):
            return await _state_under(store, id, request)
    latest: dict[str, str] = {}
    async for info in request_state.first(store.list(CLAIMS), request_state.MOST):
        claimed = parse_claim(info.key)
        if claimed and not claimed[2]:
            latest[claimed[0]] = info.key
    for claim in await asyncio.gather(*(_claim(store, key) for key in [*latest.values()][:READ])):
        if claim is not None and claim.source is not None and request_id(claim.source) == name:
            return replace(await request_state.state_of(store, claim.id), source=claim.source)
    return await request_state.state_of(store, name)  # it may have moved on meanwhile; raises if not


async def _claim(store: Store, key: str) -> Claim | None:
    with contextlib.suppress(NotFound, ValueError):
        return Claim.model_validate_json((await store.get(key)).body)
    return None
