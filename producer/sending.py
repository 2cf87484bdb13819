"""Drops requests into a store, or sends them through a queue.

A queue's message holds the manifest itself, or refers to it in the store.

A message carries its id inside the manifest, so that the sender can ask for the result before anybody
has received it. A request that a message cannot carry (too big, a batch, an id that is a path) is dropped
into the store first, and the message refers to it: a *claim check*.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from infra.claims.claim import Claim
from infra.gather import gather_bounded
from producer import request_state
from producer.errors import Conflict
from producer.requests import Parcel, Request, Ticket, parcel, submitted
from schemas.errors import NotFound, Rejected
from schemas.events import reference
from schemas.layout import CHOSEN_ID, is_batch
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from infra.queues.sqs import Queue
    from infra.stores.store import Store
    from schemas.limits import Limits

AT_ONCE = 16  # objects dropped at the same time
TRIES = 5  # a worker may take an id's request object between two looks; this often is not chance
Post = Callable[[Parcel], Awaitable[Any]]


class Queues:
    """The queues that a client has sent to; each is opened once."""

    def __init__(self) -> None:
        self._open: dict[str, Queue] = {}
        self._lock = asyncio.Lock()
        self._exits = AsyncExitStack()

    async def get(self, url: str) -> Queue:
        """The queue at a URL, open. Raises `QueueUnavailable`, `Unsupported`."""
        async with self._lock:
            if url not in self._open:
                from infra.queues.sqs import Queue  # a client without queues need not load it

                self._open[url] = await self._exits.enter_async_context(Queue(url))
            return self._open[url]

    async def close(self) -> None:
        self._open.clear()
        await self._exits.aclose()


def parcels(requests: Request | Iterable[Request], *, id: str | None, limits: Limits) -> list[Parcel]:
    """Check one request or many, each with an id of its own.

    Raises:
        Rejected: one can never succeed; of several, the message says which.
        Conflict: it carries one id and is sent under another.
    """
    one = isinstance(requests, (Mapping, BaseModel, bytes, str, os.PathLike))
    many: list[Request] = [requests] if one else list(requests)  # type: ignore[list-item, arg-type]
    if id is not None and len(many) != 1:
        raise Rejected(
            "invalid_manifest", f"the id names one request, but {len(many)} were given", field="id"
        )
    checked = []
    for number, request in enumerate(many):
        try:
            checked.append(_with_id(parcel(request, id=id, express=False, limits=limits), limits))
        except Rejected as fault:
            if one or len(many) == 1:
                raise
            raise Rejected(
                fault.code, f"request {number + 1} of {len(many)}: {fault.message}", field=fault.field
            ) from fault
    _expect_one_body_for_each_id(checked)
    return checked


async def drop(store: Store, parcel: Parcel) -> Ticket:
    """Create a request's object, unless this very request is known. Raises `Conflict`."""
    ticket = parcel.ticket
    for _ in range(TRIES):
        # The claim and the result before the object: a worker that took the request has deleted its object.
        if parcel.chosen and await is_there(store, ticket):
            return ticket
        if await store.create(ticket.key, parcel.body, content_type=_content_type(ticket.key)):
            return ticket
        try:
            waiting = await store.get(ticket.key)
        except NotFound:
            continue  # a worker took it just now: its claim tells what it was
        if waiting.body == parcel.body:
            return ticket
        raise Conflict(ticket.id, "it belongs to another request, which is waiting")
    raise Conflict(ticket.id, "other requests keep taking it")


async def is_there(store: Store, ticket: Ticket) -> bool:
    """Whether this very request is being drawn or has ended. Raises `Conflict` for another one."""
    owner = await request_state.owner(store, ticket.id)
    if owner is None:
        return False
    if owner.fingerprint == ticket.fingerprint:
        return True
    if isinstance(owner, Claim):
        raise Conflict(ticket.id, "it belongs to another request, which is being drawn")
    raise Conflict(ticket.id, f"it belongs to another request, which has ended ({owner.status})")


def _content_type(key: str) -> str:
    return "application/jsonl" if is_batch(key) else "application/json"


async def send(parcels: Sequence[Parcel], queue: Queue, *, drop: Post, is_there: Post) -> list[Ticket]:
    """Send checked requests, in as few calls as possible.

    Args:
        drop: puts a parcel into the store, before a message refers to it.
        is_there: whether this very request is being drawn or has ended; raises `Conflict` for another one.

    Raises:
        QueueUnavailable: it says how many messages were not sent; sending all again is harmless where
            the requests name their ids.
    """
    limit = await queue.max_bytes()

    async def known(parcel: Parcel) -> bool:
        return parcel.chosen and bool(await is_there(parcel))

    async def message(parcel: Parcel) -> tuple[str, Ticket]:
        text = None if is_batch(parcel.ticket.key) else _carried(parcel, limit)
        if text is not None:
            return text, replace(parcel.ticket, key="")
        await drop(parcel)
        return reference(parcel.ticket.key), parcel.ticket

    # First the conflicts: they are found before anything is dropped.
    there = await gather_bounded(parcels, AT_ONCE, known)
    left = {parcel.ticket: parcel for parcel, skip in zip(parcels, there, strict=True) if not skip}
    # Objects are dropped before any message is sent: a message must not refer to what is not there yet.
    messages = dict(zip(left, await gather_bounded(left.values(), AT_ONCE, message), strict=True))
    began = time.monotonic()
    await queue.send([text for text, _ in messages.values()])
    for one in left.values():
        submitted(one, time.monotonic() - began)
    sent = {given: ticket for given, (_, ticket) in messages.items()}
    return [sent.get(parcel.ticket, parcel.ticket) for parcel in parcels]


def _expect_one_body_for_each_id(parcels: Sequence[Parcel]) -> None:
    bodies: dict[str, str] = {}
    for ticket in (one.ticket for one in parcels):
        if bodies.setdefault(ticket.id, ticket.fingerprint) != ticket.fingerprint:
            raise Conflict(ticket.id, "two of these requests have it")


def _carried(parcel: Parcel, limit: int) -> str | None:
    """A request as a message; None when it must travel by claim check."""
    from infra.queues.message import is_sendable, size_of

    if len(parcel.body) > limit or not CHOSEN_ID.fullmatch(parcel.ticket.id):
        return None
    text = parcel.body.decode()
    return text if is_sendable(text) and size_of(text) <= limit else None


def _with_id(plain: Parcel, limits: Limits) -> Parcel:
    """Write the id into the manifest, where it has none and may have one."""
    document = load_object(plain.body)
    if document.get("id") is not None or not CHOSEN_ID.fullmatch(plain.ticket.id):
        return plain
    body = json.dumps({**document, "id": plain.ticket.id}, ensure_ascii=False).encode()
    named = parcel(body, id=None, express=False, limits=limits)
    return Parcel(named.ticket, body, plain.chosen)
