"""Decides which job's images go to which renderer, how far ahead, and what a lost renderer costs.

When a renderer dies, nobody knows which of the requests in it was the cause. So each of them
becomes a *suspect* and is drawn alone; a suspect whose renderer dies again is known to be the cause.
The other requests wait for a moment, and lose nothing.

Images are handed out one by one, and fewer while pictures wait for a slow store: images that are
being drawn and images that are not yet stored share one *allowance*, in number and in bytes, so their
memory is bounded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer.jobs.job import Job
    from consumer.renderer.process import Renderer


@dataclass(eq=False)
class DeviceSlot:
    """One renderer and the jobs that it draws."""

    renderer: Renderer
    jobs: dict[str, Job] = field(default_factory=dict)  # by id

    @property
    def has_suspect(self) -> bool:
        return any(job.suspect for job in self.jobs.values())

    @property
    def missing(self) -> int:
        """Images that are to be drawn here."""
        return sum(len(job.missing()) for job in self.jobs.values())


class Dispatch:
    """Feeds the renderers of one worker."""

    def __init__(self, renderers: Sequence[Renderer], ahead: int, memory: int) -> None:
        """
        Args:
            ahead: images that a renderer may hold; enough for two device calls, so that it never
                waits. As many again may wait for the store.
            memory: bytes of pixels for all images that are being drawn or wait for the store. One that is
                larger is drawn alone.
        """
        self.slots = [DeviceSlot(renderer) for renderer in renderers]
        self.unstored = 0  # pictures that are drawn and not yet in the store
        self.unstored_bytes = 0
        self._ahead = ahead
        self._memory = memory
        self._waiting: deque[Job] = deque()

    @property
    def room(self) -> int:
        """How many more images this worker should take on; negative when it has too many.

        None while every renderer is kept for suspects: what was claimed then would wait here, beside idle workers.
        """
        if any(job.suspect for job in self._waiting) or not self._free():
            return 0
        ready = sum(slot.renderer.ready is not None for slot in self.slots)
        undrawn = sum(slot.missing for slot in self.slots) + sum(len(job.missing()) for job in self._waiting)
        return min(ready * self._ahead, 2 * ready * self._ahead - self.unstored) - undrawn

    @property
    def waiting(self) -> list[Job]:
        """The jobs that no renderer was given yet."""
        return list(self._waiting)

    def drawn(self, size: int) -> None:
        """Count a picture of so many bytes that is in memory from now on."""
        self.unstored += 1
        self.unstored_bytes += size

    def stored(self, size: int) -> None:
        """Count a picture that is stored, or given up: there may be room for another."""
        self.unstored -= 1
        self.unstored_bytes -= size
        self.feed()

    def add(self, job: Job) -> None:
        self._waiting.append(job)
        self.feed()

    def feed(self) -> None:
        """Hand out as many images as the renderers may have now."""
        for slot in self.slots:
            self._continue(slot)
        for slot in self.slots:
            if slot.renderer.ready is None or slot.has_suspect:
                continue
            suspects = [job for job in self._waiting if job.suspect]
            if suspects:
                if not slot.jobs:
                    self._begin(slot, suspects[0])
                continue  # this renderer finishes what it has, and then draws the suspect
            while self._waiting and self._may_have(slot):
                self._begin(min(self._free(), key=lambda other: other.renderer.pending), self._waiting[0])

    def _free(self) -> list[DeviceSlot]:
        return [slot for slot in self.slots if slot.renderer.ready is not None and not slot.has_suspect]

    def _may_have(self, slot: DeviceSlot) -> bool:
        """Whether a renderer may be given another image, by its own bound and by the allowance of all."""
        drawing = sum(other.renderer.pending for other in self.slots)
        allowance = 2 * self._ahead * len(self.slots)
        taken = self.unstored_bytes + sum(other.renderer.pending_bytes for other in self.slots)
        within = drawing + self.unstored < allowance and taken < self._memory
        return slot.renderer.pending < self._ahead and within

    def _begin(self, slot: DeviceSlot, job: Job) -> None:
        self._waiting.remove(job)
        slot.jobs[job.id] = job
        self._continue(slot)

    def _continue(self, slot: DeviceSlot) -> None:
        """Hand over more images of the slot's jobs, in the order in which the jobs came."""
        if slot.renderer.ready is None:
            return
        for job in slot.jobs.values():
            for index in job.not_handed():
                if not self._may_have(slot):
                    return
                job.handed.add(index)
                slot.renderer.submit(job.task(index))

    def drop(self, job: Job) -> None:
        """Draw no more of a job that is drawn, has ended or is given back."""
        job.let_go()
        if job in self._waiting:
            self._waiting.remove(job)
        for slot in self.slots:
            if slot.jobs.get(job.id) is job:
                del slot.jobs[job.id]
                slot.renderer.cancel(job.id)
        self.feed()

    def lost(self, renderer: Renderer) -> list[Job]:
        """Take the unfinished jobs away from a renderer that died."""
        for slot in self.slots:
            if slot.renderer is renderer:
                jobs = [job for job in slot.jobs.values() if job.missing()]
                slot.jobs.clear()
                for job in jobs:
                    job.handed.clear()
                return jobs
        return []
