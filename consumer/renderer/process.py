"""The parent's handle on a renderer child: the process that owns one device.

A child may crash, hang or lose its device at any time. Then it is replaced, and the tasks that it held are handed
back as a `Loss`; whoever owns them decides what to try again. The child runs other people's code on strangers'
requests, so its environment holds no credentials (no hub token either: gated models are downloaded beforehand).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from consumer.renderer import frames
from consumer.renderer.load_progress import LoadProgress
from consumer.renderer.protocol import (
    DEVICE_LOST,
    Cancel,
    Complaint,
    Drawn,
    Event,
    ImageTask,
    Loaded,
    Loading,
    Message,
    Ready,
    RendererSettings,
    Stepped,
    Undrawable,
)
from consumer.renderer.stderr import StderrTail
from infra.backoff import backoff
from infra.child_process import child_environment, python_command, without_secrets
from infra.logs import redacted
from schemas.errors import DreamError

log = logging.getLogger(__name__)

_BACK_OFF = (0.2, 10.0)  # seconds before a new child: first, longest
_LOAD = 1800.0  # seconds to fetch and load a model; an interrupted download is resumed
_MAX_FAILED_STARTS = 3  # children in a row that ended before they could draw; then the device counts as lost
_EXIT_WAITS = (2.0, 10.0)  # seconds to exit by itself, then after a kill
_MODULES = {"diffusers": "consumer.engine", "null": "consumer.renderer.null"}

Why = Literal["crashed", "hung", "lost its device"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A child ended, and these tasks were not answered."""

    why: Why
    detail: str  # the end of its stderr, word for word: not for every log
    redacted: str  # the same without quoted text
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
        self._held: dict[tuple[str, int], ImageTask] = {}  # by (request, index): submitted, not answered
        self._process: asyncio.subprocess.Process | None = None
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()  # not written to the child yet
        self._supervisor: asyncio.Task[None] | None = None
        self._first_ready: asyncio.Future[Ready] | None = None
        self._progress_at = time.monotonic()  # when the child last sent a message
        self._gaps: deque[float] = deque(maxlen=50)  # seconds between two signs of progress
        self._stderr = StderrTail()
        self.loads = LoadProgress(settings.device)
        self._status: int | None = None  # of the child that ended last
        self._failed_starts = 0
        self._hung = False
        self._loading = False  # a model, since the last message: slow, but not hung

    @property
    def pending(self) -> int:
        """Tasks submitted and not answered."""
        return len(self._held)

    def pending_of(self, express: bool) -> int:
        """Those of one lane."""
        return sum(task.express == express for task in self._held.values())

    @property
    def pending_bytes(self) -> int:
        """Bytes of the pixels that those tasks will become."""
        return sum(3 * math.prod(task.drawn_size) for task in self._held.values())

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def healthy(self) -> bool:
        """Whether the child is idle, starting, or makes progress: only then does a worker send heartbeats."""
        return not self.hopeless if self.ready is None else not self._is_late()

    @property
    def hopeless(self) -> bool:
        """Whether several children in a row ended before they could draw; new ones are started all the same."""
        return self._failed_starts >= _MAX_FAILED_STARTS

    def _is_late(self) -> bool:
        usual = statistics.median(self._gaps) if self._gaps else 0.0
        patience = max(self.settings.patience, 10 * usual, _LOAD if self._loading else 0.0)
        return bool(self._held) and time.monotonic() - self._progress_at > patience

    async def start(self) -> Ready:
        """Start the first child and wait until it can draw.

        Raises:
            NotStarted: it ended before that; the message holds the last line of its stderr.
        """
        self._first_ready = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise())
        return await self._first_ready

    def submit(self, task: ImageTask) -> None:
        """Hand a task over; it is answered by an event, or comes back in a `Loss`.

        While a child is being replaced, the task waits for the next one.
        """
        if not self._held:
            self._progress_at = time.monotonic()  # it was idle: its time to answer begins now
        self._held[task.request, task.index] = task
        self._send(task)

    def cancel(self, request: str) -> None:
        """Draw no more images of a request; no event about it follows."""
        names = [name for name in self._held if name[0] == request]
        for name in names:
            del self._held[name]
        if names:
            self._send(Cancel(request))

    async def close(self) -> None:
        """End the child. The tasks that it holds are dropped."""
        if self._supervisor is not None:  # first, or it would start a new child for the one that ends
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        await self._end_child()  # a child that an unforeseen error of the supervisor left behind

    def _send(self, message: Message) -> None:
        if self._process is not None:
            self._outbox.put_nowait(message)

    async def _write(self, stdin: asyncio.StreamWriter) -> None:
        """Write messages as fast as the child reads; a task's pictures are copied only now."""
        with contextlib.suppress(ConnectionError):
            while True:
                message = await self._outbox.get()
                if not isinstance(message, ImageTask) or (message.request, message.index) in self._held:
                    stdin.write(frames.pack(message))  # else it was cancelled in the meantime
                del message
                await stdin.drain()

    # The children ----------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Run one child after another until cancelled."""
        pauses = backoff(*_BACK_OFF)
        while True:
            began = time.monotonic()
            why, has_drawn = await self._run_child()
            stderr = self._stderr  # the next child gets a new one
            if self._first_ready is not None and not self._first_ready.done():
                reason = f"the renderer did not start: {stderr.last_words(self._status) or why}"
                self._first_ready.set_exception(NotStarted(reason))
                return
            self._failed_starts += self.ready is None
            self.loads.loaded = {}
            self.ready = None  # before the loss is reported: nobody must hand tasks to the dead child
            tasks, self._held = list(self._held.values()), {}  # also before: a handler may submit them again
            try:
                self._on_loss(Loss(why, stderr.whole, stderr.redacted, tasks))
            except Exception as error:  # whatever it was, the next child must be started
                _log_error("the loss of a renderer could not be handled", error)
            if time.monotonic() - began > 60 or has_drawn:
                pauses = backoff(*_BACK_OFF)  # it had worked: this is not a child that dies at every start
            await asyncio.sleep(next(pauses))

    async def _run_child(self) -> tuple[Why, bool]:
        """Start a child and handle its messages until it ends: why it ended, and whether it had drawn an image."""
        self._hung = self._loading = has_drawn = False
        self._stderr = StderrTail()
        try:
            process = self._process = await self._spawn()
        except OSError as error:  # no memory or no process to be had: perhaps later
            self._stderr.note(f"no child could be started: {error}")
            return "crashed", False
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._progress_at = time.monotonic()
        self._outbox = asyncio.Queue()
        self._send(self.settings)  # the child reads its settings before any task
        list(map(self._send, self._held.values()))  # submitted while there was no child
        writer = asyncio.create_task(self._write(process.stdin))
        watchdog = asyncio.create_task(self._watch(process))
        tail = asyncio.create_task(self._stderr.listen(process.stderr))
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    message = await frames.read_async(process.stdout)
                    has_drawn = has_drawn or isinstance(message, Drawn)
                    self._on_message(message)
        except frames.BadFrame as error:
            self._stderr.note(f"noise on the pipe: {error}")
        finally:
            self.loads.end()
            writer.cancel()
            watchdog.cancel()  # before the child is ended, or it could take the wait for a hang
            await self._end_child()
            # After its end, so that its last lines are in. Bounded: a process that inherited its stderr may live on.
            await asyncio.wait({tail}, timeout=1)
            tail.cancel()
            await asyncio.gather(writer, watchdog, tail, return_exceptions=True)
        why: Why
        why = "hung" if self._hung else "lost its device" if process.returncode == DEVICE_LOST else "crashed"
        self._status = process.returncode
        self._stderr.note(f"exit status {process.returncode}")
        return why, has_drawn

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *python_command(_MODULES[self.settings.kind]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 22,
            env=child_environment(without_secrets()),
            start_new_session=True,  # a terminal's Ctrl-C is for the parent only
        )

    def _on_message(self, message: Message) -> None:
        now = time.monotonic()
        if self._held and isinstance(message, Stepped) and not self._loading:
            self._gaps.append(now - self._progress_at)
        self._progress_at = now
        self._loading = isinstance(message, Loading)
        match message:
            case Loading():
                self.loads.begin(message.name, message.source)
            case Loaded():
                self.loads.done(message)
            case Complaint():
                facts = {"device": self.settings.device, "why": message.text}
                log.warning("the renderer continues without a feature", extra=facts)
            case Ready() | Stepped() | Drawn() | Undrawable():
                self.loads.end()
                self._on_child_event(message)
            case _:
                raise frames.BadFrame("a message that a child does not send")

    def _on_child_event(self, event: Event) -> None:
        if isinstance(event, Ready):
            self.ready, self._failed_starts = event, 0
            if self._first_ready is not None and not self._first_ready.done():
                self._first_ready.set_result(event)
        elif isinstance(event, Drawn | Undrawable):
            if (event.request, event.index) not in self._held:
                return  # cancelled in the meantime
            self.loads.answered(self._held.pop((event.request, event.index)).model, event)
        try:
            self._on_event(event)
        except Exception as error:  # an error of the handler, not of the child: the other images go on
            _log_error("an event of the renderer could not be handled", error)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill a child that makes no progress although it has work, or that does not become ready."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, self.settings.patience / 5))
            starting = self.ready is None and time.monotonic() - began > _LOAD
            if starting or (self.ready is not None and self._is_late()):
                self._hung = True
                self._stderr.note(f"no progress for {time.monotonic() - self._progress_at:.0f} s")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return

    async def _end_child(self) -> None:
        process, self._process = self._process, None  # from here on nothing is sent to it
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # the usual end: a child exits when its stdin does
        for patience in _EXIT_WAITS:  # a kill at once would hide the exit status of a child that is exiting
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), patience)
                return
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _log_error(text: str, error: Exception) -> None:
    log.error(text, extra={"error": redacted(error)})
    log.debug(text, exc_info=error)
