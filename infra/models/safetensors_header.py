"""The header of a safetensors file: which tensors it holds, without reading them. No torch here."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of one number, by its type as files name it
_LONGEST = 100 << 20  # bytes, as the safetensors library allows


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file."""

    dtype: str  # F32, F16, BF16, ...
    shape: tuple[int, ...]
    begin: int  # in the file, bytes
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its numbers."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by its name. Raises as `read_header` does."""
    return {name: entry.shape for name, entry in read_header(file).entries.items()}


def read_header(file: Path) -> Header:
    """Read a header, and check that the file is as long as it says.

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
        document = json.loads(text)
        metadata = document.pop("__metadata__", None) or {}
        entries = {}
        for name, entry in document.items():
            begin, end = map(int, entry["data_offsets"])
            shape, dtype = tuple(map(int, entry["shape"])), str(entry["dtype"])
            needed = BYTES[dtype] * math.prod(shape) if dtype in BYTES else end - begin
            if not 0 <= begin <= end or needed != end - begin:
                raise ValueError
            entries[name] = Entry(dtype, shape, 8 + int(length) + begin, end - begin)
        header = Header(entries, {str(name): str(value) for name, value in metadata.items()})
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError("it is not a safetensors file") from error
    if file.stat().st_size < max((e.begin + e.size for e in entries.values()), default=0):
        raise ValueError("it ends too early; is the download complete?")
    return header
