"""Measures UNet calls of several row counts and sizes, in a renderer child as a worker has one.

Each cell draws as many images at once as fill a call. Their calls meet in the child as in a worker, so what is measured
is what a worker does: with its dtype, attention, splitting and host time.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.renderer.process import Loss, Renderer
from consumer.renderer.protocol import (
    DeviceCall,
    Drawn,
    Event,
    ImageTask,
    Ready,
    RendererSettings,
    Stepped,
    Undrawable,
)

if TYPE_CHECKING:
    from infra.models.cards import ModelCard

_LAST_CALLS = 5.0  # seconds for the report of the last calls, which follows the last image


@dataclass(frozen=True, slots=True)
class Cell:
    """What was measured at one size and number of rows."""

    width: int  # pixels
    height: int
    asked: int  # rows of a call
    rows: int  # that calls had at most
    step_ms: float | None  # milliseconds of such a call, with the host's time before it: the median
    image_ms: float  # of an image beside its UNet calls
    memory: (
        int | None
    )  # bytes at most: of the GPU, or of the child process on a CPU; None where it is not known
    problem: str = ""  # why there is no time, or not with all rows

    @property
    def row_ms(self) -> float | None:
        return None if self.step_ms is None else self.step_ms / self.rows

    def images_per_second(self, steps: int, rows: int) -> float | None:
        """Images a second in a steady stream, each with so many steps and rows."""
        if self.row_ms is None:
            return None
        return 1000 / (steps * rows * self.row_ms + self.image_ms)

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"row_ms": self.row_ms}


class Bench:
    """One renderer child that is measured. Use it in `async with`."""

    def __init__(self, settings: RendererSettings, card: ModelCard, steps: int) -> None:
        """
        Args:
            settings: of the child; it loads the card's model.
            steps: of each image: as many calls are measured in each cell.
        """
        self._card = card
        self._steps = steps
        self._calls: list[DeviceCall] = []
        self._peak: int | None = None
        self._open: set[tuple[str, int]] = set()  # images that are not answered
        self._problem = ""
        self._news = asyncio.Event()
        self._renderer = Renderer(settings, self._on_event, self._on_loss)
        self.ready: Ready | None = None

    async def __aenter__(self) -> Bench:
        try:
            self.ready = await self._renderer.start()
        except BaseException:
            await self._renderer.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._renderer.close()

    async def cells(self, sizes: Sequence[tuple[int, int]], rows: Sequence[int]) -> AsyncIterator[Cell]:
        """Measure each size with each number of rows, in the order given."""
        for width, height in sizes:
            for count in rows:
                cell = await self._cell(width, height, count)
                if 0 < cell.rows < count:  # perhaps the child began before it had all of its tasks
                    cell = await self._cell(width, height, count)
                yield cell

    async def _cell(self, width: int, height: int, asked: int) -> Cell:
        self._calls, self._peak, self._problem = [], None, ""
        _reset_peak(self._renderer.pid)
        guided = self._card.cfg_scale > 1 and asked > 1
        count = asked // 2 if guided else asked
        for index in range(count):
            self._submit(f"{width}x{height}-{asked}", index, width, height, guided)
        await self._until(lambda: not self._open)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_CALLS):
                await self._until(lambda: self._problem or self._decoded() >= count)
        memory = self._peak if self._peak is not None else _peak_of(self._renderer.pid)
        unet = [call for call in self._calls if call.kind == "unet"]
        if not unet or self._problem:
            problem = self._problem or "no call was reported"
            return Cell(width, height, asked, 0, None, 0.0, memory, problem)
        most = max(call.rows for call in unet)
        full = [call.busy for call in unet if call.rows == most]
        if most < asked:
            self._problem = f"a worker splits this: {most} rows fit in a call (memory, or 2 s)"
        others = sum(call.busy for call in self._calls if call.kind != "unet")
        step_ms, image_ms = 1000 * statistics.median(full), 1000 * others / count
        return Cell(width, height, asked, most, step_ms, image_ms, memory, self._problem)

    def _submit(self, request: str, index: int, width: int, height: int, guided: bool) -> None:
        self._open.add((request, index))
        self._renderer.submit(
            ImageTask(
                request=request,
                index=index,
                task="text2img",
                model=self._card.name,
                prompt="a red circle on a blue background",
                negative_prompt=None,
                width=width,
                height=height,
                steps=self._steps,
                cfg_scale=max(2.0, self._card.cfg_scale) if guided else 1.0,
                seed=index,
                scheduler=self._card.scheduler,
            )
        )

    def _decoded(self) -> int:
        return sum(call.rows for call in self._calls if call.kind == "decode")

    async def _until(self, done: Any) -> None:
        while not done():
            self._news.clear()
            await self._news.wait()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._calls += event.calls
            self._peak = max(self._peak or 0, event.peak) if event.peak is not None else self._peak
        elif isinstance(event, Drawn | Undrawable):
            self._open.discard((event.request, event.index))
            if isinstance(event, Undrawable):
                self._problem = event.message
        self._news.set()

    def _on_loss(self, loss: Loss) -> None:
        self._open.clear()
        last = loss.detail.strip().splitlines()[-1:] or [""]
        self._problem = f"the renderer {loss.why}: {last[0]}"
        self._news.set()


def _reset_peak(pid: int | None) -> None:
    """Let Linux forget the process's peak of memory."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak_of(pid: int | None) -> int | None:
    """Bytes of memory that a process had at most; None where the system does not say."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return None
