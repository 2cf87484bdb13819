"""What stands for the UNet, the VAE and the text encoders inside a pipeline.

A pipeline runs in a greenlet. When it calls its UNet, it calls a *stand-in*: the call becomes a
`Call`, the greenlet pauses, and the engine gets the call. Later the engine resumes the greenlet
with the answer. The pipeline notices nothing: in everything else (`config`, `dtype`, `device`,
`isinstance`) the stand-in answers as the real module does.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent

from consumer.engine.rows import convert, row_count, signature, tensors_in

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from torch import nn


@dataclass(eq=False, slots=True)
class Call:
    """One paused call of a real module's method: what the engine stacks with others."""

    kind: str  # text | encode | unet | decode
    module: nn.Module
    method: str  # "__call__", "encode" or "decode"
    arguments: dict[str, Any]  # by parameter name
    rows: int  # along the first dimension
    key: Hashable  # calls with equal keys can be stacked
    ticket: int = 0  # order of arrival, set by the engine


class StandIn:
    """Answers as the real module does, except that calls go through the engine."""

    def __init__(self, module: nn.Module, memory: Embeddings | None = None) -> None:
        """Stand for `module`; a text encoder's answers are looked up in `memory` first."""
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_memory", memory)
        object.__setattr__(self, "_names", {})  # method: its parameters' names

    @property  # type: ignore[misc]  # typeshed calls it an attribute
    def __class__(self) -> type:  # pipelines ask isinstance(self.unet, nn.Module)
        return type(self._module)

    def __getattr__(self, name: str) -> Any:
        module = self._module
        if name == "text_model" and not hasattr(module, "text_model"):
            return module  # transformers 5 took this level away; diffusers' clip_skip asks for it
        return getattr(module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("unet" if self._memory is None else "text", "__call__", args, kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("encode", "encode", args, kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("decode", "decode", args, kwargs)

    def modules(self) -> Iterator[Any]:
        """Only itself: pipelines walk through every layer in search of hooks that no model here has."""
        yield self

    @property
    def device(self) -> torch.device:
        return next(self._module.parameters()).device

    def to(self, *_args: Any, **_kwargs: Any) -> StandIn:
        """Stay: many images share the real module, so no single pipeline may move or cast it."""
        return self

    def _ask(self, kind: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self._module
        engine = getcurrent().parent
        if engine is None:  # not inside the engine: behave as the module itself
            return getattr(module, method)(*args, **kwargs)
        if method not in self._names:
            self._names[method] = _parameters(module, method)
        arguments = {**dict(zip(self._names[method], args, strict=False)), **kwargs}
        if kind in ("encode", "decode"):
            arguments.pop("generator", None)  # AutoencoderKL takes it for symmetry and ignores it
            arguments = {name: _cast(value, module) for name, value in arguments.items()}
        if kind == "unet":
            arguments["timestep"] = _one_per_row(arguments["timestep"], arguments["sample"])
        key = (id(module), method, signature(arguments))
        answer = engine.switch(Call(kind, module, method, arguments, row_count(arguments), key))
        if kind == "encode" and args and isinstance(args[0], torch.Tensor):
            return convert(answer, args[0].dtype)  # latents go on in the precision that the picture had
        return answer


class Embeddings:
    """What text encoders answered lately, so that a repeated prompt is not encoded again."""

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
        size = sum(t.numel() * t.element_size() for t in tensors_in(answer))
        if key in self._kept or size > self._max_bytes:
            return
        self._kept[key] = (answer, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed

    def forget(self) -> None:
        """Drop everything: after a model left, its module's identity may be given anew."""
        self._kept.clear()
        self._bytes = 0


def _parameters(module: nn.Module, method: str) -> tuple[str, ...]:
    kind = type(getattr(module, "_orig_mod", module))  # a compiled module hides its parameters' names
    function = getattr(kind, "forward" if method == "__call__" else method)
    return tuple(inspect.signature(function).parameters)[1:]  # without self


def _cast(value: Any, module: nn.Module) -> Any:
    """Bring pictures and latents to the VAE's own precision: it may run in float32 beside a half UNet."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(next(module.parameters()).dtype)
    return value


def _one_per_row(timestep: Any, sample: torch.Tensor) -> torch.Tensor:
    """Give each row its own timestep: (rows,) float32, which is what the UNet makes of it anyway."""
    if not isinstance(timestep, torch.Tensor):
        timestep = torch.tensor(timestep, device=sample.device)
    return timestep.to(sample.device, torch.float32).expand(sample.shape[0])
