"""What is told of models being loaded: a line when it begins, one when it has ended.

A large model may take minutes, above all the first time, when it is downloaded; on a terminal the
seconds are counted meanwhile, so that nobody takes the worker for dead.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TextIO

log = logging.getLogger(__name__)

_COUNT = 1.0  # seconds between two counts on a terminal; what is shorter shows none


class LoadProgress:
    """The loads of one renderer. For one event loop."""

    def __init__(self, device: str, terminal: TextIO | None = None) -> None:
        """
        Args:
            terminal: where to count, if it is one; None: stderr.
        """
        self._device = device
        self._terminal = terminal or sys.stderr
        self._name = ""  # of the model being loaded
        self._began = 0.0
        self._count: asyncio.Task[None] | None = None

    def begin(self, name: str, source: str) -> None:
        """A model is looked for, or found and being loaded."""
        if self._name == name:
            return
        self.end()
        self._name, self._began = name, time.monotonic()
        log.info("loading model", extra={"model": name, "source": source, "device": self._device})
        if self._terminal.isatty():
            self._count = asyncio.get_running_loop().create_task(self._counts(name, source))

    def done(self, name: str, *, source: str, dtype: str, size: int) -> None:
        """A model is loaded; `size` is what its weights take, in bytes."""
        seconds = time.monotonic() - self._began if self._name == name else 0.0
        self.end()
        facts = {"model": name, "source": source, "device": self._device, "dtype": dtype}
        log.info("model loaded", extra=facts | {"mib": round(size / 2**20), "seconds": round(seconds, 1)})

    def end(self) -> None:
        """Whatever was being loaded, the renderer does something else now."""
        self._name = ""
        if self._count is not None:
            self._count.cancel()
            self._count = None
            self._show("")

    async def _counts(self, name: str, source: str) -> None:
        while True:
            await asyncio.sleep(_COUNT)
            self._show(f"loading {name} from {source}: {time.monotonic() - self._began:.0f} s")

    def _show(self, text: str) -> None:
        self._terminal.write(f"\r\x1b[K{text}")
        self._terminal.flush()
