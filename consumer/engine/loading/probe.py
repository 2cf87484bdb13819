"""Finds out, when a model is loaded that no table knows, whether the calls of several images can be joined.

The arguments of its denoiser are compared for one image and for two: what doubles has rows. Then short requests are
drawn alone and together. Only where each picture is the same are calls joined; else images are drawn one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from greenlet import greenlet

from consumer.engine import device_errors, joining
from consumer.engine.call import Call
from consumer.engine.denoisers import UNKNOWN, Denoiser
from consumer.engine.device_call import DeviceCaller, Failure
from consumer.engine.loading import pipelines, spelling
from consumer.renderer.protocol import ImageTask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consumer.engine.loading.registry import LoadedModel
    from consumer.renderer.protocol import RawPicture

SECONDS = 30.0  # after which the probe is given up; one request that has begun is drawn to its end
_SIDE = 8  # of a picture, in the model's multiples
#: Prompts, steps and guidance. The first two have one length, so that their calls meet whatever else is needed.
_REQUESTS = (("a red fox", 2, 4.0), ("a big dog", 3, 2.0), ("a small green house on a far hill", 2, 1.0))
_TIMES = ("timestep", "timesteps", "t")
_PLAIN = (bool, int, float, str, type(None))


class _Unproven(Exception):
    """Why the calls of a model are not joined."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe has found."""

    layout: Denoiser
    text: str  # for the log


def probe(model: LoadedModel, known: Denoiser | None, ready: Callable[[Any], None]) -> Outcome:
    """Judge a model that draws from a prompt.

    Args:
        known: how its denoiser's calls are joined, where a table says so, although none knows its pipeline.
        ready: brings a module to the device.

    Raises:
        Exception: the device is lost.
    """
    try:
        with torch.inference_mode():
            layout = known or _layout_of(model, ready)
            _prove(model, layout, ready)
    except _Unproven as why:
        return Outcome(UNKNOWN, f"one image at a time: {why}")
    except Exception as error:  # of a class that nobody knows, anything may fail; requests will say what
        if device_errors.is_sticky(error):
            raise
        return Outcome(UNKNOWN, f"one image at a time: {device_errors.describe(error)}")
    return Outcome(layout, "proven: pictures drawn together are the same as alone")


def _layout_of(model: LoadedModel, ready: Callable[[Any], None]) -> Denoiser:
    """How the arguments of a denoiser are joined, from its first calls for one image and for two."""
    if "num_images_per_prompt" not in spelling.keywords(model.plain["text2img"].__class__):
        raise _Unproven("its pipeline draws one image a call")
    one, two = (_first_call(model, images, ready) for images in (1, 2))
    if one.keys() != two.keys():
        raise _Unproven("its arguments differ for two images")
    kinds = {name: _kind(name, one[name], two[name]) for name in one}
    latents = next((name for name, kind in kinds.items() if kind in ("rows", "list")), "")
    layout = Denoiser(
        latents=latents,
        time=next((name for name, kind in kinds.items() if kind == "time"), ""),
        shared=frozenset(name for name, kind in kinds.items() if kind == "shared"),
        lists=frozenset(name for name, kind in kinds.items() if kind == "list"),
    )
    if not latents or 2 * joining.count(layout, one) != joining.count(layout, two):
        raise _Unproven("nothing shows which of its arguments have a row for each image")
    return layout


def _kind(name: str, one: Any, two: Any) -> str:
    """What an argument is, by its values for one image and for two."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.shape == two.shape:
            return "time" if name in _TIMES and one.ndim == 0 else "shared"
        if one.shape[1:] == two.shape[1:] and two.shape[0] == 2 * one.shape[0]:
            return "rows"
    elif isinstance(one, list) and isinstance(two, list) and one and len(two) == 2 * len(one):
        return "list"
    elif isinstance(one, _PLAIN) and one == two:
        return "time" if name in _TIMES and not isinstance(one, bool) else "equal"
    elif isinstance(one, Mapping) and isinstance(two, Mapping) and one.keys() == two.keys():
        kinds = {_kind(f"{name}.{key}", one[key], two[key]) for key in one}
        if kinds <= {"rows", "equal"}:
            return "equal"
    raise _Unproven(f"its argument {name!r} has no row for each image")


def _first_call(model: LoadedModel, images: int, ready: Callable[[Any], None]) -> dict[str, Any]:
    """The arguments of the denoiser's first call for so many images of one prompt."""
    task = _tasks(model)[0]
    pipe = pipelines.prepare(model.templates["text2img"], task, model.scheduler_config)
    said = spelling.arguments(pipe, task) | {"num_images_per_prompt": images}
    running = greenlet(lambda: pipe(**said))
    try:
        paused = running.switch()
        while isinstance(paused, Call):
            if paused.kind == "unet":
                return paused.arguments
            ready(paused.module)
            paused = running.switch(getattr(paused.module, paused.method)(**paused.arguments))
    finally:
        _unwind(running)
    raise _Unproven("its pipeline does not call its denoiser")


