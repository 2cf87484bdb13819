"""`Client`: the blocking client. It runs `AsyncClient` on an event loop of its own, in a thread of its own.

So it also works where an event loop is running already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Self, TypeVar

from producer.client import AsyncClient

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Iterable, Iterator
    from pathlib import Path

    from PIL.Image import Image

    from infra.stores.store import Store
    from producer.models.known import ModelName
    from producer.overview import Overview
    from producer.request_state import State
    from producer.requests import Request, Ticket
    from producer.retrying import Retry
    from schemas.limits import Limits
    from schemas.result import Result

T = TypeVar("T")


class Client:
    """`AsyncClient` without `await`. Threads may share it. Close it, or use `with`."""

    def __init__(self, store: str | os.PathLike[str] | Store, *, limits: Limits | None = None) -> None:
        self._core = AsyncClient(store, limits=limits)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dreamdrop-client", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        if self._loop.is_closed():
            return
        self._call(self._core.close())
        self._call(self._loop.shutdown_asyncgens())
        self._call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        try:
            self._call(self._core.open())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request, *, id: str | None = None, express: bool = False) -> Ticket:
        """See `AsyncClient.submit`."""
        return self._call(self._core.submit(request, id=id, express=express))

    def submit_batch(
        self, rows: bytes | str | os.PathLike[str], *, id: str | None = None, express: bool = False
    ) -> Ticket:
        """See `AsyncClient.submit_batch`."""
        return self._call(self._core.submit_batch(rows, id=id, express=express))

    def send(
        self, requests: Request | Iterable[Request], *, queue: str, id: str | None = None
    ) -> list[Ticket]:
        """See `AsyncClient.send`."""
        return self._call(self._core.send(requests, queue=queue, id=id))

    def send_batch(
        self, rows: bytes | str | os.PathLike[str], *, queue: str, id: str | None = None
    ) -> Ticket:
        """See `AsyncClient.send_batch`."""
        return self._call(self._core.send_batch(rows, queue=queue, id=id))

    def status(self, request: Ticket | str) -> State:
        """See `AsyncClient.status`."""
        return self._call(self._core.status(request))

    def find(self, name: str) -> State:
        """See `AsyncClient.find`."""
        return self._call(self._core.find(name))

    def wait(self, request: Ticket | str, timeout: float | None = None) -> Result:
        """See `AsyncClient.wait`."""
        return self._call(self._core.wait(request, timeout))

    def result(self, request: Ticket | str) -> Result:
        """See `AsyncClient.result`."""
        return self._call(self._core.result(request))

    def results(self, requests: Iterable[Ticket | str], timeout: float | None = None) -> Iterator[Result]:
        """See `AsyncClient.results`."""
        stream = self._core.results(requests, timeout)

        async def next_result() -> Result | None:
            return await anext(stream, None)

        try:
            while (result := self._call(next_result())) is not None:
                yield result
        finally:
            if not self._loop.is_closed():  # closing the client has ended the stream
                self._call(stream.aclose())

    def fetch(self, request: Ticket | str, out: str | os.PathLike[str] = ".") -> list[Path]:
        """See `AsyncClient.fetch`."""
        return self._call(self._core.fetch(request, out))

    def images(self, request: Ticket | str) -> list[Image]:
        """See `AsyncClient.images`."""
        return self._call(self._core.images(request))

    def cancel(self, request: Ticket | str) -> State:
        """See `AsyncClient.cancel`."""
        return self._call(self._core.cancel(request))

    def retry(self, request: Ticket | str, *, queue: str | None = None) -> Retry:
        """See `AsyncClient.retry`."""
        return self._call(self._core.retry(request, queue=queue))

    def known(self) -> Overview:
        """See `AsyncClient.known`."""
        return self._call(self._core.known())

    def models(self) -> list[ModelName]:
        """See `AsyncClient.models`."""
        return self._call(self._core.models())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except (KeyboardInterrupt, CancelledError):
            future.cancel()
            raise
