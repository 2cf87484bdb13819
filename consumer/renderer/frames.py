"""Messages as bytes on a pipe: a frame is four bytes of length and one message in msgpack.

Decoding builds the types of `protocol` and nothing else, so a child that misbehaves cannot make its
parent run code.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from consumer.renderer.protocol import Message

if TYPE_CHECKING:
    import asyncio

MAX_BYTES = 1 << 30  # of a frame; a longer one is noise on the pipe
_LENGTH = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class BadFrame(Exception):
    """The bytes on the pipe are not a message. The text quotes none of them."""


def pack(message: Message) -> bytearray:
    """A message as a frame. Pixels are copied once."""
    frame = bytearray(_LENGTH.size)
    try:
        _ENCODER.encode_into(message, frame, _LENGTH.size)
    except UnicodeEncodeError:  # an unpaired surrogate, as in a path that is not UTF-8: only JSON can hold it
        frame[_LENGTH.size :] = json.dumps(msgspec.to_builtins(message)).encode()
    _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
    return frame


def unpack(body: bytes) -> Message:
    """The message in a frame's body. Raises `BadFrame`."""
    try:
        if body.startswith(b"{"):  # JSON: no message in msgpack begins so
            return msgspec.convert(json.loads(body), Message)
        return _DECODER.decode(body)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"{len(body):,} bytes that are not a message") from error


def read(stream: BinaryIO) -> Message | None:
    """The next message of a blocking pipe; None at its end, also in the middle of a frame."""
    prefix = stream.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    length = _length(prefix)
    body = stream.read(length)
    return unpack(body) if len(body) == length else None


async def read_async(stream: asyncio.StreamReader) -> Message:
    """The next message. Raises `asyncio.IncompleteReadError` at the end, `BadFrame` on noise."""
    return unpack(await stream.readexactly(_length(await stream.readexactly(_LENGTH.size))))


def _length(prefix: bytes) -> int:
    length: int = _LENGTH.unpack(prefix)[0]
    if length > MAX_BYTES:
        raise BadFrame(f"a frame of {length:,} bytes")
    return length
