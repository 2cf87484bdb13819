"""Who draws a backlog: plain diffusers one at a time or batched, our engine, and our renderer child.

The plain ones draw, then encode their PNGs. The engine alone draws, in this process, so that its
loop is seen without any overlap to hide in. The child draws in its own process, as in a worker,
while this one encodes.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from consumer.engine.admission import rows_of
from consumer.engine.engine import Engine
from consumer.engine.loading import pipelines, spelling
from consumer.jobs import picture
from consumer.renderer.process import Renderer
from consumer.renderer.protocol import Drawn, ImageTask, RawPicture, RendererSettings, Undrawable
from schemas.manifest_parts import Output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer.engine.loading.registry import LoadedModel, ModelRegistry

MAX_ROWS = 16  # of a UNet call, for everybody: eight images with guidance
_AHEAD = 2 * MAX_ROWS  # images that a worker lets its renderer hold


@dataclass
class Run:
    """One contender's turn at a backlog."""

    pictures: list[RawPicture]
    seconds: float  # until the last picture's pixels
    seconds_with_png: float = 0.0  # until the last PNG
    unet_calls: int = 0
    slot_efficiency: float | None = None
    idle: float | None = None  # share of the time between first and last UNet call outside the models


def encode(image: RawPicture, task: ImageTask) -> bytes:
    """A PNG with its recipe, by the same code for everybody."""
    recipe = {"prompt": task.prompt, "steps": task.steps, "seed": task.seed, "model": task.model}
    return picture.encode(image, Output(), recipe)[0]


# Watching the device ------------------------------------------------------------------------


@dataclass
class Watch:
    """When the real models ran, whoever called them."""

    spans: list[tuple[float, float, bool]] = field(default_factory=list)  # begin, end, is it the UNet

    @property
    def unet_calls(self) -> int:
        return sum(unet for _, _, unet in self.spans)

    @property
    def idle(self) -> float | None:
        """Share of the time between the first and the last UNet call in which no model ran."""
        steps = [(begin, end) for begin, end, unet in self.spans if unet]
        if len(steps) < 2:
            return None
        first, last = steps[0][0], steps[-1][1]
        busy = sum(end - begin for begin, end, _ in self.spans if begin >= first and end <= last)
        return 1 - busy / (last - first)


def denoiser_of(pipe: Any) -> Any:
    """The module that a pipeline calls at every step."""
    return getattr(pipe, "unet", None) or pipe.transformer


@contextmanager
def watched(model: LoadedModel) -> Iterator[Watch]:
    """Note every call of the real modules. On a CPU a call has done its work when it returns."""
    watch, pipe = Watch(), next(iter(model.plain.values()))
    denoiser = denoiser_of(pipe)
    encoders = [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part]
    places = [(module, "forward") for module in (denoiser, *encoders)]
    places += [(pipe.vae, "encode"), (pipe.vae, "decode")]

    def timed(call: Callable[..., Any], unet: bool) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            answer = call(*args, **kwargs)
            watch.spans.append((begin, time.perf_counter(), unet))
            return answer

        return run

    for module, name in places:
        setattr(module, name, timed(getattr(module, name), module is denoiser))
    try:
        yield watch
    finally:
        for module, name in places:
            delattr(module, name)


# The plain ones -----------------------------------------------------------------------------


def one_at_a_time(registry: ModelRegistry, tasks: list[ImageTask]) -> Run:
    """Each image by its own call of the plain pipeline."""
    return _plain(registry, tasks, [[i] for i in range(len(tasks))])


def batched(registry: ModelRegistry, tasks: list[ImageTask]) -> Run:
    """Lists of prompts and generators, all that agree together, as full as ours may be.

    Where a backlog is homogeneous this is the most that a plain pipeline can do; where it is mixed
    it knows the whole backlog beforehand, which a server does not.
    """
    alike: dict[Any, list[int]] = {}
    for i, task in enumerate(tasks):
        key = (task.task, task.steps, task.cfg_scale, task.strength, task.width, task.height)
        alike.setdefault(key, []).append(i)
    groups = []
    for members in alike.values():
        first = tasks[members[0]]
        guided = spelling.guidance(registry.get(first.model).plain[first.task]) not in ("number", "none")
        size = MAX_ROWS // (rows_of(first) if guided else 1)
        groups += [members[start : start + size] for start in range(0, len(members), size)]
    return _plain(registry, tasks, groups)


