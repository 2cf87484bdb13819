"""Submit, wait, fetch: the client's one core, asynchronous.

A client talks to the store and to nobody else: it creates a request object, and reads what
workers write. So it needs no server to be up; what is submitted now is drawn when a worker comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Self

from infra.claims.claim import Claim
from infra.limits_env import limits_from
from infra.stores.open import open_store
from producer import canceling, collect, ids, overview, request_state, retrying, sending
from producer.errors import Conflict, StillWorking
from producer.requests import Parcel, Request, Ticket, batch_parcel, parcel
from producer.result_poller import Pace, Waiting
from schemas.errors import NotFound
from schemas.layout import is_batch
from schemas.result import Result

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Iterable

    from PIL.Image import Image

    from infra.stores.open import OpenableStore
    from infra.stores.store import Store
    from schemas.limits import Limits

TRIES = 5  # an id's request object is taken by a worker between two looks; more often is no accident


class AsyncClient:
    """A client of one store.

        async with AsyncClient("./dreamdrop-data") as dream:
            ticket = await dream.submit({"prompt": "a red circle"})
            result = await dream.wait(ticket)

    Every verb raises `StoreUnavailable` when the store does not answer.

    Args:
        store: a directory, `s3://bucket[/prefix]`, or an open `Store`.
        limits: what the store's workers allow; requests are checked against it before they are sent. By default as
            DREAMDROP_MAX_STEPS and its kin say, which workers read, too.
        pace: how often to look for results that somebody waits for; by default as the store allows.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store,
        *,
        limits: Limits | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._own: OpenableStore | None = None  # a store that we opened, and close
        if isinstance(store, str) or hasattr(store, "__fspath__"):
            self._own = open_store(str(store))
        self.name = str(store) if self._own is not None else store.url  # type: ignore[union-attr]
        self.store: Store = self._own if self._own is not None else store  # type: ignore[assignment]
        self._limits = limits or limits_from()
        self._pace = pace
        self._opening: asyncio.Lock | None = None
        self._waiting: Waiting | None = None
        self._queues = sending.Queues()
        self._closed = False

    async def open(self) -> None:
        """Connect now rather than at the first call, and say early what is missing."""
        await self._open()

    async def close(self) -> None:
        """Let connections go; whoever still waits is told."""
        self._closed = True
        await self._queues.close()
        if self._waiting is not None:
            await self._waiting.close()
            self._waiting = None
            if self._own is not None:
                await self._own.close()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def submit(self, request: Request, *, id: str | None = None, express: bool = False) -> Ticket:
        """Drop one request. The same request under the same id is the same request.

        Args:
            request: a document, a model of `schemas.manifest`, JSON as bytes, or a JSON file's path.
            id: names the result; by default the manifest's own, else a fresh one.
            express: into the lane that workers look at first.

        Raises:
            Rejected: the manifest can never succeed; nothing was sent.
            Conflict: the id stands for another request.
        """
        checked = asyncio.to_thread(parcel, request, id=id, express=express, limits=self._limits)
        return await self._drop(await checked)

    async def submit_batch(
        self, rows: bytes | str | os.PathLike[str], *, id: str | None = None, express: bool = False
    ) -> Ticket:
        """Drop many requests at once: JSON Lines, as bytes or a file's path. Raises as `submit` does."""
        checked = asyncio.to_thread(batch_parcel, rows, id=id, express=express, limits=self._limits)
        return await self._drop(await checked)

    async def send(
        self, requests: Request | Iterable[Request], *, queue: str, id: str | None = None
    ) -> list[Ticket]:
        """Send one request or many to an SQS queue, each as a message of its own.

        All are checked before one is sent. A request that no message carries is dropped into the store first.
        The tickets' ids are in the messages, so `wait` works at once; `status`, when a worker has one.

        Args:
            requests: as `submit` takes them.
            queue: its URL.
            id: of a single request; else each one's own, or a fresh one.

        Raises:
            Rejected: one can never succeed; nothing was sent.
            Conflict: an id stands for another request that is being drawn or over.
            QueueUnavailable: the message says how many were not sent.
        """
        checked = asyncio.to_thread(sending.parcels, requests, id=id, limits=self._limits)
        return await self._send(await checked, queue)

    async def send_batch(
        self, rows: bytes | str | os.PathLike[str], *, queue: str, id: str | None = None
    ) -> Ticket:
        """Drop many requests at once, as `submit_batch` does, and announce them by a message."""
        checked = asyncio.to_thread(batch_parcel, rows, id=id, express=False, limits=self._limits)
        return (await self._send([await checked], queue))[0]

    async def status(self, request: Ticket | str) -> request_state.State:
        """How far a request is. Raises `UnknownRequest`."""
        return await request_state.state_of(await self._open(), _id(request))

    async def find(self, name: str) -> request_state.State:
        """As `status`; also by the path of a dropped file that asks under an id of its own. Raises `UnknownRequest`."""
        return await ids.state_of(await self._open(), name, self._limits)

    async def wait(self, request: Ticket | str, timeout: float | None = None) -> Result:
        """Wait until a request is over, however it ended.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            StillWorking: it was not over in time; a `TimeoutError`, too.
            UnknownRequest: nobody has submitted this id.
        """
        store = await self._open()
        if isinstance(request, str) and not await request_state.is_known(store, request):
            await request_state.state_of(store, request)  # raises, with a hint
        try:
            async with asyncio.timeout(timeout):
                return await self._waiter().result(request)
        except TimeoutError as error:
            result = await request_state.read_result(
                store, _id(request)
            )  # time may have been too short to look
            if result is not None and (isinstance(request, str) or result.fingerprint == request.fingerprint):
                return result
            raise StillWorking([_id(request)], timeout or 0) from error

    async def results(
        self, requests: Iterable[Ticket | str], timeout: float | None = None
    ) -> AsyncGenerator[Result]:
        """Yield results in the order in which the requests end. Raises `StillWorking`."""
        await self._open()
        asked = list(dict.fromkeys(requests))
        left = {_id(request) for request in asked}
        end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        async with contextlib.aclosing(self._waiter().follow(asked)) as stream:
            while left:
                try:
                    async with asyncio.timeout_at(end):
                        request, result = await anext(stream)
                except TimeoutError as error:
                    raise StillWorking(sorted(left), timeout or 0) from error
                left.discard(_id(request))
                yield result

    async def result(self, request: Ticket | str) -> Result:
        """The result of a request that is over. Raises `StillWorking`, `UnknownRequest`."""
        state = await self.status(request)
        if state.result is None:
            raise StillWorking([state.id], 0)
        return state.result

    async def fetch(self, request: Ticket | str, out: str | os.PathLike[str] = ".") -> list[Path]:
        """Save a finished request's images, checked, below the folder `out/<id>/`; of a batch, all rows'.

        Raises:
            Damaged: an image is not what its result says.
            StillWorking, UnknownRequest: there is nothing to fetch yet, or ever.
        """
        return await collect.save(self.store, await self.result(request), Path(out))

    async def images(self, request: Ticket | str) -> list[Image]:
        """Wait for a request and open its images with Pillow. A failed one has none: see `wait`."""
        return await collect.pictures(self.store, await self.wait(request))

    async def cancel(self, request: Ticket | str) -> request_state.State:
        """Cancel a request; of a batch, also the rows that are not over. Returns how it ended.

        Cancelling is winning the race for the result: if a worker was first, its result stands.
        Raises `UnknownRequest`.
        """
        return await canceling.cancel(await self._open(), _id(request), self._limits)

    async def retry(self, request: Ticket | str, *, queue: str | None = None) -> retrying.Retry:
        """Ask again for a request that did not succeed; of a batch, for the rows that did not.

        Results are written once, so it goes under a new id, `<id>-r2` and so on. A retry that is
        waiting, being drawn or drawn already is not repeated.

        Raises:
            NothingToRetry: it succeeded, is not over, or its result does not hold all of the request.
            Rejected: as written it can never succeed.
        """
        store = await self._open()
        again = await retrying.prepare(store, _id(request), self._limits)
        ticket: Ticket | None = None
        if queue is not None and not again.there:
            post = self.send_batch(again.body, queue=queue, id=again.id) if again.batch else None
            ticket = await post if post else (await self.send(again.body, queue=queue, id=again.id))[0]
        elif not again.there:
            drop = self.submit_batch if again.batch else self.submit
            ticket = await drop(again.body, id=again.id)
        return retrying.Retry(again.id, again.was, ticket)

    async def is_known(self, id: str) -> bool:
        """Whether a request, a claim or a result has this id."""
        return await request_state.is_known(await self._open(), id)

    async def known(self, latest: int = overview.LATEST, *, begin: str = "") -> overview.Overview:
        """What is in the store: what waits, what is being drawn, what ended last; see `overview.overview`."""
        return await overview.overview(await self._open(), latest, begin=begin)

    async def models(self) -> list[overview.ModelName]:
        """The models that live workers announce, and those that lie in the store."""
        return await overview.models(await self._open())

    async def _open(self) -> Store:
        """Open the store once, on the loop that first needs it."""
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._waiting is None:
            self._opening = self._opening or asyncio.Lock()
            async with self._opening:
                if self._waiting is None:
                    if self._own is not None:
                        await self._own.open()
                    self._waiting = Waiting(self.store, self._pace)
        return self.store

    def _waiter(self) -> Waiting:
        assert self._waiting is not None, "opened by every verb"
        return self._waiting

    async def _send(self, parcels: list[Parcel], queue: str) -> list[Ticket]:
        await self._open()
        return await sending.send(
            parcels,
            await self._queues.get(queue),
            drop=self._drop,
            is_there=lambda parcel: self._is_there(parcel.ticket),
        )

    async def _drop(self, parcel: Parcel) -> Ticket:
        store, ticket = await self._open(), parcel.ticket
        for _ in range(TRIES):
            if parcel.chosen and await self._is_there(ticket):
                return ticket
            if await store.create(ticket.key, parcel.body, content_type=_content_type(ticket.key)):
                return ticket
            try:
                found = await store.get(ticket.key)
            except NotFound:
                continue  # a worker took it just now: its claim tells what it was
            if found.body == parcel.body:
                return ticket
            raise Conflict(ticket.id, "it is waiting to be drawn")
        raise Conflict(ticket.id, "others keep submitting it")

    async def _is_there(self, ticket: Ticket) -> bool:
        """Whether this very request is being drawn or over. Raises `Conflict` for another one."""
        owner = await request_state.owner(self.store, ticket.id)
        if owner is None:
            return False
        if owner.fingerprint == ticket.fingerprint:
            return True
        if isinstance(owner, Claim):
            raise Conflict(ticket.id, "it is being drawn")
        raise Conflict(ticket.id, f"it {owner.status}" if owner.status != "partial" else "it is over")


def _id(request: Ticket | str) -> str:
    return request if isinstance(request, str) else request.id


def _content_type(key: str) -> str:
    return "application/jsonl" if is_batch(key) else "application/json"
