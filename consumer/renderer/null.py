"""A renderer child without torch: it draws flat pictures, and crashes, hangs or fails where its settings say so.

It speaks the real child's protocol, so everything around a renderer can be tested and measured without one.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from typing import BinaryIO

import msgspec

from consumer.renderer import frames
from consumer.renderer.protocol import (
    Cancel,
    DeviceCall,
    Drawn,
    Event,
    ImageTask,
    RawPicture,
    Ready,
    RendererSettings,
    Stepped,
    Undrawable,
)


class NullSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `RendererSettings.null` may hold. A prompt that contains one of the three texts has its effect."""

    seconds_per_step: float = 0.0
    crash_on: str = ""
    hang_on: str = ""
    fail_on: str = ""
    fail_seeds: frozenset[int] = frozenset()  # images with these seeds fail
    grain: bool = False  # noise, which PNG cannot compress, instead of one colour
    diary: str = ""  # a file that gets a line for each finished image


class NullRenderer:
    """Draws one task after the other, those of the express lane first."""

    def __init__(self, settings: NullSettings, out: BinaryIO) -> None:
        self._settings = settings
        self._out = out
        self._tasks: deque[ImageTask] = deque()
        self._current: ImageTask | None = None  # being drawn, and not cancelled
        self._changed = threading.Condition()

    def listen(self, stream: BinaryIO) -> None:
        """Fill the queue from the parent; the process ends when the pipe does."""
        try:
            while (message := frames.read(stream)) is not None:
                with self._changed:
                    if isinstance(message, ImageTask):
                        self._tasks.append(message)
                    elif isinstance(message, Cancel):
                        self._cancel(message.request)
                    self._changed.notify()
        finally:
            os._exit(0)

    def _cancel(self, request: str) -> None:
        self._tasks = deque(task for task in self._tasks if task.request != request)
        if self._current is not None and self._current.request == request:
            self._current = None

    def run(self) -> None:
        """Draw until the process ends."""
        while True:
            with self._changed:
                while not self._tasks:
                    self._changed.wait()
                task = self._current = next((task for task in self._tasks if task.express), self._tasks[0])
                self._tasks.remove(task)
            self._draw(task)

    def _draw(self, task: ImageTask) -> None:
        settings, began = self._settings, time.monotonic()
        if _applies(settings.crash_on, task):
            os.kill(os.getpid(), signal.SIGKILL)
        while _applies(settings.hang_on, task):
            time.sleep(0.1)
        for step in range(1, task.steps + 1 if settings.seconds_per_step else 1):
            time.sleep(settings.seconds_per_step)
            if self._current is not task:
                return
            seconds, pixels = settings.seconds_per_step, task.width * task.height
            call = DeviceCall("unet", task.model, pixels, 1, 1, seconds, seconds)
            self.send(Stepped({(task.request, task.index): (step, task.steps)}, calls=(call,)))
        if _applies(settings.fail_on, task) or task.seed in settings.fail_seeds:
            self.send(Undrawable(task.request, task.index, "render_error", "told to fail", False))
            return
        if settings.diary:
            with open(settings.diary, "a") as diary:
                diary.write(f"{task.request} {task.index}\n")
        picture = RawPicture(*task.drawn_size, 3, _pixels(task, settings.grain))
        model = {"name": task.model, "revision": "", "source": "null", "licence": "", "dtype": "none"}
        self.send(Drawn(task.request, task.index, picture, (), model, time.monotonic() - began))

    def send(self, event: Event) -> None:
        self._out.write(frames.pack(event))
        self._out.flush()


def _applies(text: str, task: ImageTask) -> bool:
    return text != "" and text in task.prompt


def _pixels(task: ImageTask, grain: bool) -> bytes:
    """Pixels that depend on seed and prompt only."""
    content, count = f"{task.seed} {task.prompt}".encode(), math.prod(task.drawn_size)
    if grain:
        return hashlib.shake_128(content).digest(3 * count)
    return hashlib.sha256(content).digest()[:3] * count


def main() -> None:
    # Not `sys.stdin`: Python closes that at its exit and aborts while the thread below still reads from it.
    source = os.fdopen(os.dup(0), "rb")
    settings = frames.read(source)
    if not isinstance(settings, RendererSettings):
        return  # the parent is gone
    renderer = NullRenderer(msgspec.convert(settings.null, NullSettings), sys.stdout.buffer)
    threading.Thread(target=renderer.listen, args=(source,), daemon=True).start()
    renderer.send(Ready(device="null", dtype="none", versions={}))
    renderer.run()


if __name__ == "__main__":
    main()
