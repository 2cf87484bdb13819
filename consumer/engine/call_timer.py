"""How long device calls take, without waiting for them: a GPU's calls return before they are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class CallTimer:
    """Times the calls of one device."""

    def __init__(self, device: str, clock: Callable[[], float]) -> None:
        """
        Args:
            clock: seconds; used where calls are done when they return.
        """
        self._device = device
        self._clock = clock
        self._running: deque[tuple[Any, Any, Callable[[float], None]]] = deque()  # CUDA events: first, last

    def time(self, work: Callable[[], T], then: Callable[[float], None]) -> T:
        """Do some work; `then` gets its seconds, now or by a later `collect`."""
        if not self._device.startswith("cuda"):
            began = self._clock()
            result = work()
            then(self._clock() - began)
            return result
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(self._device)
        first.record(stream)
        result = work()
        last.record(stream)
        self._running.append((first, last, then))
        return result

    def collect(self) -> None:
        """Report the work that the device has finished."""
        while self._running and self._running[0][1].query():
            first, last, then = self._running.popleft()
            then(first.elapsed_time(last) / 1000)
