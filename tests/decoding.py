"""What tests of the decoder share: its processes, and a small file that costs it much."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image


def decoder_children(parent: int) -> list[Path]:
    """The folders in /proc of the decoder children that a process has."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"infra.decoding" in words and f"PPid:\t{parent}\n" in (entry / "status").read_text():
                found.append(entry)
        except OSError:  # it ended meanwhile
            continue
    return found


@contextlib.contextmanager
def killed_decoders() -> Iterator[None]:
    """Kill each decoder child of this process at once, until the block is left."""
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.01):
            for child in decoder_children(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child.name), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()


def many_scans(side: int = 4096, scans: int = 1000) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition goes over all blocks of the picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]
