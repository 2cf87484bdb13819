"""What tests of the renderer share: tasks, a listener to wait with, and renderers with odd children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from consumer.renderer.process import Loss, Renderer
from consumer.renderer.protocol import Drawn, Event, ImageTask, Ready, RendererSettings

WAIT = 300  # seconds; far beyond what is needed, for a busy machine

#: Code of a child that draws task `t`.
DRAW = 'say(Drawn(t.request, t.index, RawPicture(1, 1, 3, b"abc"), (), {}, 0.0))\n'


def a_task(request: str = "r", prompt: str = "a red dot", **fields: Any) -> ImageTask:
    """A small image."""
    defaults = {"task": "text2img", "model": "m", "negative_prompt": None, "width": 16, "height": 8}
    numbers = {"index": 0, "steps": 3, "cfg_scale": 7.0, "seed": 1, "scheduler": "Euler"}
    return ImageTask(request=request, prompt=prompt, **{**defaults, **numbers, **fields})


class Listener:
    """Collects what a renderer says, and lets a test wait for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.losses: list[Loss] = []
        self._news = asyncio.Event()

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def on_loss(self, loss: Loss) -> None:
        self.losses.append(loss)
        self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT):
            while not true():
                self._news.clear()
                await self._news.wait()

    def drawn(self) -> dict[str, Drawn]:
        return {event.request: event for event in self.events if isinstance(event, Drawn)}

    def readies(self) -> int:
        return sum(isinstance(event, Ready) for event in self.events)


@contextlib.asynccontextmanager
async def running(
    null: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Renderer, Listener]]:
    """A renderer that is ready, and closed in the end."""
    listener = Listener()
    kind = settings.pop("kind", "null")
    renderer = Renderer(
        RendererSettings(kind=kind, null=null or {}, **settings), listener.on_event, listener.on_loss
    )
    try:
        await renderer.start()
        yield renderer, listener
    finally:
        await renderer.close()


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def with_child(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have renderers start this program as their child."""
    (tmp_path / "odd_child.py").write_text(
        "import os, sys, time\nfrom consumer.renderer import frames\nfrom consumer.renderer.protocol import *\n"
        "def say(m):\n    sys.stdout.buffer.write(frames.pack(m)); sys.stdout.buffer.flush()\n"
        "frames.read(sys.stdin.buffer)\n" + textwrap.dedent(code)
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path.cwd()}")
    monkeypatch.setattr("consumer.renderer.process._MODULES", {"null": "odd_child"})
