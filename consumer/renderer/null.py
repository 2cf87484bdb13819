"""A renderer child without torch: flat pictures, at any speed, that crash, hang or fail when told to.

It speaks like the real one, so the protocol around it can be tested and measured by itself.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections import deque
from typing import Any, BinaryIO

from consumer.renderer import frames
from consumer.renderer.protocol import Drawn, Event, ImageTask, RawPicture, Ready, Stepped, Undrawable


class NullRenderer:
    """Draws one task after the other.

    Settings (under `null`): `seconds_per_step`; `crash_on`, `hang_on`, `fail_on`: texts; a prompt that
    holds one has that effect; `fail_seeds`: numbers; the images of these seeds fail; `grain`: noise, which
    PNG cannot shrink, instead of one colour; `diary`: a file that gets a line for each image drawn to its end.
    """

    def __init__(self, null: dict[str, Any], out: BinaryIO) -> None:
        self._null = null
        self._out = out
        self._tasks: deque[ImageTask] = deque()
        self._current: ImageTask | None = None  # in work, and not cancelled
        self._news = threading.Condition()
        self._calls = 0

    def listen(self, stream: BinaryIO) -> None:
        """Fill the queue from the parent; its end is ours."""
        try:
            while (message := frames.read(stream)) is not None:
                with self._news:
                    if isinstance(message, ImageTask):
                        self._tasks.append(message)
                    else:
                        self._cancel(message.get("cancel"))
                    self._news.notify()
        finally:
            os._exit(0)

    def _cancel(self, request: str) -> None:
        self._tasks = deque(task for task in self._tasks if task.request != request)
        if self._current is not None and self._current.request == request:
            self._current = None

    def run(self) -> None:
        while True:
            with self._news:
                while not self._tasks:
                    self._news.wait()
                task = self._current = self._tasks.popleft()
            self._draw(task)

    def _draw(self, task: ImageTask) -> None:
        began = time.monotonic()
        if self._is_told("crash_on", task):
            os.kill(os.getpid(), signal.SIGKILL)
        while self._is_told("hang_on", task):
            time.sleep(0.1)
        pause = float(self._null.get("seconds_per_step", 0))
        for step in range(1, task.steps + 1 if pause else 1):
            time.sleep(pause)
            if self._current is not task:
                return
            self._calls += 1
            self.say(Stepped(self._calls, {(task.request, task.index): (step, task.steps)}))
        if self._is_told("fail_on", task) or task.seed in self._null.get("fail_seeds", ()):
            self.say(Undrawable(task.request, task.index, "render_error", "told to fail", False))
            return
        if "diary" in self._null:
            with open(self._null["diary"], "a") as diary:
                diary.write(f"{task.request} {task.index}\n")
        seen = f"{task.seed} {task.prompt}".encode()
        count = task.width * task.height
        if self._null.get("grain"):
            pixels = hashlib.shake_128(seen).digest(3 * count)
        else:
            pixels = hashlib.sha256(seen).digest()[:3] * count
        picture = RawPicture(task.width, task.height, 3, pixels)
        model = {"name": task.model, "revision": "", "source": "null", "licence": "", "dtype": "none"}
        self.say(
            Drawn(task.request, task.index, picture, (), model, time.monotonic() - began, max(1, self._calls))
        )

    def _is_told(self, what: str, task: ImageTask) -> bool:
        text = str(self._null.get(what) or "")
        return text != "" and text in task.prompt

    def say(self, event: Event) -> None:
        self._out.write(frames.pack(event))
        self._out.flush()


def main() -> None:
    settings = frames.read(sys.stdin.buffer)
    if settings is None:
        return
    renderer = NullRenderer(settings["null"], sys.stdout.buffer)
    threading.Thread(target=renderer.listen, args=(sys.stdin.buffer,), daemon=True).start()
    renderer.say(Ready(device="null", dtype="none", versions={}))
    renderer.run()


if __name__ == "__main__":
    main()
