"""Joins the calls of several images into one, by what `denoisers` says of the module's arguments.

`Keys` tell which calls may be joined, `stack` joins them, and `take` cuts rows out of joined arguments. Answers have
their rows along the first dimension, or are `rows.Entries`; `rows` splits them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from consumer.engine import rows
from consumer.engine.batch_size import KINDS
from consumer.engine.denoisers import PLAIN, Denoiser, Text
from infra.lru import LruCache

if TYPE_CHECKING:
    from collections.abc import Hashable

    from consumer.engine.call import Call

Arguments = Mapping[str, Any]


def alone(call: Call) -> bool:
    """Whether a call is made as it comes: nobody knows its rows, or the pipeline keeps something in it."""
    return not call.layout.joins or not call.layout.state.isdisjoint(call.arguments)


def count(layout: Denoiser, arguments: Arguments) -> int:
    """The rows of a call; 1 where nobody knows them."""
    if not layout.joins:
        return 1
    latents = arguments.get(layout.latents)
    return len(latents) if isinstance(latents, list) else rows.row_count(arguments)


_numbers = itertools.count()


class Keys:
    """Numbers the kinds of calls: those with equal numbers can run as one. Numbers are compared at no cost."""

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._known: LruCache[Hashable, int] = LruCache(KINDS)

    def give(self, call: Call, before: Call | None, state: Hashable, *, apart: bool) -> bool:
        """Give a call the number of its kind, and of its size where sizes share calls.

        Args:
            before: the image's call before it, if known.
            state: what the module is switched to, such as its LoRAs.
            apart: sizes do not share calls. In exact mode they never do: the largest of the company decides how far
                each row is padded, which changes the last bits of its numbers.

        Returns whether it is of the kind of the call before.
        """
        if before is not None and alike(call, before):
            call.key, call.own, call.size = before.key, before.own, before.size
            return True
        call.key = self._number(key(call, exact=self._exact), state)
        if call.layout.sizes and not (apart or self._exact or alone(call)):
            call.own, call.size = call.key, _size(call)
            call.key = self._number(key(call, exact=False, mixed=True), state)
        return False

    def _number(self, kind: Hashable, state: Hashable) -> int:
        return self._known.setdefault((kind, state), next(_numbers))


def alike(call: Call, before: Call) -> bool:
    """Whether two calls of one image differ at most in the values of latents and time; then their kind is the same."""
    layout, then = call.layout, before.arguments
    if call.module is not before.module or call.method != before.method:
        return False
    if call.arguments.keys() != then.keys() or not layout.joins or not layout.state.isdisjoint(then):
        return False
    for name, value in call.arguments.items():
        if value is then[name]:
            continue
        if name not in (layout.latents, layout.time) or not isinstance(value, torch.Tensor):
            return False
        if value.shape != then[name].shape or value.dtype != then[name].dtype:
            return False
    return True


def key(call: Call, *, exact: bool, mixed: bool = False) -> Hashable:
    """What must be equal for two calls to be joined.

    Args:
        exact: only calls whose rows do not depend on each other's text are joined.
        mixed: latents of several sizes are joined where the module takes them.
    """
    layout, of = call.layout, (id(call.module), call.method)
    if alone(call):
        return (*of, "alone", id(call))
    if not (layout.shared or layout.lists or layout.text or (exact and layout.reads_length)):
        return (*of, rows.signature(call.arguments))
    parts = [(name, _part(layout, name, call.arguments, exact, mixed)) for name in sorted(call.arguments)]
    return (*of, *(part for part in parts if part[1] is not None))


def _part(layout: Denoiser, name: str, arguments: Arguments, exact: bool, mixed: bool) -> Hashable:
    """What must be equal of one argument; None: nothing."""
    value, text = arguments[name], layout.text
    if name in layout.shared:
        return tuple(map(_digest, rows.tensors_in(value)))
    if name in layout.ragged:
        return tuple(map(len, value)) if exact else rows.signature(value[0])
    if name in layout.lists:
        return frozenset(map(_sizeless if mixed and name == layout.latents else _whole, value))
    if text is not None and name == text.mask:
        return None
    if text is not None and name == text.states:
        return (value.shape[2:], value.dtype, _padded(value.shape[1], text) if exact else 0)
    if exact and name == layout.reads_length:
        return (value.shape[1:], *value.sum(dim=1).tolist())
    return rows.signature(value)


def stack(calls: Sequence[Call], *, exact: bool) -> dict[str, Any]:
    """The arguments of one call for the rows of all; the calls have equal keys."""
    layout, several = calls[0].layout, [call.arguments for call in calls]
    text = layout.text
    if text is None:
        return _below(layout, several)
    lengths = {arguments[text.states].shape[1] for arguments in several}
    if not exact and len(lengths) == 1 and not any(text.mask in arguments for arguments in several):
        return _below(layout, several)
    longest = _padded(max(lengths), text) if exact else max(lengths)
    return _below(layout, [_with_padded_text(arguments, text, longest) for arguments in several])


def take(layout: Denoiser, arguments: Arguments, start: int, stop: int) -> dict[str, Any]:
    """Rows start to stop of joined arguments."""
    return {name: _cut(layout, name, value, start, stop) for name, value in arguments.items()}


def pad(layout: Denoiser, arguments: Arguments, now: int, to: int) -> Arguments:
    """Repeat the last row until there are `to` rows."""
    if now >= to:
        return arguments
    last = take(layout, arguments, now - 1, now)
    return _below(layout, [arguments, *[last] * (to - now)])


def answered(layout: Denoiser, answer: Any) -> Any:
    """A module's answer with its rows along the first dimension, or as entries."""
    return (rows.Entries(answer[0]), *answer[1:]) if layout.answers_lists else answer


