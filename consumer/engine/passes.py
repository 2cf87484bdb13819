"""The passes of an image: the pipeline calls that draw it, one after the other, each as a task of its own.

Most images have one. A refiner draws the end of what the first model began, and goes on from its latents. An
upscale enlarges the picture and redraws it. Each pass shares calls with all images of its own model and size. No torch
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Hashable

    from consumer.engine.loading.registry import LoadedModel
    from consumer.renderer.protocol import ImageTask, Lora


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of an image in flight."""

    task: ImageTask
    batch_key: Hashable
    loras: tuple[Lora, ...]  # that change its picture
    model: LoadedModel
    pipe: Any


def passes_of(task: ImageTask) -> tuple[ImageTask, ...]:
    """The tasks of an image, in order. A later one begins from what the one before it made."""
    upscale, refiner = task.upscale, task.refiner
    if upscale is None and refiner is None:
        return (task,)
    first = replace(task, upscale=None, refiner=None)
    again = replace(first, task="img2img", image=None, mask=None, strength=None)
    passes = [first]
    if refiner is not None:
        # What guides the first model was made for its layers.
        alone = replace(again, loras=(), controls=(), ip_adapter=None, pictures={})
        second = replace(alone, model=refiner.model, folder=refiner.folder, since=refiner.at)
        passes = [replace(first, until=refiner.at), second]
    if upscale is not None:
        size = {"width": upscale.width, "height": upscale.height}
        passes.append(replace(again, **size, steps=upscale.steps, strength=upscale.strength))
    return tuple(passes)


def models_of(task: ImageTask) -> tuple[str, ...]:
    """The names of the models that an image needs."""
    return tuple(dict.fromkeys(one.model for one in passes_of(task)))


def steps_of(task: ImageTask) -> int:
    """The steps that a pass will do, as far as its task tells."""
    begins, ends = task.since or 0.0, task.until or 1.0
    if task.task != "text2img" and task.since is None:
        begins = 1 - (task.strength or 1.0)
    return max(1, round(task.steps * ends) - round(task.steps * begins))
