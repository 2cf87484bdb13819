"""An event loop in which time stands still unless the world says otherwise.

It waits for no file and no clock: timers ripen as the world's virtual seconds pass. So what runs
in it is a matter of the seed alone, and of hours only the interesting moments are lived through.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Nothing(selectors.SelectSelector):
    """Nobody calls from outside."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class StillLoop(asyncio.SelectorEventLoop):
    """`clock` is the world's; `_ready` and `_scheduled` are what the standard library's loops have."""

    clock: Callable[[], float] = staticmethod(lambda: 0.0)
    _ready: Any
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__(_Nothing())

    def time(self) -> float:
        return self.clock()

    @property
    def is_busy(self) -> bool:
        """Whether anything can run without time passing."""
        return bool(self._ready)

    def next_timer(self) -> float:
        """When the next sleeper wakes, in the world's seconds."""
        return min(
            (handle.when() for handle in self._scheduled if not handle.cancelled()), default=float("inf")
        )


def live(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end in a still loop."""
    with asyncio.Runner(loop_factory=StillLoop) as runner:
        return runner.run(work)
