"""The header of a safetensors file: which tensors it holds, without reading them. No torch here."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 100 << 20  # bytes, as the safetensors library allows


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by its name.

    Raises:
        ValueError: it is not a safetensors file, or not a whole one; the message says which.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        start = stream.read(8)
        if not start:
            raise ValueError("it is empty")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else math.inf
        if length > _LONGEST:
            raise ValueError("it is not a safetensors file")
        text = stream.read(int(length))
    if len(text) < length:
        raise ValueError("it ends too early; is the download complete?")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
        size = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError("it is not a safetensors file") from error
    if file.stat().st_size < 8 + length + size:
        raise ValueError("it ends too early; is the download complete?")
    return shapes
