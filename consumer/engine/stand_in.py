"""Stand-ins for the denoiser (a UNet or a transformer), the VAE and the text encoders inside a pipeline.

A pipeline runs in a greenlet. When it calls its denoiser, it calls a *stand-in*: the call becomes a
`Call`, the greenlet pauses, and the engine gets the call. Later the engine resumes the greenlet
with the answer. The pipeline cannot tell: in everything else (`config`, `dtype`, `device`,
`isinstance`) the stand-in behaves as the real module does.

Each different text is encoded once, with the pictures that belong to it: answers of text encoders are cached.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent

from consumer.engine import joining, rows
from consumer.engine.call import Call
from consumer.engine.denoisers import DENOISERS, SIDES, UNKNOWN, Denoiser
from consumer.engine.device_call import DeviceCaller, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

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
        side = kind.__name__ in SIDES
        object.__setattr__(
            self, "_kind", "text" if is_text_encoder else "side" if side else "unet"
        )  # of `__call__`
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
