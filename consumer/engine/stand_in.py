"""Stand-ins for the denoiser (a UNet or a transformer), the VAE and the text encoders inside a pipeline.

A pipeline runs in a greenlet. When it calls its denoiser, it calls a *stand-in*: the call becomes a
`Call`, the greenlet pauses, and the engine gets the call. Later the engine resumes the greenlet
with the answer. The pipeline cannot tell: in everything else (`config`, `dtype`, `device`,
`isinstance`) the stand-in behaves as the real module does.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent

from consumer.engine import joining, rows
from consumer.engine.call import Call
from consumer.engine.denoisers import DENOISERS, SIDES, UNKNOWN, Denoiser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@dataclass(frozen=True, slots=True)
class _Signature:
    """The parameters of a module's method."""

    names: tuple[str, ...]
    optional: frozenset[str]  # None by default
    answers_object: bool  # unless it is told `return_dict=False`

    @classmethod
    def of(cls, module: nn.Module, method: str) -> _Signature:
        kind = type(getattr(module, "_orig_mod", module))  # a compiled module hides its parameters' names
        function = getattr(kind, "forward" if method == "__call__" else method)
        parameters = list(inspect.signature(function).parameters.values())[1:]  # without self
        names = tuple(parameter.name for parameter in parameters)
        optional = frozenset(parameter.name for parameter in parameters if parameter.default is None)
        return cls(names, optional, "return_dict" in names)


class StandIn:
    """Behaves as the real module does, except that calls go through the engine."""

    def __init__(
        self, module: nn.Module, *, is_text_encoder: bool = False, layers: tuple[int, ...] = ()
    ) -> None:
        """`layers`: of a text encoder's hidden states, the ones that the pipeline reads; (): perhaps all."""
        kind = type(getattr(module, "_orig_mod", module))  # a compiled module hides its class
        object.__setattr__(self, "_module", module)
        called = "text" if is_text_encoder else "side" if kind.__name__ in SIDES else "unet"
        object.__setattr__(self, "_kind", called)  # of `__call__`
        object.__setattr__(self, "_layers", layers)
        object.__setattr__(self, "_layout", DENOISERS.get(kind.__name__, UNKNOWN))
        object.__setattr__(self, "_signatures", {})  # by method

    @property  # type: ignore[misc]  # typeshed calls it an attribute
    def __class__(self) -> type:  # pipelines ask isinstance(self.unet, nn.Module)
        return type(self._module)

    def __getattr__(self, name: str) -> Any:
        module = self._module
        if name == "text_model" and not hasattr(module, "text_model"):
            return module  # transformers 5 has no such level; diffusers' clip_skip reads it
        return getattr(module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._pause(self._kind, "__call__", args, kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self._pause("encode", "encode", args, kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return self._pause("decode", "decode", args, kwargs)

    def join_by(self, layout: Denoiser) -> None:
        """Join its calls in another way than the table says."""
        object.__setattr__(self, "_layout", layout)

    @property
    def config(self) -> Any:  # read several times a step: found here, it takes half as long
        return self._module.config

    def modules(self) -> Iterator[Any]:
        """Only itself: pipelines search every layer for hooks, and no model here has any."""
        yield self

    @property
    def device(self) -> torch.device:
        return next(self._module.parameters()).device

    def to(self, *_args: Any, **_kwargs: Any) -> StandIn:
        """Stay: many images share the real module, so no single pipeline may move or cast it."""
        return self

    def _pause(self, kind: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self._module
        engine = getcurrent().parent
        if engine is None:  # outside the engine: call the module itself
            return getattr(module, method)(*args, **kwargs)
        if method not in self._signatures:
            self._signatures[method] = _Signature.of(module, method)
        signature: _Signature = self._signatures[method]
        arguments = {**dict(zip(signature.names, args, strict=False)), **kwargs} if args else kwargs
        if kind in ("unet", "side"):
            return self._denoise(engine, signature, arguments)
        if kind == "text" and "use_cache" in signature.names:
            arguments.setdefault("use_cache", False)  # of keys and values, for generating text
        if kind in ("encode", "decode"):
            arguments.pop("generator", None)  # AutoencoderKL accepts and ignores it
            arguments = {name: _cast(value, module) for name, value in arguments.items()}
        answer = engine.switch(
            Call(kind, module, method, arguments, rows.row_count(arguments), layers=self._layers)
        )
        if kind == "encode" and args and isinstance(args[0], torch.Tensor):
            return rows.convert(answer, args[0].dtype)  # the pipeline continues in the picture's precision
        return answer

    def _denoise(self, engine: Any, signature: _Signature, arguments: dict[str, Any]) -> Any:
        layout: Denoiser = self._layout
        # What one pipeline says and another leaves open must not keep their calls apart.
        optional = signature.optional
        arguments = {k: v for k, v in arguments.items() if v is not None or k not in optional}
        wants_object = arguments.pop("return_dict", True) and signature.answers_object
        if signature.answers_object:
            arguments["return_dict"] = False
        rows = joining.count(layout, arguments)
        if layout.time:
            arguments[layout.time] = _one_per_row(arguments[layout.time], rows, arguments[layout.latents])
        answer = engine.switch(Call(self._kind, self._module, "__call__", arguments, rows, layout=layout))
        if layout.answers_lists:
            answer = (list(answer[0]), *answer[1:])
        return _Answer(answer) if wants_object else answer


class _Answer(tuple[Any, ...]):
    """A denoiser's answer for a pipeline that asks for an object."""

    __slots__ = ()

    @property
    def sample(self) -> Any:
        return self[0]


def _cast(value: Any, module: nn.Module) -> Any:
    """Convert pictures and latents to the VAE's precision, which may be float32 beside a float16 UNet."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(next(module.parameters()).dtype)
    return value


def _one_per_row(timestep: Any, rows: int, latents: Any) -> torch.Tensor:
    """One timestep for each row: (rows,). A UNet converts them to float32 in any case; others get them as they are."""
    device = (latents[0] if isinstance(latents, list) else latents).device
    if not isinstance(timestep, torch.Tensor):
        timestep = torch.tensor(timestep, device=device)
    dtype = timestep.dtype if timestep.dtype in (torch.float16, torch.bfloat16) else torch.float32
    return timestep.to(device, dtype).expand(rows)
