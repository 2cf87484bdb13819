"""An image in flight: a pipeline that runs in a greenlet, and the call that it is paused in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from consumer.engine.pipelines import Note
    from consumer.engine.registry import LoadedModel
    from consumer.engine.stand_in import Call
    from consumer.renderer.protocol import ImageTask


@dataclass(eq=False)
class Image:
    """An image in flight."""

    task: ImageTask
    batch_key: Hashable  # with whom it can share UNet calls
    model: LoadedModel
    thread: Any  # the greenlet that runs the pipeline
    pipe: Any = None
    waits: Call | None = None  # the call that it is paused in
    notes: list[Note] = field(default_factory=list)
    began: float | None = None  # by the engine's clock, at its first device call
    calls: int = 0  # device calls it took part in
    unet_calls: int = 0
    seen: Any = None  # sample, timestep and answer of its last UNet call, while a preview may be made of them

    @property
    def call(self) -> Call:
        """The call that it is paused in."""
        if self.waits is None:
            raise RuntimeError(f"image {self.name} is not paused in a call")
        return self.waits

    @property
    def name(self) -> tuple[str, int]:
        return (self.task.request, self.task.index)

    def steps(self) -> tuple[int, int]:
        """UNet calls done, and in all."""
        total = getattr(self.pipe, "_num_timesteps", 0) or self.task.steps
        return min(self.unet_calls, total), total
