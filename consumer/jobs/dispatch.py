"""Which job's images go to which renderer, how far ahead, and what a lost renderer means for whom.

A renderer that dies takes its company's work along, and nobody knows whose fault it was. So each
request that was in it becomes a *suspect* and is drawn alone; one that then dies again is known
to be the cause. Others wait for a moment, and lose nothing.

Images are handed out one by one, and fewer while pictures wait for a slow store: what is being
drawn and what is not yet stored share one *allowance*, so the memory that they take is bounded.
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
    def alone(self) -> bool:
        """Whether it draws a suspect."""
        return any(job.suspect for job in self.jobs.values())

    @property
    def held_back(self) -> list[Job]:
        """Its jobs of which the renderer does not have every image yet."""
        return [job for job in self.jobs.values() if job.not_handed()]

    @property
    def missing(self) -> int:
        """Images that are to be drawn here."""
        return sum(len(job.missing()) for job in self.jobs.values())


class Dispatch:
    """Feeds the renderers of one worker."""

    def __init__(self, renderers: Sequence[Renderer], ahead: int) -> None:
        """
        Args:
            ahead: images that a renderer may hold; enough for two calls, so that it never waits. As
                many again may wait for the store.
        """
        self.lanes = [DeviceSlot(renderer) for renderer in renderers]
        self.unstored = 0  # pictures that are drawn and not yet in the store
        self._ahead = ahead
        self._waiting: deque[Job] = deque()

    @property
    def room(self) -> int:
        """How many more images this worker should take on; negative when it has too many."""
        ready = sum(lane.renderer.ready is not None for lane in self.lanes)
        undrawn = sum(lane.missing for lane in self.lanes) + sum(len(job.missing()) for job in self._waiting)
        return min(ready * self._ahead, 2 * ready * self._ahead - self.unstored) - undrawn

    @property
    def waiting(self) -> list[Job]:
        """The jobs that no renderer has seen yet."""
        return list(self._waiting)

    def drawn(self) -> None:
        """A picture is in memory from now on."""
        self.unstored += 1

    def stored(self) -> None:
        """A picture has left memory."""
        self.unstored -= 1
        self.feed()

    def add(self, job: Job) -> None:
        self._waiting.append(job)
        self.feed()

    def feed(self) -> None:
        """Hand out what can be handed out now."""
        for lane in self.lanes:
            self._continue(lane)
        for lane in self.lanes:
            if lane.renderer.ready is None or lane.alone:
                continue
            suspects = [job for job in self._waiting if job.suspect]
            if suspects:
                if not lane.jobs:
                    self._begin(lane, suspects[0])
                continue  # let this renderer run empty for it
            while self._waiting and self._may_have(lane):
                self._begin(min(self._free(), key=lambda other: other.renderer.pending), self._waiting[0])

    def _free(self) -> list[DeviceSlot]:
        return [lane for lane in self.lanes if lane.renderer.ready is not None and not lane.alone]

    def _may_have(self, lane: DeviceSlot) -> bool:
        """Whether a renderer may be given another image, by its own bound and by the allowance of all."""
        drawing = sum(other.renderer.pending for other in self.lanes)
        allowance = 2 * self._ahead * len(self.lanes)
        return lane.renderer.pending < self._ahead and drawing + self.unstored < allowance

    def _begin(self, lane: DeviceSlot, job: Job) -> None:
        self._waiting.remove(job)
        lane.jobs[job.id] = job
        self._continue(lane)

    def _continue(self, lane: DeviceSlot) -> None:
        """Hand over more images of the lane's jobs, in the order in which they came."""
        if lane.renderer.ready is None:
            return
        for job in lane.held_back:
            for index in job.not_handed():
                if not self._may_have(lane):
                    return
                job.handed.add(index)
                lane.renderer.submit(job.task(index))

    def drop(self, job: Job) -> None:
        """Draw no more of a job; it is over, or given back."""
        if job in self._waiting:
            self._waiting.remove(job)
        for lane in self.lanes:
            if lane.jobs.get(job.id) is job:
                del lane.jobs[job.id]
                lane.renderer.cancel(job.id)
        self.feed()

    def lost(self, renderer: Renderer) -> list[Job]:
        """A renderer died: its jobs, which are now suspects and in nobody's hands."""
        for lane in self.lanes:
            if lane.renderer is renderer:
                jobs = [job for job in lane.jobs.values() if job.missing()]
                lane.jobs.clear()
                for job in jobs:
                    job.handed.clear()
                return jobs
        return []
