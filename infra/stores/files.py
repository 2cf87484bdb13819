"""Copies files piece by piece, with their hash, in threads that can be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from typing import TYPE_CHECKING, TypeVar

from infra.stores.store import Progress, WrongContent
from schemas.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from pathlib import Path

T = TypeVar("T")

PIECE = 4 << 20  # bytes that are read and written at a time


class DiskTrouble(Unavailable):
    """A file on this machine cannot be read or written."""


class Stopped(Exception):
    """Whoever waited for a copy has gone."""


@contextlib.contextmanager
def local(path: Path) -> Iterator[None]:
    """Raise `DiskTrouble` for an error of a file on this machine: it is no error of the store."""
    try:
        yield
    except OSError as error:
        raise DiskTrouble(f"{path}: {error.strerror or error}") from error


def expect_content(found: str, wanted: str, path: Path) -> None:
    """Raise `WrongContent` unless a file's hash is the wanted one."""
    if found != wanted:
        raise WrongContent(
            f"{path} is not the file that was announced: its sha256 is {found}, not {wanted}; "
            "was it changed meanwhile?"
        )


def copy(source: int, target: int, done: Callable[[int], None]) -> str:
    """Copy from one file descriptor to another; returns the content's SHA-256. Blocks.

    Args:
        done: called after each piece with the number of bytes so far; what it raises ends the copy.
    """
    digest, size = hashlib.sha256(), 0
    while piece := os.read(source, PIECE):
        digest.update(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(target, rest) :]
        size += len(piece)
        done(size)
    return digest.hexdigest()


async def copying(
    work: Callable[[Callable[[int], None]], T], progress: Progress | None, executor: Executor | None = None
) -> T:
    """Run `work(done)` in a thread. When the caller is cancelled, `done` raises `Stopped` there.

    Args:
        progress: called in the event loop with what `done` is called with.
    """
    loop, stopped = asyncio.get_running_loop(), threading.Event()

    def done(size: int) -> None:
        if stopped.is_set():
            raise Stopped
        if progress is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(progress, size)

    future = loop.run_in_executor(executor, work, done)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stopped.set()
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise
