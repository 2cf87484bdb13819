"""The renderer child: torch, one device, no credentials, no store. `python -m consumer.engine` starts it.

A thread reads tasks from stdin; the main thread steps the engine and writes its events to stdout. When
the device is lost the process ends with status 75 and its parent starts another: a broken CUDA
context cannot be repaired from within.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from consumer.renderer import frames
from consumer.renderer.protocol import (
    DEVICE_LOST,
    Cancel,
    Complaint,
    ImageTask,
    Message,
    Ready,
    RendererSettings,
)

if TYPE_CHECKING:
    from consumer.engine.engine import Engine


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")  # ours alone; whatever a library prints goes to stderr
    os.dup2(2, 1)
    # Not `sys.stdin`: Python closes that at its exit and aborts while the thread below still reads from it.
    source = os.fdopen(os.dup(0), "rb")
    settings = frames.read(source)
    if not isinstance(settings, RendererSettings):
        return  # the parent is gone
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(source, messages), daemon=True).start()
    try:
        _draw(settings, messages, out)
    except BrokenPipeError:
        os._exit(0)  # the parent is gone


def _listen(stream: BinaryIO, messages: queue.SimpleQueue[Message]) -> None:
    try:
        while (message := frames.read(stream)) is not None:
            messages.put(message)
    finally:  # the parent is gone, or sends noise: either way nobody needs this process
        sys.stderr.flush()
        os._exit(0)


def _draw(settings: RendererSettings, messages: queue.SimpleQueue[Message], out: BinaryIO) -> None:
    """Load, send `Ready`, and step until the parent is gone."""
    from consumer.engine.device_errors import StickyDeviceError
    from consumer.engine.devices import describe_device
    from consumer.engine.engine import Engine
    from consumer.engine.loading.libraries import quiet
    from consumer.engine.loading.registry import ModelRegistry
    from infra.models.addons.known import Addons
    from infra.models.cards import Cards

    def send(message: Message) -> None:
        out.write(frames.pack(message))
        out.flush()

    quiet()
    addons = Addons.of(*(map("=".join, pairs) for pairs in (settings.controlnets, settings.ip_adapters)))
    registry = ModelRegistry(
        replace(Cards.of(f"{name}={source}" for name, source in settings.models), addons=addons),
        device=settings.device,
        dtype="" if settings.dtype == "auto" else settings.dtype,
        attention=settings.attention,
        offload=settings.offload,
        quantize=settings.quantize,
        memory_budget=settings.memory_budget,
        loras={name: Path(file) for name, file in settings.loras},
        probing=not settings.exact,
        offline=os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        emit=send,
    )
    engine = Engine(
        registry, emit=send, max_rows=settings.max_rows, exact=settings.exact, measure=settings.measure
    )
    if settings.compile != "off":
        from consumer.engine.compiling import Compiler

        kept = Path(settings.compiled) if settings.compiled else None
        engine.caller.compiler = Compiler(
            settings.compile, complain=lambda text: send(Complaint(text)), cache=kept
        )
    dtype = settings.dtype
    try:
        if settings.preload:
            if settings.preload_folder:
                registry.learn(settings.preload, settings.preload_folder)
            dtype = registry.get(settings.preload).record["dtype"]
        send(Ready(describe_device(settings.device), dtype, _versions()))
        while True:
            _take_messages(engine, messages, block=not engine.busy)
            engine.step()
    except StickyDeviceError as error:
        print(f"the device is lost: {error}", file=sys.stderr, flush=True)
        os._exit(DEVICE_LOST)


def _take_messages(engine: Engine, messages: queue.SimpleQueue[Message], *, block: bool) -> None:
    """Pass on what the parent sent; with nothing to draw, wait for it."""
    while True:
        try:
            message = messages.get(block=block)
        except queue.Empty:
            return
        block = False
        if isinstance(message, ImageTask):
            engine.submit(message)
        elif isinstance(message, Cancel):
            engine.cancel(message.request)


def _versions() -> dict[str, str]:
    import diffusers
    import torch
    import transformers

    return {library.__name__: str(library.__version__) for library in (torch, diffusers, transformers)}


if __name__ == "__main__":
    main()
