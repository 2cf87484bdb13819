"""The renderer child: torch, one device, no credentials, no store.

A thread reads tasks; the main thread steps the engine and says what came of it. When the device
is lost the process ends with status 75 and its parent starts another: a broken CUDA context
cannot be mended from within.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from consumer.renderer import frames
from consumer.renderer.protocol import STICKY, Event, ImageTask, Ready


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")  # ours alone; whatever a library prints goes to stderr
    os.dup2(2, 1)
    settings = frames.read(sys.stdin.buffer)
    if settings is None:
        return
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    try:
        _draw(settings, messages, out)
    except BrokenPipeError:
        os._exit(0)  # the parent is gone


def _listen(stream: BinaryIO, messages: queue.SimpleQueue[Any]) -> None:
    try:
        while (message := frames.read(stream)) is not None:
            messages.put(message)
    finally:  # the parent is gone, or talks nonsense: either way nobody needs us
        sys.stderr.flush()
        os._exit(0)


def _draw(settings: dict[str, Any], messages: queue.SimpleQueue[Any], out: BinaryIO) -> None:
    """Load, say `Ready`, and step until the parent is gone."""
    import torch

    from consumer.engine.device_errors import StickyDeviceError
    from consumer.engine.devices import describe_device
    from consumer.engine.engine import Engine
    from consumer.engine.registry import ModelRegistry
    from consumer.models.cards import Cards

    def write(message: Event | dict[str, Any]) -> None:
        out.write(frames.pack(message))
        out.flush()

    _quiet()
    registry = ModelRegistry(
        Cards.of(f"{name}={source}" for name, source in settings["models"]),
        device=settings["device"],
        dtype="" if settings["dtype"] == "auto" else settings["dtype"],
        attention=settings["attention"],
        offload=settings["offload"],
        memory_budget=settings["memory_budget"],
        loras={name: Path(file) for name, file in settings["loras"]},
        offline=os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        on_load=lambda name, source: write({"loading": name, "source": source}),
        on_loaded=lambda model: write({"loaded": model.card.name, "bytes": model.bytes, **_of(model.record)}),
    )
    engine = Engine(
        registry,
        emit=write,
        max_rows=settings["max_rows"],
        exact=settings["exact"],
        complain=lambda text: write({"complaint": text}),
    )
    dtype = settings["dtype"]
    try:
        if settings["preload"]:
            dtype = registry.get(settings["preload"]).record["dtype"]
        write(Ready(describe_device(settings["device"]), dtype, _versions(torch)))
        while True:
            _heed(engine, messages, block=not engine.busy)
            engine.step()
    except StickyDeviceError as error:
        print(f"the device is lost: {error}", file=sys.stderr, flush=True)
        os._exit(STICKY)


def _heed(engine: Any, messages: queue.SimpleQueue[Any], *, block: bool) -> None:
    """Take in what the parent said; with nothing to draw, wait for it."""
    while True:
        try:
            message = messages.get(block=block)
        except queue.Empty:
            return
        block = False
        if isinstance(message, ImageTask):
            engine.submit(message)
        elif "cancel" in message:
            engine.cancel(message["cancel"])


def _of(record: dict[str, str]) -> dict[str, str]:
    return {"source": record["source"], "dtype": record["dtype"]}


def _versions(torch: Any) -> dict[str, str]:
    import diffusers
    import transformers

    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def _quiet() -> None:
    """Progress bars and advice of the libraries are nobody's here."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    main()
