"""Continuous batching: many images, one model call at a time, and they meet inside it.

Each image is an ordinary call of an ordinary diffusers pipeline, running in a greenlet. When
it needs its UNet (or VAE, or text encoder) it pauses, and leaves a `Call`. A `step` of the engine
takes the calls that fit together, stacks their rows, runs the real module once and resumes
each image with its rows. So a short image leaves while a long one goes on, and a new one joins
at the next step; nothing ever waits for batch_key.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from greenlet import greenlet

from consumer.engine import device_errors, pipelines, text_encoder
from consumer.engine.admission import AdmissionQueue, batch_key, rows_of
from consumer.engine.batch_size import Pace
from consumer.engine.device_call import Counters, DeviceCaller, Failure, finite_picture
from consumer.engine.in_flight import Image
from consumer.engine.preview import Previews
from consumer.engine.registry import ModelRegistry
from consumer.engine.sampler import Samplers
from consumer.engine.stand_in import Call
from consumer.renderer.protocol import Complaint, Drawn, Event, ImageTask, Stepped, Undrawable
from schemas.errors import Rejected, Unavailable

_ORDER = ("text", "encode", "decode", "unet")  # short calls first: they let images in and out

_COMPANIES = 4  # sizes, models or LoRA sets that may be drawn side by side, each with full calls


class Engine:
    """Draws images on one device. Only one thread may use it."""

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        emit: Callable[[Event | Complaint], None],
        max_rows: int = 16,
        exact: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        progress_every: float = 0.25,
        patience: int = 64,
        measure: bool | None = None,
    ) -> None:
        """
        Args:
            max_rows: of a UNet call; an image with guidance takes two.
            exact: pad calls to one fixed size, so that an image's bytes do not depend on its batch_key
                (as long as max_rows fit the device: should memory run out, the size is lowered).
            progress_every: seconds between two `Stepped` events, at least.
            patience: how many younger tasks may overtake one whose model is not loaded.
            measure: find out how many rows pay, up to max_rows; None: on GPUs, outside exact mode.
        """
        if max_rows < 2:
            raise ValueError(f"max_rows is {max_rows}; an image with guidance needs 2")
        self.registry = registry
        if measure is None:
            measure = registry.device.startswith("cuda") and not exact
        self.caller = DeviceCaller(max_rows, exact, clock, Pace(max_rows) if measure else None)
        self._room: dict[Hashable, int] = {}  # UNet rows that pay and fit, by batch_key, as last seen
        self._emit = emit
        self._clock = clock
        self._progress_every = progress_every
        self._line = AdmissionQueue(patience, most=_COMPANIES * max_rows)
        self._images: list[Image] = []
        self._samplers = Samplers()
        self._tickets = 0
        self._told = float("-inf")
        self._previews = Previews(clock, registry.offloading.make_way, emit)

    @property
    def counters(self) -> Counters:
        return self.caller.counters

    @property
    def busy(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self._images or self._line)

    def submit(self, task: ImageTask) -> None:
        """Take a task; it joins at the next step."""
        self._line.add(task)

    def cancel(self, request: str) -> None:
        """Forget every task of a request, drawn half or not begun; nothing more is said about them."""
        self._line.drop(request)
        self._unwind([image for image in self._images if image.task.request == request])

    def close(self) -> None:
        """Forget every image in flight."""
        self._unwind(list(self._images))

    def step(self) -> bool:
        """Do one device call; False when there is nothing to do.

        Raises:
            StickyDeviceError: the device is lost; a new process must go on.
        """
        try:
            with torch.inference_mode():
                self._admit()
                group = self._choose()
                if not group:
                    self.caller.idle()
                    return False
                self._run(group)
                self._tell()
        except Exception as error:
            if not (isinstance(error, device_errors.StickyDeviceError) or device_errors.is_sticky(error)):
                raise
            self.close()
            raise device_errors.StickyDeviceError(device_errors.describe(error)) from error
        return True

    # Who is let in -------------------------------------------------------------------------

    def _admit(self) -> None:
        """Begin waiting tasks while their companies' UNet calls have room."""
        if not self._line:
            return
        rows: dict[Hashable, int] = {}
        for image in self._images:
            rows[image.batch_key] = rows.get(image.batch_key, 0) + rows_of(image.task)
        at_hand = partial(self._fits, evict=False)
        loadable = partial(self._fits, evict=True)
        while (task := self._line.next(rows, self._rows_for, at_hand, loadable)) is not None:
            if self._begin(task):
                rows[batch_key(task)] = rows.get(batch_key(task), 0) + rows_of(task)

    def _note_room(self, key: Hashable, rows: int) -> None:
        if len(self._room) > 1000:  # sizes and solo requests come and go
            self._room.clear()
        self._room[key] = rows

    def _rows_for(self, key: Hashable) -> int:
        return self._room.get(key, self.caller.max_rows)

    def _fits(self, model: str, *, evict: bool) -> bool:
        in_use = {image.task.model for image in self._images} if evict else set(self.registry.loaded())
        try:
            return self.registry.fits(model, in_use)
        except (Rejected, Unavailable):
            return True  # `_begin` will say what is wrong

    def _begin(self, task: ImageTask) -> bool:
        """Start an image's pipeline and run it to its first device call."""
        in_use = {image.task.model for image in self._images}
        try:
            with torch.inference_mode(False):  # weights outlive this step: they must be ordinary tensors
                model = self.registry.get(task.model, in_use=in_use)
                model.adapters.ensure(task.loras)
            template = model.template(task.task)
            pipe = pipelines.prepare(template, task, model.scheduler_config, self._samplers.make)
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
        image = Image(task, batch_key(task), model, greenlet(pipelines.draw), pipe, notes=notes)
        self._images.append(image)
        self._resume(image, pipe, task)
        return image in self._images

    def _refuse(self, task: ImageTask, error: Exception) -> None:
        if device_errors.is_sticky(error):
            raise error
        code = "out_of_memory" if device_errors.is_out_of_memory(error) else "render_error"
        message = f"model {task.model!r} could not be made ready: {device_errors.describe(error)}"
        self._emit(Undrawable(task.request, task.index, code, message, True))

    # What runs together --------------------------------------------------------------------

    def _choose(self) -> list[Image]:
        """The images whose calls run now: one group, oldest first, as many rows as fit."""
        paused = [image for image in self._images if image.waits is not None]
        if not paused:
            return []
        kinds = {image.call.kind for image in paused}
        kind = next(kind for kind in _ORDER if kind in kinds)
        of_kind = [image for image in paused if image.call.kind == kind]
        of_kind.sort(key=lambda image: image.call.ticket)
        first, key = of_kind[0], self._key(of_kind[0])
        mates = [image for image in of_kind if self._key(image) == key]
        if kind == "text":
            return mates
        limit = max(self.caller.limit(kind, key[:2]), first.call.rows)
        chosen, room = [], limit
        for image in mates:
            if image.call.rows <= room:
                chosen.append(image)
                room -= image.call.rows
        return chosen

    def _key(self, image: Image) -> tuple[Hashable, ...]:
        """What must agree for two images to share a call."""
        return (image.call.key, image.task.loras, image.task.request if image.task.solo else None)

    def _run(self, group: list[Image]) -> None:
        first = group[0]
        key = (first.call.key, first.task.loras)
        calls, kind = [image.call for image in group], first.call.kind
        owners = {id(image.waits): image for image in group}
        now, calls_before = self._clock(), self.counters.calls
        ready = partial(self._make_ready, first)
        if kind == "text":
            answers = text_encoder.encode(self.caller, self.registry.embeddings, calls, key, ready)
        else:
            answers = self.caller.run(calls, key, ready)
        for image in group if self.counters.calls > calls_before else ():
            image.calls += 1
            image.began = now if image.began is None else image.began
        if kind == "unet":
            room = self.caller.limit(kind, key)
            for task_company in {image.batch_key for image in group}:
                self._note_room(task_company, room)
        for call, answer in answers:
            image = owners[id(call)]
            image.unet_calls += kind == "unet"
            if image.task.preview and kind == "unet" and not isinstance(answer, Failure):
                self._previews.look(image, call, answer)
                self._told = self._told if image.unet_calls > 1 else float("-inf")
            if kind == "decode" and not isinstance(answer, Failure):
                answer = finite_picture(call, answer)
            self._give(image, answer)

    def _make_ready(self, image: Image) -> None:
        """Before a device call: the right LoRAs act, and with offload the right module is there."""
        image.model.adapters.switch(image.task.loras)
        self.registry.offloading.make_way(image.call.module)

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
            if device_errors.is_sticky(error):
                raise
            memory = device_errors.is_out_of_memory(error)
            failure = Failure(
                "out_of_memory" if memory else "render_error",
                f"the pipeline failed: {device_errors.describe(error)}",
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
        self._emit(
            Undrawable(image.task.request, image.task.index, failure.code, failure.message, failure.retry)
        )

    def _unwind(self, images: list[Image]) -> None:
        with torch.inference_mode():  # a pipeline that unwinds sets the grad mode back to what it found
            for image in images:
                self._end(image)

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
            steps = {image.name: image.steps() for image in self._images}
            self._emit(Stepped(self.counters.calls, steps, self._previews.due(self._images)))

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets
