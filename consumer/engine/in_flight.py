"""An image in flight: a pipeline that runs in a greenlet, and the call that it is paused in. No torch here.

`fitting` says which images fit into one call, and `shares` how they share its time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumer.engine.passes import Pass, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from consumer.engine.call import Call
    from consumer.engine.loading.registry import LoadedModel
    from consumer.renderer.protocol import ImageTask, Lora


#: The most that a call of several sizes costs, for each part that its rows need: all are padded to the largest.
_PADDED = 1.1
#: Parts of a device call's time by batch key. The last one is that whose turn it was.
Shares = list[tuple["Hashable", float]]


@dataclass(eq=False)
class InFlight:
    """One image that has begun and has not ended, in one of its passes."""

    task: ImageTask  # of the pass
    batch_key: Hashable  # images with equal keys can share UNet calls
    loras: tuple[Lora, ...]  # that change its picture
    model: LoadedModel
    greenlet: Any  # runs the pipeline
    pipe: Any = None
    paused_in: Call | None = None
    last_step: Call | None = None  # the call of its denoiser before the next one
    warnings: list[tuple[str, str]] = field(default_factory=list)  # (code, message)
    began: float | None = None  # by the engine's clock, at its first device call
    unet_calls: int = 0
    rows: int = 0  # of its denoiser's first call; 0: not seen yet
    generator: Any = None  # of the image's noise, in all of its passes
    later: list[Pass] = field(default_factory=list)  # passes that have not begun
    record: dict[str, str] = field(default_factory=dict)  # of the model of its first pass
    refiner: dict[str, str] = field(default_factory=dict)  # of the model that went on; {}: none did
    steps_before: int = 0  # of the passes that are over

    @property
    def passes(self) -> list[ImageTask]:
        """The tasks of the pass that runs, and of those after it."""
        return [self.task, *(one.task for one in self.later)]

    def go_on(self) -> None:
        """Begin the next pass."""
        self.steps_before += self._steps()[1]
        begun = self.later.pop(0)
        self.task, self.batch_key, self.loras = begun.task, begun.batch_key, begun.loras
        self.model, self.pipe = begun.model, begun.pipe
        self.rows, self.last_step = 0, None
        if begun.task.since is not None:
            self.refiner = begun.model.record

    @property
    def call(self) -> Call:
        """The call that it is paused in."""
        if self.paused_in is None:
            raise RuntimeError(f"image {self.name} is not paused in a call")
        return self.paused_in

    @property
    def state(self) -> tuple[Hashable, ...]:
        """What the module of its call is switched to: only calls of one state can run as one."""
        kind = self.call.kind
        if kind == "unet":
            return (self.loras, self.task.ip_adapter)
        return (self.loras,) if kind == "text" else ()  # the others have no LoRAs

    @property
    def name(self) -> tuple[str, int]:
        return (self.task.request, self.task.index)

    def steps(self) -> tuple[int, int]:
        """Steps of its samplers done, and in all. A step may take two calls of the denoiser."""
        done, total = self._steps()
        later = sum(steps_of(one.task) for one in self.later)
        return self.steps_before + done, self.steps_before + total + later

    def _steps(self) -> tuple[int, int]:
        """The same of this pass."""
        total = getattr(self.pipe, "_num_timesteps", 0) or steps_of(self.task)
        done: int = getattr(self.pipe.scheduler, "steps_done", self.unet_calls)
        return min(done, total), total


def fitting(mates: Sequence[InFlight], most: Callable[[Call], int]) -> list[InFlight]:
    """The first of images and those that fit beside it.

    Args:
        most: the rows that a call may have if all are of this one's size. Of several sizes, the least counts.
    """
    group: list[InFlight] = []
    rows, needed, largest, room = 0, 0, 0, 0
    known: dict[Hashable, int] = {}
    for image in mates:
        call = image.call
        if call.limits not in known:
            known[call.limits] = most(call)
        with_it, size = rows + call.rows, max(largest, call.size)
        least = min(room, known[call.limits]) if group else known[call.limits]
        more = needed + call.rows * call.size
        if with_it <= least and with_it * size <= _PADDED * more:
            group.append(image)
            rows, needed, largest, room = with_it, more, size, least
    return group


def shares(group: Sequence[InFlight]) -> Shares:
    """How the images of one call share its time: by rows, among the batch keys of the lane whose turn it is.

    Args:
        group: not empty; those of the batch key whose turn it is go first.
    """
    rows: Counter[Hashable] = Counter()
    for image in group:
        if image.task.express == group[0].task.express:
            rows[image.batch_key] += image.call.rows
    total = rows.total()
    return [(batch, rows[batch] / total) for batch in reversed(rows)]
