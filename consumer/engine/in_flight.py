"""An image in flight: a pipeline that runs in a greenlet, and the call that it is paused in. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from consumer.engine.call import Call
    from consumer.engine.loading.registry import LoadedModel
    from consumer.renderer.protocol import ImageTask, Lora


@dataclass(eq=False)
class InFlight:
    """One image that has begun and has not ended."""

    task: ImageTask
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
    last_unet_call: Any = None  # sample, timestep and answer, while a preview may be made of them

    @property
    def call(self) -> Call:
        """The call that it is paused in."""
        if self.paused_in is None:
            raise RuntimeError(f"image {self.name} is not paused in a call")
        return self.paused_in

    @property
    def name(self) -> tuple[str, int]:
        return (self.task.request, self.task.index)

    def steps(self) -> tuple[int, int]:
        """Steps of its sampler done, and in all. A step may take two calls of the denoiser."""
        total = getattr(self.pipe, "_num_timesteps", 0) or self.task.steps
        done: int = getattr(self.pipe.scheduler, "steps_done", self.unet_calls)
        return min(done, total), total
