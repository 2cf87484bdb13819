"""What fits into a queue's message, and how many messages fit into one call."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

BATCH = 10  # entries of one call
MAX_BYTES = 1 << 20  # of one message, and of one call, unless the queue allows less
#: What a message may not hold: XML has no such characters, and SQS still thinks in XML.
_UNSENDABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def is_sendable(body: str) -> bool:
    """Whether a queue carries this text: not empty, and no control characters in it."""
    return bool(body) and not _UNSENDABLE.search(body)


def size_of(body: str, attributes: Mapping[str, str] | None = None) -> int:
    """Bytes of a message as the queue counts them: an attribute's name, type and value, too."""
    named = sum(len(k.encode()) + len("String") + len(v.encode()) for k, v in (attributes or {}).items())
    return len(body.encode("utf-8", "surrogatepass")) + named


def fitting(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Neighbours that fit in one call together."""
    batch: list[int] = []
    room = 0
    for number, size in enumerate(sizes):
        if batch and (len(batch) == BATCH or room + size > limit):
            yield batch
            batch, room = [], 0
        batch.append(number)
        room += size
    if batch:
        yield batch


def tens(messages: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many as one call takes, in turn."""
    for start in range(0, len(messages), BATCH):
        yield messages[start : start + BATCH]
