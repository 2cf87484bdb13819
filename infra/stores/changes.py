"""When to list a store again: after a pause, which a new file in a directory ends at once.

A bucket cannot notify us, so the pause grows while nothing new comes. A directory can (inotify), but
some file systems report nothing; there the pause decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from infra.backoff import backoff
from infra.stores.directory.store import DirectoryStore
from infra.stores.timed import plain
from schemas.errors import DreamError
from schemas.layout import EXPRESS, REQUESTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from infra.stores.store import Store

log = logging.getLogger(__name__)

BUSY = 0.5  # seconds between two listings while there is work
TIDY = 60.0  # seconds between two looks for empty folders
IDLE = 15.0  # seconds between two listings when nothing has come for long


async def make_inbox(store: Store) -> None:
    """Make a directory store's `requests/` and `requests/express/`, so that people can drop files there."""
    if isinstance(store, DirectoryStore):
        try:
            await store.make_folder(EXPRESS)
        except DreamError as error:  # such as a file of that name, which must not stop a worker
            log.warning("the folders for requests cannot be made", extra={"reason": str(error)})


async def tidying(store: Store) -> None:
    """Remove the folders that the past left empty in a directory store, now and then, until cancelled."""
    store = plain(store)
    while isinstance(store, DirectoryStore):
        try:
            removed = await store.remove_empty_folders()
            log.debug("empty folders removed", extra={"folders": removed})
        except DreamError as error:  # they cost time only
            log.debug("empty folders stay for now", extra={"reason": str(error)})
        await asyncio.sleep(TIDY)


async def changes(
    store: Store,
    stop: asyncio.Event,
    *,
    prefixes: Sequence[str] = (REQUESTS,),
    found_work: Callable[[], bool] = lambda: False,
    shortest: float = BUSY,
    longest: float = IDLE,
    growth: float = 2.0,
    news: asyncio.Event | None = None,
    also_tell: Sequence[asyncio.Event] = (),
) -> AsyncIterator[None]:
    """Yield whenever it is time to list: at once, then after each pause, until `stop` is set.

    Args:
        prefixes: folders (ending in "/") to watch in a directory; none: it is not watched.
        found_work: asked after each listing: whether it found something, so that the next comes soon.
        shortest, longest: the pause in seconds.
        growth: factor of the pause after each listing that found nothing.
        news: set by the caller to list at once.
        also_tell: set, too, when there are new files.
    """
    news = news or asyncio.Event()
    with _watching(store, prefixes, stop, (news, *also_tell)):
        pauses = backoff(shortest, longest, growth=growth)
        while not stop.is_set():
            news.clear()  # before the listing, so that what comes during it causes another one
            yield
            if found_work():
                pauses = backoff(shortest, longest, growth=growth)
            await _wait_for_either(stop, news, next(pauses))
            if news.is_set():
                pauses = backoff(shortest, longest, growth=growth)


async def _wait_for_either(stop: asyncio.Event, news: asyncio.Event, seconds: float) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (stop, news)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:  # also when the caller was cancelled: no task must stay behind
            wait.cancel()


@contextlib.contextmanager
def _watching(
    store: Store, prefixes: Sequence[str], stop: asyncio.Event, news: Sequence[asyncio.Event]
) -> Iterator[None]:
    store = plain(store)
    if not isinstance(store, DirectoryStore) or not prefixes:
        yield
        return
    task = asyncio.create_task(_watch(store, prefixes, stop, news))
    try:
        yield
    finally:
        task.cancel()


async def _watch(
    store: DirectoryStore, prefixes: Sequence[str], stop: asyncio.Event, news: Sequence[asyncio.Event]
) -> None:
    """Set every one of `news` when files are created or changed below the prefixes."""
    from watchfiles import Change, awatch

    folders = [store.root / prefix for prefix in prefixes]
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        arrivals = awatch(
            *folders,
            watch_filter=lambda change, _: change != Change.deleted,
            stop_event=stop,
            step=2,  # milliseconds; the first of many files is enough
            debounce=50,
        )
        async for _ in arrivals:
            for event in news:
                event.set()
    except (OSError, RuntimeError) as error:  # such as too few inotify watches
        log.warning(
            "new files are found by listing only: the directory cannot be watched",
            extra={"directory": str(store.root), "reason": str(error)},
        )
