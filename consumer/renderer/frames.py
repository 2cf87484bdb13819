"""How parent and child speak over a pipe: one frame a message.

A frame is two 4-byte lengths (header, blobs), a JSON header, and the raw blobs. Pixels are
blobs; nothing is unpickled, so a child that has gone bad cannot make its parent run code.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from consumer.renderer.protocol import Drawn, Event, ImageTask, Lora, RawPicture, Ready, Stepped, Undrawable

if TYPE_CHECKING:
    import asyncio

_LENGTHS = struct.Struct(">II")
_KINDS: dict[str, type[Any]] = {k.__name__: k for k in (ImageTask, Ready, Stepped, Drawn, Undrawable)}
MAX_BLOBS = 1 << 30  # bytes; a frame that claims more is noise on the pipe


class BadFrame(Exception):
    """What came over the pipe is no frame."""


def pack(message: ImageTask | Event | dict[str, Any]) -> bytes:
    """A message as bytes. A dict travels as it is: settings, and orders such as `{"cancel": id}`."""
    blobs: list[bytes] = []
    body = message if isinstance(message, dict) else _fields(message, blobs)
    kind = "" if isinstance(message, dict) else type(message).__name__
    header = json.dumps({"kind": kind, "body": body}).encode()
    payload = b"".join(blobs)
    return _LENGTHS.pack(len(header), len(payload)) + header + payload


def _fields(message: Any, blobs: list[bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, RawPicture):
            blobs.append(value.data)
            value = {"size": [value.width, value.height, value.channels], "bytes": len(value.data)}
        elif field.name == "loras":
            value = [[lora.name, lora.weight] for lora in value]
        elif isinstance(message, Stepped) and field.name == "steps":
            value = [[*name, *steps] for name, steps in value.items()]
        elif isinstance(message, Stepped) and field.name == "previews":
            blobs += [picture.data for picture in value.values()]
            value = [[*name, p.width, p.height, p.channels] for name, p in value.items()]
        found[field.name] = value
    return found


def unpack(header: bytes, blobs: bytes) -> Any:
    """The message again."""
    try:
        document = json.loads(header)
        kind, body = document["kind"], document["body"]
        if not kind:
            return body
        at = 0
        for name, value in body.items():
            if isinstance(value, dict) and "size" in value and "bytes" in value:
                width, height, channels = value["size"]
                body[name] = _picture(blobs[at : at + value["bytes"]], width, height, channels)
                at += value["bytes"]
        if "loras" in body:
            body["loras"] = tuple(Lora(name, weight) for name, weight in body["loras"])
        if kind == "Stepped":
            body["steps"] = {(r, i): (done, total) for r, i, done, total in body["steps"]}
            previews, body["previews"] = body["previews"], {}
            for request, index, *size in previews:
                body["previews"][request, index] = _picture(blobs[at : at + math.prod(size)], *size)
                at += math.prod(size)
        if kind == "Drawn":
            body["warnings"] = tuple((code, text) for code, text in body["warnings"])
        return _KINDS[kind](**body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFrame(str(error)) from error


def _picture(pixels: bytes, width: int, height: int, channels: int) -> RawPicture:
    if len(pixels) != width * height * channels:
        raise BadFrame(f"a picture: {len(pixels)} bytes for {width} x {height} x {channels}")
    return RawPicture(width, height, channels, pixels)


def read(stream: BinaryIO) -> Any | None:
    """The next message of a blocking pipe; None at its end, be it in the middle of a frame."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header, blobs = _checked(lengths)
    text, payload = stream.read(header), stream.read(blobs)
    return unpack(text, payload) if len(text) == header and len(payload) == blobs else None


async def read_async(stream: asyncio.StreamReader) -> Any:
    """The next message. Raises `asyncio.IncompleteReadError` at the end, `BadFrame` on noise."""
    header, blobs = _checked(await stream.readexactly(_LENGTHS.size))
    return unpack(await stream.readexactly(header), await stream.readexactly(blobs))


def _checked(lengths: bytes) -> tuple[int, int]:
    header, blobs = _LENGTHS.unpack(lengths)
    if header > MAX_BLOBS or blobs > MAX_BLOBS:
        raise BadFrame(f"a frame of {header + blobs:,} bytes")
    return header, blobs
