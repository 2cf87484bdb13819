"""Which job's images go to which renderer, and what a lost renderer means for whom.

A renderer that dies takes its company's work along, and nobody knows whose fault it was. So each
request that was in it becomes a *suspect* and is drawn alone; one that then dies again is known
to be the cause. Others wait for a moment, and lose nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer.job import Job
    from consumer.renderer import Renderer


@dataclass(eq=False)
class Lane:
    """One renderer and the jobs that it draws."""

    renderer: Renderer
    jobs: dict[str, Job] = field(default_factory=dict)  # by id

    @property
    def alone(self) -> bool:
        """Whether it draws a suspect."""
        return any(job.suspect for job in self.jobs.values())


class Dispatch:
    """Feeds the renderers of one worker."""

    def __init__(self, renderers: Sequence[Renderer], ahead: int) -> None:
        """
        Args:
            ahead: images that a renderer may hold; enough for two calls, so that it never waits.
        """
        self.lanes = [Lane(renderer) for renderer in renderers]
        self._ahead = ahead
        self._waiting: deque[Job] = deque()

    @property
    def room(self) -> int:
        """How many more images this worker should take on."""
        held = sum(lane.renderer.pending for lane in self.lanes)
        return self._ahead * len(self.lanes) - held - sum(len(job.missing()) for job in self._waiting)

    @property
    def waiting(self) -> list[Job]:
        """The jobs that no renderer has seen yet."""
        return list(self._waiting)

    def add(self, job: Job) -> None:
        self._waiting.append(job)
        self.feed()

    def feed(self) -> None:
        """Hand out what can be handed out now."""
        for lane in self.lanes:
            if lane.renderer.ready is None or lane.alone:
                continue
            suspects = [job for job in self._waiting if job.suspect]
            if suspects:
                if not lane.jobs:
                    self._hand(lane, suspects[0])
                continue  # let this renderer run empty for it
            while self._waiting and lane.renderer.pending < self._ahead:
                self._hand(min(self._free(), key=lambda other: other.renderer.pending), self._waiting[0])

    def _free(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.renderer.ready is not None and not lane.alone]

    def _hand(self, lane: Lane, job: Job) -> None:
        self._waiting.remove(job)
        lane.jobs[job.id] = job
        for task in job.tasks():
            lane.renderer.submit(task)

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
                return jobs
        return []
