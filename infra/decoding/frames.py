"""What parent and child say to each other: a frame is a JSON object, and the bytes that follow it.

The object's `sizes` are the lengths of those bytes. Reading builds plain values and nothing else, so a child
that misbehaves cannot make its parent run code.
"""

from __future__ import annotations

import json
import struct
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_HEAD = 64 << 20  # bytes of the JSON object; a longer one is noise on the pipe
_LENGTH = struct.Struct(">I")


class BadFrame(Exception):
    """The bytes on the pipe are not a frame, or there is nothing more on it. The text quotes none of them."""


def write(stream: IO[bytes], head: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Write one frame. Raises `OSError` if the other side is gone."""
    text = json.dumps({**head, "sizes": [len(blob) for blob in blobs]}).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read(stream: IO[bytes], max_bytes: int) -> tuple[dict[str, Any], list[bytes]]:
    """The next frame of a blocking pipe.

    Args:
        max_bytes: of all that follows the JSON object.

    Raises:
        BadFrame: the pipe has ended, or this is noise.
    """
    length = _LENGTH.unpack(_exactly(stream, _LENGTH.size))[0]
    if length > MAX_HEAD:
        raise BadFrame(f"a head of {length:,} bytes")
    try:
        head = json.loads(_exactly(stream, length))
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"{length:,} bytes that are not JSON") from error
    sizes = head.pop("sizes", None) if isinstance(head, dict) else None
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise BadFrame("a head without sizes")
    if sum(sizes) > max_bytes:
        raise BadFrame(f"{sum(sizes):,} bytes, where {max_bytes:,} are the most")
    return head, [_exactly(stream, size) for size in sizes]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise BadFrame("the pipe has ended")
    return data
