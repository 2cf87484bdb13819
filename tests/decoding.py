"""What tests of the decoder share: its processes, and a small file that costs it much."""

from __future__ import annotations

import io
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


def many_scans(side: int = 4096, scans: int = 1000) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition goes over all blocks of the picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]
