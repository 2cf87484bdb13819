"""`AsyncClient`: submits requests, waits for their results and fetches them.

A client talks only to the store: it creates a request object, and reads what workers write. So no server
has to be running; what is submitted now is drawn when a worker starts.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Self

from infra.limits_env import limits_from
from infra.stores.open import open_store
from producer import canceling, collect, ids, overview, request_state, retrying, sending
from producer.errors import StillWorking
from producer.requests import Parcel, Request, Ticket, batch_parcel, parcel, traced
from producer.result_poller import PollInterval, ResultPoller
from schemas.result import Result

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Iterable

    from PIL.Image import Image

    from infra.stores.open import OpenableStore
    from infra.stores.store import Store
    from producer.models.known import ModelName, Published
    from schemas.limits import Limits


class AsyncClient:
    """A client of one store.

        async with AsyncClient("./dreamdrop-data") as dream:
            ticket = await dream.submit({"prompt": "a red circle"})
            result = await dream.wait(ticket)

    Every verb raises `StoreUnavailable` when the store does not answer.

    Args:
        store: a directory, `s3://bucket[/prefix]`, or an open `Store`.
        limits: what the store's workers allow; requests are checked against it before they are sent. By default
            from DREAMDROP_MAX_STEPS and its siblings, which workers read, too.
        poll_interval: how often to look for awaited results; by default it depends on the kind of store.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store,
        *,
        limits: Limits | None = None,
        poll_interval: PollInterval | None = None,
    ) -> None:
        self._own: OpenableStore | None = None  # a store that we open, so we close it
        if isinstance(store, str) or hasattr(store, "__fspath__"):
            self._own = open_store(str(store))
        self.name = str(store) if self._own is not None else store.url  # type: ignore[union-attr]
        self.store: Store = self._own if self._own is not None else store  # type: ignore[assignment]
        self._limits = limits or limits_from()
        self._poll_interval = poll_interval
        self._opening: asyncio.Lock | None = None
        self._poller: ResultPoller | None = None
        self.queues = sending.Queues()
        self._published: Published | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect now rather than at the first call, so that errors come early."""
        await self._open()

    async def close(self) -> None:
        """Close the connections. Whoever still waits gets a `RuntimeError`."""
        self._closed = True
        await self.queues.close()
        if self._poller is not None:
            await self._poller.close()  # before the store, which it reads
            self._poller = None
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
            express: use the express lane, which workers look at first.

        Raises:
            Rejected: the manifest can never succeed; nothing was sent.
            Conflict: the id stands for another request.
        """
        checked = asyncio.to_thread(parcel, request, id=id, express=express, limits=self._limits)
        return await traced(await checked, self._drop)

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

        All are checked before the first is sent. A request that a message cannot carry is dropped into the store
        first. The tickets' ids are in the messages, so `wait` works at once; `status` works once a worker has
        the request.

        Args:
            requests: as `submit` takes them.
            queue: its URL.
            id: of a single request; by default each manifest's own, or a fresh one.

        Raises:
            Rejected: one can never succeed; nothing was sent.
            Conflict: an id stands for another request that is being drawn or has ended.
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
        """The state of a request. Raises `UnknownRequest`."""
        return await request_state.state_of(await self._open(), _id(request))

    async def find(self, name: str) -> request_state.State:
        """As `status`, and also by the path of a dropped file whose body has another id. Raises `UnknownRequest`."""
        return await ids.state_of(await self._open(), name, self._limits)

    async def wait(self, request: Ticket | str, timeout: float | None = None) -> Result:
        """Wait until a request has ended, however it ended.

        Args:
            timeout: seconds; None waits forever.

        Raises:
            StillWorking: it did not end in time; also a `TimeoutError`.
            UnknownRequest: nobody has submitted this id.
        """
        store = await self._open()
        # First: an id that nobody has submitted would be waited for without end.
        if isinstance(request, str) and not await request_state.is_known(store, request):
            await request_state.state_of(store, request)  # raises, with a hint
        try:
            async with asyncio.timeout(timeout):
                return await self._opened_poller().result(request)
        except TimeoutError as error:
            # Once more: the time may have been too short for a single look.
            result = await request_state.read_result(store, _id(request))
            if result is not None and (isinstance(request, str) or result.fingerprint == request.fingerprint):
                return result
            raise StillWorking([_id(request)], timeout or 0) from error

    async def results(
        self, requests: Iterable[Ticket | str], timeout: float | None = None
    ) -> AsyncGenerator[Result]:
        """Yield results in the order in which the requests end. Raises `StillWorking`."""
        await self._open()
        distinct = list(dict.fromkeys(requests))
        left = {_id(request) for request in distinct}
        end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        async with contextlib.aclosing(self._opened_poller().follow(distinct)) as stream:
            while left:
                try:
                    async with asyncio.timeout_at(end):
                        request, result = await anext(stream)
                except TimeoutError as error:
                    raise StillWorking(sorted(left), timeout or 0) from error
                left.discard(_id(request))
                yield result

    async def result(self, request: Ticket | str) -> Result:
        """The result of a request that has ended. Raises `StillWorking`, `UnknownRequest`."""
        state = await self.status(request)
        if state.result is None:
            raise StillWorking([state.id], 0)
        return state.result

    async def fetch(self, request: Ticket | str, out: str | os.PathLike[str] = ".") -> list[Path]:
        """Check a finished request's images and save them in the folder `out/<id>/`; for a batch, those of all rows.

        Raises:
            Damaged: an image does not match its result.
            StillWorking, UnknownRequest: there is nothing to fetch yet, or ever.
        """
        return await collect.save(self.store, await self.result(request), Path(out))

    async def images(self, request: Ticket | str) -> list[Image]:
        """Wait for a request and open its images with Pillow. A failed request has none: see `wait`."""
        return await collect.pictures(self.store, await self.wait(request))

    async def cancel(self, request: Ticket | str) -> request_state.State:
        """Cancel a request; for a batch, also its rows that have not ended. Returns how it ended.

        Canceling means to create the result before a worker does. If a worker was first, its result stands.
        Raises `UnknownRequest`.
        """
        return await canceling.cancel(await self._open(), _id(request), self._limits)

    async def retry(self, request: Ticket | str, *, queue: str | None = None) -> retrying.Retry:
        """Submit again a request that did not succeed; for a batch, only its rows that did not.

        Results are written once, so the retry gets a new id: `<id>-r2` and so on. A retry that is waiting,
        being drawn or has succeeded is not repeated.

        Raises:
            NothingToRetry: it succeeded, has not ended, or its result does not hold the whole request.
            Rejected: as written it can never succeed.
        """
        retry = await retrying.prepare(await self._open(), _id(request), self._limits)
        ticket: Ticket | None = None
        if retry.there:
            pass
        elif queue is None:
            drop = self.submit_batch if retry.batch else self.submit
            ticket = await drop(retry.body, id=retry.id)
        elif retry.batch:
            ticket = await self.send_batch(retry.body, queue=queue, id=retry.id)
        else:
            ticket = (await self.send(retry.body, queue=queue, id=retry.id))[0]
        return retrying.Retry(retry.id, retry.was, ticket)

    async def is_known(self, id: str) -> bool:
        """Whether a request, a claim or a result has this id."""
        return await request_state.is_known(await self._open(), id)

    async def known(self, latest: int = overview.LATEST, *, begin: str = "") -> overview.Overview:
        """What is in the store: what waits, what is being drawn, what ended last. See `overview.overview`."""
        return await overview.overview(await self._open(), latest, begin=begin)

    async def models(self) -> list[ModelName]:
        """The models that live workers announce, and those in the store; the nearest to a worker first."""
        from producer.models import known  # here: no other call needs the cards

        self._published = self._published or known.Published()
        return await known.models(await self._open(), self._published)

    async def _open(self) -> Store:
        """Open the store once, on the loop that first needs it."""
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._poller is None:
            self._opening = self._opening or asyncio.Lock()
            async with self._opening:
                if self._poller is None:
                    if self._own is not None:
                        await self._own.open()
                    self._poller = ResultPoller(self.store, self._poll_interval)
        return self.store

    def _opened_poller(self) -> ResultPoller:
        assert self._poller is not None, "every verb opens the store first"
        return self._poller

    async def _send(self, parcels: list[Parcel], queue: str) -> list[Ticket]:
        await self._open()
        return await sending.send(
            parcels,
            await self.queues.get(queue),
            drop=self._drop,
            is_there=self._is_there,
        )

    async def _drop(self, parcel: Parcel) -> Ticket:
        return await sending.drop(await self._open(), parcel)

    async def _is_there(self, parcel: Parcel) -> bool:
        return await sending.is_there(self.store, parcel.ticket)


def _id(request: Ticket | str) -> str:
    return request if isinstance(request, str) else request.id