def _plain(registry: ModelRegistry, tasks: list[ImageTask], groups: list[list[int]]) -> Run:
    model = registry.get(tasks[0].model)
    pictures: dict[int, RawPicture] = {}
    with watched(model) as watch, torch.inference_mode():
        began = time.perf_counter()
        for group in groups:
            pictures |= zip(group, draw_together(model, [tasks[i] for i in group]), strict=True)
        drawn = time.perf_counter()
    for i, task in enumerate(tasks):
        encode(pictures[i], task)
    ended = time.perf_counter()
    in_order = [pictures[i] for i in range(len(tasks))]
    return Run(in_order, drawn - began, ended - began, watch.unet_calls, idle=watch.idle)


def draw_together(model: LoadedModel, tasks: list[ImageTask]) -> list[RawPicture]:
    """One call of the plain pipeline for tasks that agree."""
    first = tasks[0]
    pipe = pipelines.prepare(model.plain[first.task], first, model.scheduler_config)
    if len(tasks) == 1:
        return [pipelines.draw(pipe, first)]
    each = [spelling.arguments(pipe, task) for task in tasks]
    given = dict(each[0])
    for name in ("prompt", "negative_prompt", "generator", "image", "mask_image"):
        if given.get(name) is not None:
            given[name] = [one.get(name) for one in each]
    drawn = [pipelines.to_bytes(image) for image in pipe(**given).images]
    if first.task == "inpainting":
        drawn = [_laid_over(pipe, one, pixels) for one, pixels in zip(each, drawn, strict=True)]
    return [RawPicture(p.shape[1], p.shape[0], 3, p.tobytes()) for p in drawn]


def _laid_over(pipe: Any, given: dict[str, Any], pixels: Any) -> Any:
    """The given picture's own pixels where the mask is black, as our inpainting promises."""
    return np.asarray(
        pipe.image_processor.apply_overlay(given["mask_image"], given["image"], Image.fromarray(pixels))
    )


# Ours ---------------------------------------------------------------------------------------


def engine(registry: ModelRegistry, tasks: list[ImageTask]) -> Run:
    """The engine's loop in this process, to pixels."""
    events: list[Any] = []
    registry.embeddings.forget()
    ours = Engine(registry, emit=events.append, max_rows=MAX_ROWS)
    with watched(registry.get(tasks[0].model)) as watch:
        began = time.perf_counter()
        for task in tasks:
            ours.submit(task)
        while ours.step():
            pass
        seconds = time.perf_counter() - began
    for event in events:
        if isinstance(event, Undrawable):
            raise RuntimeError(f"{event.request} was not drawn: {event.message}")
    drawn = {event.request: event.picture for event in events if isinstance(event, Drawn)}
    efficiency = ours.counters.slot_efficiency
    return Run([drawn[t.request] for t in tasks], seconds, 0.0, watch.unet_calls, efficiency, watch.idle)


class Child:
    """Our renderer child, fed as a worker feeds it; PNGs are encoded here while it draws."""

    def __init__(self, folders: dict[str, Path]) -> None:
        models = tuple((name, str(folder)) for name, folder in folders.items())
        settings = RendererSettings(models=models, max_rows=MAX_ROWS, preload=next(iter(folders)))
        self._runner = asyncio.Runner()
        self._heard: asyncio.Queue[Any] = asyncio.Queue()
        self._renderer = Renderer(settings, self._heard.put_nowait, self._heard.put_nowait)
        self._runner.run(self._renderer.start())

    def draw(self, tasks: list[ImageTask]) -> Run:
        """Draw a backlog."""
        return self._runner.run(self._draw(tasks))

    def close(self) -> None:
        self._runner.run(self._renderer.close())
        self._runner.close()

    async def _draw(self, tasks: list[ImageTask]) -> Run:
        waiting, by_name = deque(tasks), {task.request: task for task in tasks}
        drawn: dict[str, RawPicture] = {}
        encoding: list[Any] = []
        began = time.perf_counter()
        while len(drawn) < len(tasks):
            while waiting and self._renderer.pending < _AHEAD:
                self._renderer.submit(waiting.popleft())
            event = await self._heard.get()
            if isinstance(event, Drawn):
                drawn[event.request] = event.picture
                task = by_name[event.request]
                encoding.append(asyncio.create_task(asyncio.to_thread(encode, event.picture, task)))
            elif hasattr(event, "why") or isinstance(event, Undrawable):
                raise RuntimeError(f"the child failed: {event}")
        seconds = time.perf_counter() - began
        await asyncio.gather(*encoding)
        return Run([drawn[t.request] for t in tasks], seconds, time.perf_counter() - began)
