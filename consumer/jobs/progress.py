"""How far requests are, for people: an object each in `status/`. The protocol never reads one.

Somebody waits for the requests of the express lane: they are told of from their first step on,
and several times a second. Telling never holds up the work: each is a task of its own, one at a
time for a request, and what the store does not take stays untold.
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
_OFTEN = {
    "directory": 0.2,
    "s3": 1.0,
}  # seconds between two of an express request; steps are heard each 0.25 s
_SPACE = 0.02  # seconds for each request in hand, so that many together do not burden the store
_PREVIEW = 96  # pixels, longest side
_BYTES = 6_000  # of a preview as text


class StatusBoard:
    """One worker's part of it. For one event loop."""

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
        self._often = _OFTEN["s3" if store.is_remote else "directory"]

    def stepped(self, job: Job) -> None:
        """An express request took a step: tell of it, unless that was done just now."""
        pause = max(self._often, _SPACE * len(self._jobs))
        if job.telling or self._clock() - job.told_at < pause:
            return
        task = asyncio.get_running_loop().create_task(self.tell(job))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def tell(self, job: Job) -> None:
        """Say how far a job is, if it takes long enough for somebody to ask."""
        now = self._clock()
        if job.telling or self._jobs.get(job.id) is not job:
            return
        if not job.steps()[0] if job.express else now - job.began <= _AFTER:
            return
        job.telling, job.held.has_status, job.told_at = True, True, now
        body = job.status(self._worker, now, _as_text(job.looks())).model_dump_json().encode()
        try:
            with contextlib.suppress(StoreUnavailable):
                await self._store.put(layout.status_key(job.id), body)
        finally:
            job.telling = False
        if job.id not in self._jobs:  # it may have ended while its status was on the way
            await self.wipe(job)

    async def wipe(self, job: Job) -> None:
        """It is over, or in nobody's hands: its result says all, or its next worker will."""
        if job.held.has_status:
            with contextlib.suppress(StoreUnavailable):
                await self._store.delete(layout.status_key(job.id))


@lru_cache(maxsize=64)
def _as_text(picture: RawPicture | None) -> str:
    """A preview as a data URI; one of few pixels is drawn larger, and softly."""
    if picture is None:
        return ""
    try:
        scale = _PREVIEW / max(picture.width, picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        image = Image.frombytes("RGB", (picture.width, picture.height), picture.data)
        image = image.resize(size, Image.Resampling.BICUBIC)
    except ValueError:  # whatever a child may send: a preview is not worth an error
        return ""
    for quality in (80, 60, 40, 20):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        text = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        if len(text) <= _BYTES:
            return text
    return ""
