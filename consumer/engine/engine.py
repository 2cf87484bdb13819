"""Continuous batching: many images, one model call at a time, and they meet inside it.

Each image is an ordinary call of an ordinary diffusers pipeline, running in a greenlet. When
it needs its UNet (or VAE, or text encoder) it pauses, and leaves a `Call`. A `step` of the engine
takes the calls that fit together, stacks their rows, runs the real module once and resumes
each image with its rows. So a short image leaves while a long one goes on, and a new one joins
at the next step; no image ever waits for others to share its calls. `admission` decides who begins and
who runs together.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from greenlet import greenlet

from consumer.engine import device_errors, joining
from consumer.engine.admission import AdmissionQueue, Turns, next_group
from consumer.engine.batch_size import BatchSizer
from consumer.engine.call import Call
from consumer.engine.device_call import Counters, DeviceCaller, Failure, finite_picture
from consumer.engine.devices import CallTimer, peak_memory
from consumer.engine.in_flight import InFlight, Shares, shares
from consumer.engine.loading import pipelines, spelling
from consumer.engine.loading.readiness import make_ready
from consumer.engine.loading.registry import ModelRegistry
from consumer.engine.passes import models_of, passes_of
from consumer.engine.preview import Previews
from consumer.engine.sampling.sampler import Samplers
from consumer.engine.texts import encode_texts
from consumer.renderer.protocol import (
    Complaint,
    DeviceCall,
    Drawn,
    Event,
    ImageTask,
    Stepped,
    Undrawable,
)
from infra.models.model_files import ModelUnavailable
from schemas.errors import Rejected, Unavailable

if TYPE_CHECKING:
    from collections.abc import Hashable


_WITH_LORAS = ("text", "unet")  # calls of modules that have LoRAs; a VAE has none


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
            emit: gets every event; called from `step`.
            max_rows: of a UNet call; an image with guidance takes two.
            exact: pad calls to one fixed size, so that an image's bytes do not depend on the images beside it
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
        self.caller = DeviceCaller(max_rows, exact, clock, BatchSizer(max_rows) if measure else None)
        self._emit = emit
        self._clock = clock
        self._progress_every = progress_every
        self._queue = AdmissionQueue(registry, max_rows, patience)
        self._turns = Turns()
        self._timer = CallTimer(registry.device, clock)
        self._in_flight: list[InFlight] = []
        self._samplers = Samplers()
        self._tickets = itertools.count(1)
        self._keys = joining.Keys(exact=exact)
        self._reported_at = float("-inf")
        self._calls: list[DeviceCall] = []  # not reported yet
        self._previews = Previews(clock, registry.offloading.make_way, emit)

    @property
    def counters(self) -> Counters:
        return self.caller.counters

    @property
    def busy(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self._in_flight or self._queue)

    def submit(self, task: ImageTask) -> None:
        """Take a task; it joins at the next step."""
        for one in passes_of(task):
            if one.folder:
                self.registry.learn(one.model, one.folder)
        self._queue.add(task)

    def cancel(self, request: str) -> None:
        """Drop every task of a request, begun or not; no event about them follows."""
        self._queue.drop(request)
        self._unwind([image for image in self._in_flight if image.task.request == request])

    def close(self) -> None:
        """Drop every image in flight."""
        self._unwind(list(self._in_flight))

    def step(self) -> bool:
        """Do one device call; False when there is nothing to do.

        Raises:
            StickyDeviceError: the device is lost; a new process must go on.
        """
        try:
            with torch.inference_mode():
                while (task := self._queue.next(self._in_flight)) is not None:
                    self._begin(task)
                self._timer.collect()
                group = next_group(self._in_flight, self.caller.limit, self._turns, fill=self.caller.exact)
                if not group:
                    self.caller.idle()
                    self._timer.pause()
                    return False
                self._run(group)
                if not self.busy:
                    self._timer.collect()
                    self._timer.pause()
                self._report_progress()
        except Exception as error:
            if not (isinstance(error, device_errors.StickyDeviceError) or device_errors.is_sticky(error)):
                raise
            self.close()
            raise device_errors.StickyDeviceError(device_errors.describe(error)) from error
        return True

    def _begin(self, task: ImageTask) -> None:
        """Start an image's pipeline and run it to its first device call."""
        if not set(models_of(task)) <= set(self.registry.loaded()):
            self._timer.pause()  # loading is not part of an image's time
        try:
            passes, warnings = make_ready(
                self.registry, self._samplers.make, task, [one for x in self._in_flight for one in x.passes]
            )
        except Rejected as error:
            self._emit(Undrawable(task.request, task.index, error.code, error.message, False, error.field))
            return
        except Unavailable as error:
            again = not isinstance(error, ModelUnavailable)  # what is not here now will not be in a moment
            self._emit(Undrawable(task.request, task.index, "model_unavailable", str(error), again, "model"))
            return
        except Exception as error:
            if device_errors.is_sticky(error):
                raise
            code = "out_of_memory" if device_errors.is_out_of_memory(error) else "render_error"
            message = f"model {task.model!r} could not be made ready: {device_errors.describe(error)}"
            self._emit(Undrawable(task.request, task.index, code, message, True))
            return
        first = passes[0]
        runs = greenlet(pipelines.draw)
        image = InFlight(first.task, first.batch_key, first.loras, first.model, runs, first.pipe)
        image.later, image.record, image.warnings = passes[1:], first.model.record, warnings
        image.generator = spelling.generator(task)
        self._in_flight.append(image)
        self._resume(image, image.pipe, image.task, image.generator)

    def _run(self, group: list[InFlight]) -> None:
        """Answer the calls of a group by one device call, or by several where memory is short."""
        largest = max(group, key=lambda image: image.call.size)  # rows of other sizes are padded to it
        kind, key = largest.call.kind, largest.call.limits
        calls = [image.call for image in group]
        rows = sum(call.rows for call in calls)
        images = {id(call): image for call, image in zip(calls, group, strict=True)}
        now, calls_before = self._clock(), self.counters.calls
        ready = partial(self._make_ready, group[0])

        def answer_all() -> list[tuple[Call, Any]]:
            if kind == "text":
                return encode_texts(self.caller, self.registry.embeddings, calls, key, group[0].state, ready)
            return self.caller.run(calls, key, ready)

        took = partial(self._took, largest.task, shares(group), kind, key, rows)
        answers = self._timer.time(answer_all, took)
        if self.counters.calls > calls_before:  # not when every prompt was in the cache
            for image in group:
                image.began = now if image.began is None else image.began
        if kind == "unet":
            for size, its in {image.batch_key: image.call.limits for image in group}.items():
                self._queue.set_limit(size, self.caller.limit(kind, its))  # the call may have changed it
        for call, answer in answers:
            image = images[id(call)]
            image.unet_calls += kind == "unet"
            if kind == "unet" and image.unet_calls == 1 and image.task.preview:
                self._reported_at = float("-inf")  # the first step is told at once
            if kind == "decode" and not isinstance(answer, Failure):
                answer = finite_picture(call, answer)
            if isinstance(answer, Failure):
                self._fail(image, answer)
            else:
                image.paused_in = None
                self._resume(image, answer)

    def _took(
        self, task: ImageTask, parts: Shares, kind: str, key: Hashable, rows: int, seconds: float, busy: float
    ) -> None:
        """Note how long the call of a group took, whose largest image is the task's."""
        slots = max(rows, self.caller.limit(kind, key))
        self._calls.append(DeviceCall(kind, task.model, task.width * task.height, rows, slots, seconds, busy))
        for batch, part in parts:
            self._turns.charge(task.express, batch, part * seconds)
        self.caller.took(kind, key, rows, seconds)

    def _make_ready(self, image: InFlight) -> None:
        """Before a device call: switch to what the image is drawn with, and with offload move the module."""
        if image.call.kind in _WITH_LORAS:
            image.model.adapters.switch(image.loras)
        if image.call.kind == "unet":
            image.model.guides.ip_adapters.switch(image.task.ip_adapter)
        self.registry.offloading.make_way(image.call.module)

    def _resume(self, image: InFlight, *values: Any) -> None:
        """Let the pipeline run on, to its next device call or to its end."""
        failure = None
        try:
            outcome = image.greenlet.switch(*values)
        except Exception as error:
            if device_errors.is_sticky(error):
                raise
            memory = device_errors.is_out_of_memory(error)
            failure = Failure(
                "out_of_memory" if memory else "render_error",
                f"the pipeline failed: {device_errors.describe(error)}",
                retry=memory,
            )
            if (refused := pipelines.refusal(image.task, error)) is not None:
                failure = Failure(refused.code, refused.message, False, refused.field)
        if failure is not None:  # outside `except`, where no traceback holds tensors
            self._fail(image, failure)
            return
        if isinstance(outcome, Call):
            outcome.ticket = next(self._tickets)
            image.paused_in = outcome
            before = image.last_step if outcome.kind == "unet" else None
            compiled = self.caller.compiler is not None  # for one size each
            alike = self._keys.give(outcome, before, image.state, apart=compiled)
            outcome.switched = any(image.state)
            if outcome.kind == "unet":
                # Only what is alike is kept: another call may hold much, such as a ControlNet's answers.
                image.last_step = outcome if alike or not image.rows else None
                image.rows = image.rows or outcome.rows
            return
        if image.later:
            image.go_on()
            image.greenlet = greenlet(pipelines.draw)
            self._resume(image, image.pipe, image.task, image.generator, outcome)
            return
        self._in_flight.remove(image)
        self._emit(
            Drawn(
                request=image.task.request,
                index=image.task.index,
                picture=outcome,
                warnings=tuple(image.warnings),
                model=dict(image.record),
                seconds=self._clock() - (image.began if image.began is not None else self._clock()),
                refiner=dict(image.refiner),
            )
        )

    def _fail(self, image: InFlight, failure: Failure) -> None:
        self._end(image)
        task = image.task
        self._emit(
            Undrawable(task.request, task.index, failure.code, failure.message, failure.retry, failure.field)
        )

    def _unwind(self, images: list[InFlight]) -> None:
        with torch.inference_mode():  # a pipeline that unwinds sets the grad mode back to what it was
            for image in images:
                self._end(image)

    def _end(self, image: InFlight) -> None:
        """Unwind the pipeline where it is paused."""
        if image in self._in_flight:
            self._in_flight.remove(image)
        image.paused_in = None
        if not image.greenlet.dead:
            with contextlib.suppress(Exception):  # whatever a pipeline raises while it unwinds, it has ended
                image.greenlet.throw()

    def _report_progress(self) -> None:
        now = self._clock()
        if now - self._reported_at >= self._progress_every or (not self.busy and self._calls):
            self._reported_at = now
            steps = {image.name: image.steps() for image in self._in_flight}
            calls, self._calls = tuple(self._calls), []
            previews, peak = self._previews.due(self._in_flight), peak_memory(self.registry.device)
            self._emit(Stepped(steps, previews, calls, peak))
