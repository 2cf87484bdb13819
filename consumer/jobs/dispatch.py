"""Decides which job's images go to which renderer, how far ahead, and what a lost renderer costs.

When a renderer dies, nobody knows which of the requests in it was the cause. So each of them
becomes a *suspect* and is drawn alone; a suspect whose renderer dies again is known to be the cause.
The other requests wait for a moment, and lose nothing.

Images are handed out one by one, and fewer while pictures wait for a slow store: images that are
being drawn and images that are not yet stored share one *allowance*, in number and in bytes, so their
memory is bounded.

Jobs of the express lane are handed out first. Each lane has a *reserve*, a quarter of what a renderer may
hold: it may have so many images there whatever the other lane has, so neither waits for the other.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from consumer.jobs.job import Job
    from consumer.renderer.process import Renderer


@dataclass(eq=False)
class DeviceSlot:
    """One renderer and the jobs that it draws."""

    renderer: Renderer
    jobs: dict[str, Job] = field(default_factory=dict)  # by id
    had_suspect: bool = False  # the last job that it began while others waited to be drawn alone was one

    @property
    def has_suspect(self) -> bool:
        return any(job.suspect for job in self.jobs.values())


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
        #: Pictures that are drawn and not yet in the store, by lane (True: express).
        self.unstored: Counter[bool] = Counter()
        self.unstored_bytes = 0
        self._ahead = ahead
        self._reserve = max(1, ahead // 4)
        self._memory = memory
        self._waiting: deque[Job] = deque()

    def room(self, express: bool, preparing: Mapping[bool, int]) -> int:
        """How many more images of a lane this worker should take on; negative when it has too many.

        None of the other lane while every renderer is kept for suspects: they would wait here, beside idle workers.
        Express images have their turn between two suspects.

        Args:
            preparing: images of each lane that are claimed and not handed to `add` yet.
        """
        if not express and (any(job.suspect for job in self._waiting) or not self._free()):
            return 0
        ready = sum(slot.renderer.ready is not None for slot in self.slots)
        undrawn = Counter(preparing)
        for job in [*self._waiting, *(job for slot in self.slots for job in slot.jobs.values())]:
            undrawn[job.express] += len(job.missing())
        ahead, reserve = ready * self._ahead, ready * self._reserve
        shared = min(ahead, 2 * ahead - self.unstored.total()) - undrawn.total()
        own = min(reserve, 2 * reserve - self.unstored[express]) - undrawn[express]
        return max(shared, own)

    @property
    def picture_bytes(self) -> int:
        """Bytes of the pixels of images that are being drawn or wait for the store."""
        return self.unstored_bytes + sum(slot.renderer.pending_bytes for slot in self.slots)

    @property
    def waiting(self) -> list[Job]:
        """The jobs that no renderer was given yet."""
        return list(self._waiting)

    def drawn(self, express: bool, size: int) -> None:
        """Count a picture of so many bytes that is in memory from now on."""
        self.unstored[express] += 1
        self.unstored_bytes += size

    def stored(self, express: bool, size: int) -> None:
        """Count a picture that is stored, or given up: there may be room for another."""
        self.unstored[express] -= 1
        self.unstored_bytes -= size
        self.feed()

    def add(self, job: Job) -> None:
        self._waiting.append(job)
        self.feed()

    def feed(self) -> None:
        """Hand out as many images as the renderers may have now, those of the express lane first."""
        for express in (True, False):
            for slot in self.slots:
                self._continue(slot, express)
            for slot in self._free():
                self._fill(slot, express)

    def _fill(self, slot: DeviceSlot, express: bool) -> None:
        """Begin jobs of one lane, as many as a renderer may have."""
        suspects = sorted((job for job in self._waiting if job.suspect), key=lambda job: not job.express)
        if suspects and slot.jobs:
            return  # this renderer finishes what it has, and then draws the suspect
        if suspects and not (slot.had_suspect and self._next(express=True)):
            slot.had_suspect = True
            self._begin(slot, suspects[0])
            return
        slot.had_suspect = False  # between two suspects, the express jobs that wait have their turn
        while (job := self._next(express)) is not None and self._may_have(slot, express):
            free = [slot] if suspects else self._free()
            self._begin(min(free, key=lambda other: other.renderer.pending), job)

    def _next(self, express: bool) -> Job | None:
        """The oldest waiting job of a lane that is not a suspect."""
        return next((job for job in self._waiting if job.express == express and not job.suspect), None)

    def _free(self) -> list[DeviceSlot]:
        return [slot for slot in self.slots if slot.renderer.ready is not None and not slot.has_suspect]

    def _may_have(self, slot: DeviceSlot, express: bool) -> bool:
        """Whether a renderer may be given another image, by its own bound and by the allowance of all."""
        renderers = [other.renderer for other in self.slots]
        held = sum(one.pending for one in renderers) + self.unstored.total()
        taken = self.picture_bytes
        shared = slot.renderer.pending < self._ahead and held < 2 * self._ahead * len(renderers)
        if shared and taken < self._memory:
            return True
        own = sum(one.pending_of(express) for one in renderers) + self.unstored[express]
        within = slot.renderer.pending_of(express) < self._reserve and own < 2 * self._reserve * len(
            renderers
        )
        return within and taken < self._memory + self._memory // 4

    def _begin(self, slot: DeviceSlot, job: Job) -> None:
        self._waiting.remove(job)
        slot.jobs[job.id] = job
        self._continue(slot, job.express)

    def _continue(self, slot: DeviceSlot, express: bool) -> None:
        """Hand over more images of the slot's jobs of one lane, in the order in which the jobs came."""
        if slot.renderer.ready is None:
            return
        for job in slot.jobs.values():
            for index in job.not_handed() if job.express == express else ():
                if not self._may_have(slot, express):
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
