"""The parent's handle on a renderer child: the process that owns one device.

A child may crash, hang or lose its device at any time. Then it is replaced, and the tasks that
it held are handed back as a `Loss`; whoever owns them decides what to try again. The child gets
no credentials: its environment is scrubbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from consumer.renderer import frames
from consumer.renderer.environment import scrubbed
from consumer.renderer.load_progress import LoadProgress
from consumer.renderer.protocol import STICKY, Drawn, Event, ImageTask, Ready, Stepped, Undrawable
from consumer.renderer.stderr import StderrTail
from infra.logs import redacted
from schemas.errors import DreamError

log = logging.getLogger(__name__)

_BACK_OFF = (0.2, 10.0)  # seconds before a new child: first, longest
_LOAD = 1800.0  # seconds to fetch and load a model; who is cut off in a download goes on with it
_STILLBORN = 3  # children in a row that ended before they could draw; then the device is as good as lost
_LAST_BREATHS = (2.0, 10.0)  # seconds to end by itself, then by being killed; then it is given up on
_MODULES = {"diffusers": "consumer.engine", "null": "consumer.renderer.null"}


@dataclass(frozen=True, slots=True)
class RendererSettings:
    """What a child is told when it starts."""

    kind: Literal["diffusers", "null"] = "diffusers"
    device: str = "cpu"
    dtype: str = "auto"
    attention: str = "auto"
    offload: bool = False
    max_rows: int = 16
    exact: bool = False
    models: tuple[tuple[str, str], ...] = ()  # name and source, given by the operator
    loras: tuple[tuple[str, str], ...] = ()  # name and file
    memory_budget: int | None = None  # bytes of loaded models
    preload: str | None = None  # loaded before the child says `Ready`
    patience: float = 60.0  # seconds without progress while busy, or ten times the usual: hung
    null: Mapping[str, Any] = field(default_factory=dict)  # the null renderer's


@dataclass(frozen=True, slots=True)
class Loss:
    """A child is gone, and these tasks with it."""

    why: Literal["crashed", "hung", "lost its device"]
    detail: str  # the last that it said, word for word: not for every log
    redacted: str  # the same without anybody's words
    tasks: list[ImageTask]


class NotStarted(DreamError):
    """The first child ended before it could draw."""


class Renderer:
    """One child after another, on one device. For one event loop."""

    def __init__(
        self,
        settings: RendererSettings,
        on_event: Callable[[Event], None],
        on_loss: Callable[[Loss], None],
    ) -> None:
        self.settings = settings
        self.ready: Ready | None = None  # None while a child is being started
        self._on_event = on_event
        self._on_loss = on_loss
        self._held: dict[tuple[str, int], ImageTask] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._life: asyncio.Task[None] | None = None
        self._first: asyncio.Future[Ready] | None = None
        self._moved = time.monotonic()  # when progress was last seen
        self._gaps: deque[float] = deque(maxlen=50)  # seconds between two signs of progress
        self._last_words = StderrTail()
        self._loads = LoadProgress(settings.device)
        self._stillborn = 0
        self._hung = False
        self._loading = False  # since the last event: slow, and not to be taken for hung

    @property
    def pending(self) -> int:
        """Tasks submitted and not answered."""
        return len(self._held)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def healthy(self) -> bool:
        """Whether the child is idle, starting, or makes progress: a worker shows life only then."""
        return not self.hopeless if self.ready is None else not self._is_late()

    @property
    def hopeless(self) -> bool:
        """Whether one child after another ended before it could draw; tries go on all the same."""
        return self._stillborn >= _STILLBORN

    def _is_late(self) -> bool:
        usual = statistics.median(self._gaps) if self._gaps else 0.0
        patience = max(self.settings.patience, 10 * usual, _LOAD if self._loading else 0.0)
        return bool(self._held) and time.monotonic() - self._moved > patience

    async def start(self) -> Ready:
        """Start the first child and wait until it can draw.

        Raises:
            NotStarted: it ended before that; the message holds its last words.
        """
        self._first = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live())
        return await self._first

    def submit(self, task: ImageTask) -> None:
        """Hand a task over; it is answered by an event, or comes back in a `Loss`.

        Between two children it waits for the next one.
        """
        if not self._held:
            self._moved = time.monotonic()
        self._held[task.request, task.index] = task
        self._send(frames.pack(task))

    def cancel(self, request: str) -> None:
        """Draw no more of a request; nothing more is heard of it."""
        mine = [name for name in self._held if name[0] == request]
        for name in mine:
            del self._held[name]
        if mine:
            self._send(frames.pack({"cancel": request}))

    async def close(self) -> None:
        """End the child. What it holds is forgotten."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        await self._end()

    def _send(self, frame: bytes) -> None:
        stdin = self._process.stdin if self._process else None
        if stdin is not None and not stdin.is_closing():
            stdin.write(frame)  # buffered without bound; callers hold few tasks ahead

    # The child's life ----------------------------------------------------------------------

    async def _live(self) -> None:
        """Keep a child alive until cancelled."""
        pause, longest = _BACK_OFF
        while True:
            began = time.monotonic()
            why, first = await self._one_life()
            words = self._last_words
            if self._first is not None and not self._first.done():
                self._first.set_exception(NotStarted(f"the renderer did not start: {words.last or why}"))
                return
            self._stillborn += self.ready is None
            self.ready = None
            lost, self._held = list(self._held.values()), {}
            try:
                self._on_loss(Loss(why, words.whole, words.redacted, lost))
            except Exception as error:  # whatever came of it, there must be a next child
                self._complain("a loss could not be handled", error)
            if time.monotonic() - began > 60 or first:
                pause = _BACK_OFF[0]
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _one_life(self) -> tuple[Literal["crashed", "hung", "lost its device"], bool]:
        """Start a child and listen until it ends; says why, and whether it had answered anything."""
        self._hung = self._loading = answered = False
        self._last_words = StderrTail()
        try:
            process = self._process = await self._spawn()
        except OSError as error:  # no memory or no process to be had: later, perhaps
            self._last_words.saw(f"no child could be started: {error}")
            return "crashed", False
        assert process.stdout is not None
        assert process.stderr is not None
        self._moved = time.monotonic()
        self._send(frames.pack(dataclasses.asdict(self.settings)))
        for task in self._held.values():
            self._send(frames.pack(task))
        watch = asyncio.create_task(self._watch(process))
        words = asyncio.create_task(self._last_words.listen(process.stderr))
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    event = await frames.read_async(process.stdout)
                    answered = answered or isinstance(event, Drawn)
                    self._hear(event)
        except frames.BadFrame as error:
            self._last_words.saw(f"noise on the pipe: {error}")
        finally:
            self._loads.end()
            watch.cancel()
            await self._end()
            await asyncio.wait({words}, timeout=1)  # its last words; whoever inherited its stderr may live on
            words.cancel()
            await asyncio.gather(watch, words, return_exceptions=True)
        why: Literal["crashed", "hung", "lost its device"]
        why = "hung" if self._hung else "lost its device" if process.returncode == STICKY else "crashed"
        self._last_words.saw(f"exit status {process.returncode}")
        return why, answered

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            _MODULES[self.settings.kind],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 22,
            env=scrubbed(os.environ),
            start_new_session=True,  # a terminal's Ctrl-C is the parent's to handle
        )

    def _hear(self, event: Event | dict[str, Any]) -> None:
        now = time.monotonic()
        if self._held and isinstance(event, Stepped) and not self._loading:
            self._gaps.append(now - self._moved)
        self._moved = now
        self._loading = isinstance(event, dict) and "loading" in event
        if isinstance(event, dict):
            self._hear_more(event)
            return
        self._loads.end()
        if isinstance(event, Ready):
            self.ready, self._stillborn = event, 0
            if self._first is not None and not self._first.done():
                self._first.set_result(event)
        elif isinstance(event, Drawn | Undrawable):
            if (event.request, event.index) not in self._held:
                return  # cancelled meanwhile
            del self._held[event.request, event.index]
        elif not isinstance(event, Stepped):
            raise frames.BadFrame("a message that a child does not send")
        try:
            self._on_event(event)
        except Exception as error:  # the listener's fault, not the child's: the other images go on
            self._complain("an event of the renderer could not be handled", error)

    def _hear_more(self, event: dict[str, Any]) -> None:
        match event:
            case {"loading": str(name), "source": str(source)}:
                self._loads.begin(name, source)
            case {"loaded": str(name), "source": str(source), "dtype": str(dtype), "bytes": int(size)}:
                self._loads.done(name, source=source, dtype=dtype, size=size)
            case {"complaint": str(text)}:
                log.warning(
                    "the renderer goes on without", extra={"device": self.settings.device, "why": text}
                )
            case _:
                raise frames.BadFrame("a message that a child does not send")

    def _complain(self, text: str, error: Exception) -> None:
        log.error(text, extra={"error": redacted(error)})
        log.debug(text, exc_info=error)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill a child that makes no progress although it has work, or that does not get ready."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, self.settings.patience / 5))
            starting = self.ready is None and time.monotonic() - began > _LOAD
            if starting or (self.ready is not None and self._is_late()):
                self._hung = True
                self._last_words.saw(f"no progress for {time.monotonic() - self._moved:.0f} s")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # a child whose parent is silent for good ends by itself
        for patience in _LAST_BREATHS:  # killing one that is ending would lose its exit status
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), patience)
                return
            with contextlib.suppress(ProcessLookupError):
                process.kill()
