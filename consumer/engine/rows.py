"""Rows: stack the arguments of several calls, and split the answer into each call's rows.

A *row* is one index of the first dimension: one latent, one picture, one prompt. Everything
here walks nested dicts, lists, tuples and model outputs; only tensors are touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Hashable

_PLAIN = frozenset({bool, int, float, str, type(None)})


class Entries(list[Any]):
    """An answer's rows where their shapes differ: a list with an entry for each row."""


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor inside an argument or an answer."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "parameters") and isinstance(value.parameters, torch.Tensor):
        yield value.parameters


def row_count(arguments: Mapping[str, Any]) -> int:
    """Rows of a call: the first dimension of its first tensor."""
    first = next(iter(arguments.values()))
    if not isinstance(first, torch.Tensor):
        first = next(tensors_in(arguments))
    return int(first.shape[0])


def signature(value: Any) -> Hashable:
    """What must be equal for two calls to be stacked: everything but the tensors' numbers and the row count."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is torch.Tensor or isinstance(value, torch.Tensor):
        return (value.shape[1:], value.dtype, value.device)
    if kind is dict or isinstance(value, Mapping):
        parts = [(name, value[name]) for name in sorted(value)]
        return tuple([(n, v) if type(v) in _PLAIN else (n, signature(v)) for n, v in parts])
    if isinstance(value, tuple | list):
        return (kind, *[signature(part) for part in value])
    return ("unique", id(value))  # an unknown type: never stacked


def stack(arguments: Sequence[Any]) -> Any:
    """Join the same argument of several calls along the rows."""
    first = arguments[0]
    if isinstance(first, torch.Tensor):
        return first if len(arguments) == 1 else torch.cat(list(arguments))
    if isinstance(first, Mapping):
        return {name: stack([each[name] for each in arguments]) for name in first}
    if isinstance(first, tuple | list):
        return type(first)(stack(parts) for parts in zip(*arguments, strict=True))
    return first


def take(value: Any, start: int, stop: int) -> Any:
    """Rows start to stop of an argument or an answer, in the same structure."""
    if isinstance(value, torch.Tensor):
        return value[start:stop]
    if isinstance(value, Entries):
        return Entries(value[start:stop])
    if isinstance(value, Mapping):
        parts = {name: take(part, start, stop) for name, part in value.items()}
        return parts if type(value) is dict else type(value)(**parts)
    if isinstance(value, tuple | list):
        return type(value)(take(part, start, stop) for part in value)
    if hasattr(value, "parameters") and isinstance(value.parameters, torch.Tensor):
        return type(value)(value.parameters[start:stop])  # a Gaussian over latents
    return value


def split(value: Any, sizes: Sequence[int]) -> list[Any]:
    """An answer's rows in parts of these sizes, each in the same structure."""
    if isinstance(value, torch.Tensor):
        return list(torch.split_with_sizes(value, list(sizes)))
    if type(value) is tuple:
        return list(zip(*[split(part, sizes) for part in value], strict=True))
    parts, start = [], 0
    for size in sizes:
        parts.append(take(value, start, start + size))
        start += size
    return parts


def only_layers(answer: Any, layers: Sequence[int]) -> Any:
    """A text encoder's answer without the hidden states that nobody reads: all of them may be 100 MB for one prompt.

    Args:
        layers: their places, also from the end; empty: all are kept.
    """
    states = answer.get("hidden_states") if layers and isinstance(answer, Mapping) else None
    if states is None:
        return answer
    read = {layer % len(states) for layer in layers}
    kept = tuple(state if place in read else None for place, state in enumerate(states))
    return type(answer)(**{**answer, "hidden_states": kept})


def convert(value: Any, dtype: torch.dtype) -> Any:
    """The same answer with its tensors in another precision."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype)
    if isinstance(value, Mapping):
        parts = {name: convert(part, dtype) for name, part in value.items()}
        return parts if type(value) is dict else type(value)(**parts)
    if isinstance(value, tuple | list):
        return type(value)(convert(part, dtype) for part in value)
    if hasattr(value, "parameters") and isinstance(value.parameters, torch.Tensor):
        return value if value.parameters.dtype == dtype else type(value)(value.parameters.to(dtype))
    return value


def join(answers: Sequence[Any]) -> Any:
    """Join the answers of one call's pieces along the rows."""
    first = answers[0]
    if len(answers) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(answers))
    if isinstance(first, Entries):
        return Entries(entry for answer in answers for entry in answer)
    if isinstance(first, Mapping):
        parts = {name: join([answer[name] for answer in answers]) for name in first}
        return parts if type(first) is dict else type(first)(**parts)
    if isinstance(first, tuple | list):
        return type(first)(join(parts) for parts in zip(*answers, strict=True))
    if hasattr(first, "parameters") and isinstance(first.parameters, torch.Tensor):
        return type(first)(torch.cat([answer.parameters for answer in answers]))
    return first
