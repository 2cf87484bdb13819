"""Progress of loading models: one log line when a load begins, one when it has ended.

A large model may take minutes, above all the first time, when it is downloaded. On a terminal the
seconds are counted meanwhile, so that nobody thinks the worker hangs.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING, TextIO

from consumer import metrics
from consumer.renderer.protocol import Undrawable

if TYPE_CHECKING:
    from consumer.renderer.protocol import Drawn, Loaded

log = logging.getLogger(__name__)

_COUNT = 1.0  # seconds between two updates on a terminal; a shorter load shows none


class LoadProgress:
    """The loads of one renderer. For one event loop."""

    def __init__(self, device: str, terminal: TextIO | None = None) -> None:
        """
        Args:
            terminal: the stream to count on, if it is a terminal; None: stderr.
        """
        self._device = device
        self._terminal = terminal or sys.stderr
        self.loaded: dict[str, int] = {}  # bytes of the models in the child's memory, by name
        self.missing: dict[
            str, str
        ] = {}  # why models were not available when they were last looked for, by name
        self._name = ""  # of the model being loaded
        self._began = 0.0
        self._counter: asyncio.Task[None] | None = None

    def begin(self, name: str, source: str) -> None:
        """A model is being looked for or loaded; both are reported, and only the first is logged."""
        if self._name == name:
            return
        self.end()
        self._name, self._began = name, time.monotonic()
        log.info("loading model", extra={"model": name, "source": source, "device": self._device})
        if self._terminal.isatty():
            self._counter = asyncio.get_running_loop().create_task(self._count(name, source))

    def done(self, model: Loaded) -> None:
        """A model is loaded."""
        seconds = time.monotonic() - self._began if self._name == model.name else 0.0
        self.end()
        self.loaded = dict(model.on_device)
        self.missing.pop(model.name, None)
        metrics.loaded(self._device, model.name, seconds, model.on_device)
        facts: dict[str, object] = {
            "model": model.name,
            "source": model.source,
            "device": self._device,
            "dtype": model.dtype,
        }
        facts |= {"mib": round(model.size / 2**20), "seconds": round(seconds, 1)}
        log.info("model loaded", extra=facts | ({"joins": model.probed} if model.probed else {}))

    def answered(self, model: str, event: Drawn | Undrawable) -> None:
        """Take note of a model that was not available."""
        if isinstance(event, Undrawable) and event.code == "model_unavailable":
            self.missing[model] = event.message

    def end(self) -> None:
        """Nothing is being loaded any more, whether the load succeeded or not."""
        self._name = ""
        if self._counter is not None:
            self._counter.cancel()
            self._counter = None
            self._show("")

    async def _count(self, name: str, source: str) -> None:
        while True:
            await asyncio.sleep(_COUNT)
            self._show(f"loading {name} from {source}: {time.monotonic() - self._began:.0f} s")

    def _show(self, text: str) -> None:
        self._terminal.write(f"\r\x1b[K{text}")
        self._terminal.flush()