def _prove(model: LoadedModel, layout: Denoiser, ready: Callable[[Any], None]) -> None:
    """Draw short requests alone and together. Raises `_Unproven` unless the pictures are the same."""
    deadline = time.monotonic() + SECONDS
    tasks = _tasks(model)
    alone = [_alone(model, task, deadline) for task in (*tasks, tasks[0])]
    *alone, again = alone
    if again.data != alone[0].data:
        raise _Unproven(
            "a request drawn again is another picture, so the model keeps something between calls"
        )
    for name in model.templates:
        getattr(model.templates[name], model.denoiser).join_by(layout)
    together, shared = _together(model, tasks, deadline, ready)
    if not shared:
        raise _Unproven("its calls for two requests of one size have nothing that could be joined")
    exact = next(model.modules[0].parameters()).dtype == torch.float32
    for one, other in zip(alone, together, strict=True):
        apart = _levels_apart(one, other)
        if apart.max() > (1 if exact else 8) or apart.mean() > 0.5:
            raise _Unproven(
                f"a picture drawn in company is {apart.max()} of 255 grey levels from that drawn alone"
            )
    if min(_levels_apart(alone[0], other).max() for other in alone[1:]) <= 16:
        raise _Unproven("its pictures do not tell requests apart, so nothing can be proven")


def _tasks(model: LoadedModel) -> list[ImageTask]:
    side = _SIDE * model.size_multiple
    return [
        ImageTask(
            request=f"probe-{seed}",
            index=0,
            task="text2img",
            model=model.card.name,
            prompt=prompt,
            negative_prompt=None,
            width=side,
            height=side,
            steps=steps,
            cfg_scale=cfg_scale,
            seed=seed,
            scheduler=model.card.scheduler or "DDIM",
        )
        for seed, (prompt, steps, cfg_scale) in enumerate(_REQUESTS)
    ]


def _alone(model: LoadedModel, task: ImageTask, deadline: float) -> RawPicture:
    """One request, drawn by the pipeline itself."""
    if time.monotonic() > deadline:
        raise _Unproven(f"the probe took more than {SECONDS:g} s")
    return pipelines.draw(pipelines.prepare(model.plain["text2img"], task, model.scheduler_config), task)


def _together(
    model: LoadedModel, tasks: Sequence[ImageTask], deadline: float, ready: Callable[[Any], None]
) -> tuple[list[RawPicture], bool]:
    """All requests at once, and whether any call of the denoiser served several."""
    caller = DeviceCaller(4 * len(tasks), exact=False, clock=time.monotonic)
    running = [greenlet(pipelines.draw) for _ in tasks]
    shared = False
    try:
        state: list[Any] = []
        for one, task in zip(running, tasks, strict=True):
            pipe = pipelines.prepare(model.templates["text2img"], task, model.scheduler_config)
            state.append(one.switch(pipe, task))
        while paused := [place for place, call in enumerate(state) if isinstance(call, Call)]:
            if time.monotonic() > deadline:
                raise _Unproven(f"the probe took more than {SECONDS:g} s")
            first = min(paused, key=lambda place: state[place].kind == "unet")  # short calls first
            key = joining.key(state[first], exact=False)
            group = [place for place in paused if joining.key(state[place], exact=False) == key]
            shared |= state[first].kind == "unet" and len(group) > 1
            places = {id(state[place]): place for place in group}
            module = state[first].module
            calls = [state[place] for place in group]
            for call, answer in caller.run(calls, key, lambda module=module: ready(module)):  # type: ignore[misc]
                if isinstance(answer, Failure):
                    raise _Unproven(f"a call failed ({answer.message})")
                place = places[id(call)]
                state[place] = running[place].switch(answer)
        if caller.counters.splits:
            raise _Unproven("a call for several requests failed")
    finally:
        for one in running:
            _unwind(one)
    return state, shared


def _unwind(running: Any) -> None:
    if running and not running.dead:
        running.throw()


def _levels_apart(one: RawPicture, other: RawPicture) -> Any:
    first, second = (np.frombuffer(picture.data, np.uint8).astype(int) for picture in (one, other))
    return abs(first - second)
