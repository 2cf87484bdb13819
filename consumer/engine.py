"""Continuous batching: many images, one model call at a time, and they meet inside it.

Each image is an ordinary call of an ordinary diffusers pipeline, running in a greenlet. When
it needs its UNet (or VAE, or text encoder) it pauses, and leaves a `Call`. A `step` of the engine
takes the calls that fit together, stacks their rows, runs the real module once and resumes
each image with its rows. So a short image leaves while a long one goes on, and a new one joins
at the next step; nothing ever waits for company.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import greenlet

from consumer import faults, pipelines
from consumer.device_call import Counters, DeviceCaller, Failure, decode_in_float32, is_finite
from consumer.model_registry import Loaded, ModelRegistry
from consumer.stand_in import Call, words_of
from consumer.tasks import Drawn, Event, ImageTask, Stepped, Undrawable
from schemas.errors import Rejected, Unavailable

_ORDER = ("text", "encode", "decode", "unet")  # short calls first: they let images in and out


@dataclass(eq=False)
class Image:
    """An image in flight."""

    task: ImageTask
    model: Loaded
    thread: Any  # the greenlet that runs the pipeline
    pipe: Any = None
    waits: Call | None = None  # the call that it is paused in
    notes: list[pipelines.Note] = field(default_factory=list)
    began: float | None = None  # by the engine's clock, at its first device call
    calls: int = 0  # device calls it took part in
    unet_calls: int = 0

    @property
    def name(self) -> tuple[str, int]:
        return (self.task.request, self.task.index)

    def steps(self) -> tuple[int, int]:
        """UNet calls done, and in all."""
        total = getattr(self.pipe, "_num_timesteps", 0) or self.task.steps
        return min(self.unet_calls, total), total


class Engine:
    """Draws images on one device. Only one thread may use it."""

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        emit: Callable[[Event], None],
        max_rows: int = 16,
        exact: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        progress_every: float = 0.25,
        patience: int = 64,
    ) -> None:
        """
        Args:
            max_rows: of a UNet call; an image with guidance takes two.
            exact: pad calls to one fixed size, so that an image's bytes do not depend on its company.
            progress_every: seconds between two `Stepped` events, at least.
            patience: how many younger tasks may overtake one whose model is not loaded.
        """
        if max_rows < 2:
            raise ValueError(f"max_rows is {max_rows}; an image with guidance needs 2")
        self.registry = registry
        self.caller = DeviceCaller(max_rows, exact, clock)
        self._emit = emit
        self._clock = clock
        self._progress_every = progress_every
        self._patience = patience
        self._waiting: dict[Hashable, deque[tuple[int, ImageTask]]] = {}  # by what can share a UNet call
        self._images: list[Image] = []
        self._tickets = 0
        self._overtaken = 0
        self._told = float("-inf")

    @property
    def counters(self) -> Counters:
        return self.caller.counters

    @property
    def busy(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self._images or self._waiting)

    def submit(self, task: ImageTask) -> None:
        """Take a task; it joins at the next step."""
        self._waiting.setdefault(_company(task), deque()).append((self._ticket(), task))

    def cancel(self, request: str) -> None:
        """Forget every task of a request, drawn half or not begun; nothing more is said about them."""
        for group in list(self._waiting):
            kept = deque(entry for entry in self._waiting[group] if entry[1].request != request)
            self._keep(group, kept)
        with torch.inference_mode():  # pipelines that unwind set the grad mode back to what they found
            for image in [image for image in self._images if image.task.request == request]:
                self._end(image)

    def step(self) -> bool:
        """Do one device call; False when there is nothing to do.

        Raises:
            StickyDeviceError: the device is lost; a new process must go on.
        """
        with torch.inference_mode():
            self._admit()
            group = self._choose()
            if not group:
                self.counters.idle_steps += 1
                return False
            self._run(group)
        self._tell()
        return True

    # Who is let in -------------------------------------------------------------------------

    def _admit(self) -> None:
        """Begin waiting tasks, oldest first, while their groups' UNet calls have room."""
        rows: dict[Hashable, int] = {}
        for image in self._images:
            group = _company(image.task)
            rows[group] = rows.get(group, 0) + pipelines.rows_of(image.task)
        while True:
            open_groups = [g for g in self._waiting if rows.get(g, 0) < self.caller.max_rows]
            group = self._next_group(open_groups)
            if group is None:
                return
            queue = self._waiting[group]
            _, task = queue.popleft()
            self._keep(group, queue)
            if self._begin(task):
                rows[group] = rows.get(group, 0) + pipelines.rows_of(task)

    def _next_group(self, groups: Sequence[Hashable]) -> Hashable | None:
        """The group with the oldest task, unless its model must wait for another's images to end."""
        in_use = {image.task.model for image in self._images}
        blocked = False
        for group in sorted(groups, key=lambda g: self._waiting[g][0][0]):
            task = self._waiting[group][0][1]
            if self._fits(task.model, in_use):
                if blocked:
                    if self._overtaken >= self._patience:
                        return None  # the blocked model's turn: let the device run empty for it
                    self._overtaken += 1
                else:
                    self._overtaken = 0
                return group
            blocked = True
        return None

    def _fits(self, model: str, in_use: set[str]) -> bool:
        try:
            return self.registry.fits(model, in_use)
        except (Rejected, Unavailable):
            return True  # `_begin` will say what is wrong

    def _begin(self, task: ImageTask) -> bool:
        """Start an image's pipeline and run it to its first device call."""
        in_use = {image.task.model for image in self._images}
        try:
            model = self.registry.get(task.model, in_use=in_use)
            model.adapters.ensure(task.loras)
            template = model.template(task.task)
            pipe = pipelines.prepare(template, task, model.scheduler_config)
            notes = pipelines.notes(task, model.tokenizers)
        except Rejected as error:
            self._emit(Undrawable(task.request, task.index, error.code, error.message, False, error.field))
            return False
        except Unavailable as error:
            self._emit(Undrawable(task.request, task.index, "model_unavailable", str(error), True, "model"))
            return False
        except Exception as error:
            self._refuse(task, error)
            return False
        image = Image(task, model, greenlet(pipelines.draw), pipe, notes=notes)
        self._images.append(image)
        self._resume(image, pipe, task)
        return image in self._images

    def _refuse(self, task: ImageTask, error: Exception) -> None:
        if faults.is_sticky(error):
            raise faults.StickyDeviceError(faults.describe(error)) from error
        code = "out_of_memory" if faults.is_out_of_memory(error) else "render_error"
        message = f"model {task.model!r} could not be made ready: {faults.describe(error)}"
        self._emit(Undrawable(task.request, task.index, code, message, True))

    # What runs together --------------------------------------------------------------------

    def _choose(self) -> list[Image]:
        """The images whose calls run now: one group, oldest first, as many rows as fit."""
        paused = [image for image in self._images if image.waits is not None]
        if not paused:
            return []
        for kind in _ORDER:
            of_kind = [image for image in paused if _call(image).kind == kind]
            if of_kind:
                break
        first = min(of_kind, key=lambda image: _call(image).ticket)
        key = self._key(first)
        mates = sorted((i for i in of_kind if self._key(i) == key), key=lambda image: _call(image).ticket)
        if kind == "text":
            return mates
        limit = max(self.caller.limit(kind, key), _call(first).rows)
        chosen, room = [], limit
        for image in mates:
            if _call(image).rows <= room:
                chosen.append(image)
                room -= _call(image).rows
        return chosen

    def _key(self, image: Image) -> Hashable:
        """What must agree for two images to share a call."""
        return (_call(image).key, image.task.loras, image.task.request if image.task.solo else None)

    def _run(self, group: list[Image]) -> None:
        first = group[0]
        key = self._key(first)
        now = self._clock()
        for image in group:
            image.calls += 1
            if image.began is None:
                image.began = now
        first.model.adapters.switch(first.task.loras)
        kind = _call(first).kind
        if kind == "text":
            self._encode_words(group, key)
            return
        owners = {id(image.waits): image for image in group}
        for call, answer in self.caller.run([_call(image) for image in group], key):
            image = owners[id(call)]
            if kind == "unet":
                image.unet_calls += 1
            if kind == "decode" and not isinstance(answer, Failure):
                answer = _finite(call, answer)
            self._give(image, answer)

    def _encode_words(self, group: list[Image], key: Hashable) -> None:
        """Encode each different text once, whoever asked for it, and remember it."""
        memory = self.registry.embeddings
        askers: dict[bytes, list[Image]] = {}
        for image in group:
            askers.setdefault(words_of(_call(image)), []).append(image)
        new = {w: _call(images[0]) for w, images in askers.items() if memory.get((key, w)) is None}
        words_by_call = {id(call): words for words, call in new.items()}
        answers: dict[bytes, Any] = {w: memory.get((key, w)) for w in askers if w not in new}
        for call, answer in self.caller.run(list(new.values()), key) if new else ():
            words = words_by_call[id(call)]
            answers[words] = answer
            if not isinstance(answer, Failure):
                memory.put((key, words), answer)
        for words, images in askers.items():
            for image in images:
                self._give(image, answers[words])

    # How an image goes on ------------------------------------------------------------------

    def _give(self, image: Image, answer: Any | Failure) -> None:
        if isinstance(answer, Failure):
            self._fail(image, answer)
        else:
            image.waits = None
            self._resume(image, answer)

    def _resume(self, image: Image, *values: Any) -> None:
        """Let the pipeline run on, to its next device call or to its end."""
        failure = None
        try:
            outcome = image.thread.switch(*values)
        except Exception as error:
            if faults.is_sticky(error):
                raise faults.StickyDeviceError(faults.describe(error)) from error
            memory = faults.is_out_of_memory(error)
            failure = Failure(
                "out_of_memory" if memory else "render_error",
                f"the pipeline failed: {faults.describe(error)}",
                retry=memory,
            )
        if failure is not None:
            self._fail(image, failure)
            return
        if isinstance(outcome, Call):
            outcome.ticket = self._ticket()
            image.waits = outcome
            return
        self._images.remove(image)
        self._emit(
            Drawn(
                request=image.task.request,
                index=image.task.index,
                picture=outcome,
                warnings=tuple(image.notes),
                model=dict(image.model.record),
                seconds=self._clock() - (image.began if image.began is not None else self._clock()),
                calls=image.calls,
            )
        )

    def _fail(self, image: Image, failure: Failure) -> None:
        self._end(image)
        self._emit(Undrawable(image.task.request, image.task.index, failure.code, failure.message, failure.retry))

    def _end(self, image: Image) -> None:
        """Unwind the pipeline where it stands."""
        if image in self._images:
            self._images.remove(image)
        image.waits = None
        if not image.thread.dead:
            with contextlib.suppress(Exception):  # whatever a pipeline says on its way out, it is over
                image.thread.throw()

    def _tell(self) -> None:
        now = self._clock()
        if now - self._told >= self._progress_every:
            self._told = now
            self._emit(Stepped(self.counters.calls, {image.name: image.steps() for image in self._images}))

    def _keep(self, group: Hashable, queue: deque[tuple[int, ImageTask]]) -> None:
        if queue:
            self._waiting[group] = queue
        else:
            del self._waiting[group]

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets


def _company(task: ImageTask) -> Hashable:
    """Tasks with equal company can share UNet calls."""
    return (task.model, task.width, task.height, task.loras, task.request if task.solo else None)


def _call(image: Image) -> Call:
    if image.waits is None:
        raise RuntimeError("the image is not paused in a call")
    return image.waits


def _finite(call: Call, answer: Any) -> Any | Failure:
    """A decoded picture, or why there is none: never a black square without a word."""
    if is_finite(answer):
        return answer
    if not is_finite(call.arguments):
        return Failure("non_finite", "the model produced numbers that are not finite (NaN) while denoising", False)
    again = decode_in_float32(call)
    if again is None:
        return Failure("non_finite", "the decoder produced numbers that are not finite (NaN)", False)
    return again
