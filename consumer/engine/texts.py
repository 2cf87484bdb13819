"""Calls of text encoders: each different text is encoded once, with the pictures that belong to it, and remembered."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine import rows
from consumer.engine.device_call import DeviceCaller, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from consumer.engine.call import Call


class Embeddings:
    """A cache of text encoder answers, bounded in bytes: a repeated prompt is not encoded again."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes

    def get(self, key: Hashable) -> Any | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, answer: Any) -> None:
        size = sum(t.numel() * t.element_size() for t in rows.tensors_in(answer))
        if key in self._kept or size > self._max_bytes:
            return
        self._kept[key] = (answer, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed

    def forget(self) -> None:
        """Drop everything. Needed when a model is evicted: keys hold `id(module)`, which Python may reuse."""
        self._kept.clear()
        self._bytes = 0


def encode_texts(
    caller: DeviceCaller,
    cache: Embeddings,
    calls: Sequence[Call],
    key: Hashable,
    state: Hashable,
    ready: Callable[[], None],
) -> list[tuple[Call, Any | Failure]]:
    """Answer text encoder calls that can be stacked; each different text is encoded once, then cached.

    Args:
        key: of the calls; one with pictures has a key that no other has.
        state: what the module is switched to, on which its answers depend.
    """
    state = (id(calls[0].module), state)
    alike: dict[bytes, list[Call]] = {}
    for call in calls:
        alike.setdefault(_seen(call), []).append(call)
    answers = {seen: cache.get((state, seen)) for seen in alike}
    new = {id(equal[0]): seen for seen, equal in alike.items() if answers[seen] is None}
    if new:
        for call, answer in caller.run([call for call in calls if id(call) in new], key, ready):
            answer = answer if isinstance(answer, Failure) else rows.only_layers(answer, call.layers)
            answers[new[id(call)]] = answer
            if not isinstance(answer, Failure):
                cache.put((state, new[id(call)]), answer)
    return [(call, answers[seen]) for seen, equal in alike.items() for call in equal]


def _seen(call: Call) -> bytes:
    """A hash of everything that a text encoder is given: equal prompts and pictures, equal bytes."""
    seen = hashlib.sha256()
    for name, value in sorted(call.arguments.items()):
        shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in rows.tensors_in(value)]
        seen.update(repr((name, shapes or value)).encode())
        for tensor in rows.tensors_in(value):
            seen.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return seen.digest()
