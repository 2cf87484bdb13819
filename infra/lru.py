"""A bounded cache."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LruCache(MutableMapping[K, V]):
    """A mapping that keeps the `size` entries that were used last. For one event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[K, V] = {}  # the least recently used first

    def __getitem__(self, key: K) -> V:
        value = self._entries[key] = self._entries.pop(key)  # now the most recently used
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self._entries.pop(key, None)
        self._entries[key] = value
        if len(self._entries) > self._size:
            del self._entries[next(iter(self._entries))]

    def __delitem__(self, key: K) -> None:
        del self._entries[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