def _below(layout: Denoiser, several: Sequence[Arguments]) -> dict[str, Any]:
    if layout is PLAIN or len(several) == 1:
        return dict(rows.stack(several))
    joined: dict[str, Any] = {}
    for name, first in several[0].items():
        if name in layout.shared:
            joined[name] = first
        elif name in layout.lists:
            joined[name] = [entry for arguments in several for entry in arguments[name]]
        else:
            joined[name] = rows.stack([arguments[name] for arguments in several])
    return joined


def _cut(layout: Denoiser, name: str, value: Any, start: int, stop: int) -> Any:
    if name in layout.shared:
        return value
    return list(value[start:stop]) if name in layout.lists else rows.take(value, start, stop)


def _with_padded_text(arguments: Arguments, text: Text, longest: int) -> dict[str, Any]:
    states = arguments[text.states]
    mask = arguments.get(text.mask)
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    more = longest - states.shape[1]
    return {
        **arguments,
        text.states: functional.pad(states, (0, 0, 0, more)),
        text.mask: functional.pad(mask.bool(), (0, more)),
    }


def _padded(length: int, text: Text) -> int:
    return -(-length // text.longest) * text.longest


def _whole(value: Any) -> Hashable:
    """What must be equal of an entry that is a row."""
    if isinstance(value, torch.Tensor):
        return (value.shape, value.dtype, value.device)
    return tuple(map(_whole, value)) if isinstance(value, list | tuple) else value


def _sizeless(value: Any) -> Hashable:
    """The same without the last two dimensions, height and width."""
    if isinstance(value, torch.Tensor):
        return (value.shape[:-2], value.dtype, value.device)
    return _whole(value)


def _size(call: Call) -> int:
    """What a row of a call costs: the places of its largest latents, padded, in the module's unit."""
    latents = rows.tensors_in(call.arguments[call.layout.latents])
    return max(-(-one.shape[-2:].numel() // call.layout.sizes) for one in latents)


def _digest(tensor: torch.Tensor) -> Hashable:
    """What tells a tensor's values from others'. A pipeline passes the same object at each step: it is read once."""
    known: Hashable = getattr(tensor, "_digest", None)
    if known is None:
        data = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        known = (tuple(tensor.shape), tensor.dtype, hashlib.blake2b(data, digest_size=16).digest())
        tensor._digest = known  # type: ignore[attr-defined]
    return known
