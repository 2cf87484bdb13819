"""Writes how far requests are, for people: one object each in `status/`. The protocol never reads one.

The author of an express request waits for it, so its status is written from its first step on,
several times a second. Writing never holds up the work: each write is a task of its own, one at a
time for a request, and a write that fails is not repeated.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image

from schemas import layout
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from consumer.jobs.job import Job
    from consumer.renderer.protocol import RawPicture
    from infra.stores.store import Store

_AFTER = 1.0  # seconds of work before a request gets a status object
#: Seconds between two writes for an express request; renderers report steps every 0.25 s.
_INTERVAL = {"local": 0.2, "remote": 1.0}
_SPACING = 0.02  # seconds more for each request in hand, so that many do not burden the store
_PREVIEW = 96  # pixels, longest side
_BYTES = 6_000  # of a preview as text


class ProgressReporter:
    """Writes and removes the status objects of one worker's jobs. For one event loop."""

    def __init__(self, store: Store, worker: str, clock: Callable[[], float], jobs: dict[str, Job]) -> None:
        """
        Args:
            jobs: in hand, by id; a request that is not among them keeps no status.
        """
        self.tasks: set[asyncio.Task[None]] = set()
        self._store = store
        self._worker = worker
        self._clock = clock
        self._jobs = jobs
        self._interval = _INTERVAL["remote" if store.is_remote else "local"]

    def stepped(self, job: Job) -> None:
        """Report an express request's step in a task of its own, unless a report was just written."""
        pause = max(self._interval, _SPACING * len(self._jobs))
        if job.status_in_flight or self._clock() - job.status_at < pause:
            return
        task = asyncio.get_running_loop().create_task(self.report(job))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def report(self, job: Job) -> None:
        """Write a job's status, if the job takes long enough for anybody to look."""
        now = self._clock()
        if job.status_in_flight or self._jobs.get(job.id) is not job:
            return
        if not job.steps()[0] if job.express else now - job.began <= _AFTER:
            return
        job.status_in_flight, job.held.has_status, job.status_at = True, True, now
        body = job.status(self._worker, now, _as_text(job.latest_preview())).model_dump_json().encode()
        try:
            with contextlib.suppress(StoreUnavailable):
                await self._store.put(layout.status_key(job.id), body)
        finally:
            job.status_in_flight = False
        if job.id not in self._jobs:  # it ended while its status was being written
            await self.remove(job)

    async def remove(self, job: Job) -> None:
        """Remove the status of a job that has left: its result, or its next worker, says more."""
        if job.held.has_status:
            with contextlib.suppress(StoreUnavailable):
                await self._store.delete(layout.status_key(job.id))


@lru_cache(maxsize=64)
def _as_text(picture: RawPicture | None) -> str:
    """A preview as a data URI; a small one is enlarged smoothly."""
    if picture is None:
        return ""
    try:
        scale = _PREVIEW / max(picture.width, picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        image = Image.frombytes("RGB", (picture.width, picture.height), picture.data)
        image = image.resize(size, Image.Resampling.BICUBIC)
    except ValueError:  # a child may send anything, and a preview is not worth an error
        return ""
    for quality in (80, 60, 40, 20):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        text = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        if len(text) <= _BYTES:
            return text
    return ""
