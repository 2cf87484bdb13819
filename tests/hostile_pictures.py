"""Small files within all limits that cost their decoder much."""

from __future__ import annotations

import io

from PIL import Image


def many_scans(side: int = 4096, scans: int = 1000) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition goes over all blocks of the picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]
