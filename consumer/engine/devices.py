"""Device settings: which device, which precision, which attention kernels, CPU offload; and how long calls take."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from schemas.errors import DreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

T = TypeVar("T")

_SHARE = 0.8  # of a card's memory that weights may take with offload; the rest is for what is computed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class BadDevice(DreamError):
    """A device setting that does not work on this machine; the message says why, and what does."""


def devices(wanted: str = "auto") -> list[str]:
    """The devices that a setting means.

    Args:
        wanted: "auto" (the first GPU, else the CPU), "all" (every GPU, else the CPU), "cpu",
            "cuda", "cuda:1", or several separated by commas.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "all":
        return [f"cuda:{i}" for i in range(count)] or ["cpu"]
    if wanted == "auto":
        return ["cuda:0"] if count else ["cpu"]
    chosen = [part.strip() for part in wanted.split(",") if part.strip()]
    for i, name in enumerate(chosen):
        if name == "cuda":
            chosen[i] = name = "cuda:0"
        known = name == "cpu" or name in {f"cuda:{k}" for k in range(count)}
        if not known:
            have = ", ".join(["cpu", *(f"cuda:{k}" for k in range(count))])
            raise BadDevice(f"this machine has no device {name!r}; it has {have}")
    if not chosen:
        raise BadDevice("no device is named; write auto, all, cpu, or cuda:0")
    return chosen


def pick_dtype(device: str, wanted: str = "") -> torch.dtype:
    """The precision: as set, else float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    if wanted and wanted != "auto":
        name = _SHORT.get(wanted, wanted)
        if name not in DTYPES:
            raise BadDevice(f"unknown precision {wanted!r}; known are {', '.join(DTYPES)}")
        return DTYPES[name]
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(torch.device(device))[0] >= 8 else torch.float16


def describe_device(device: str) -> str:
    """A device as logs and results name it, such as "cuda:0 NVIDIA H100"."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else device


def peak_memory(device: str) -> int | None:
    """Bytes of a GPU's memory that this process had at most since the last question; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def set_attention(denoiser: Any, vae: Any, wanted: str) -> str:
    """Choose the attention kernels of a denoiser and a VAE, and check that they changed.

    `set_attention_backend` silently leaves Stable Diffusion's UNets as they are; the older processor
    interface does change them. Transformers have processors of their own, which call torch's kernels.

    Args:
        wanted: "auto" (torch's own scaled_dot_product_attention), "sdpa" or "xformers".

    Returns:
        What is in use: "sdpa" or "xformers".
    """
    kernels: Any = importlib.import_module("diffusers.models.attention_processor")
    transformer = not type(denoiser).__name__.startswith("UNet")
    modules = [] if transformer else [denoiser, vae]
    if wanted in ("auto", "sdpa"):
        for module in modules:
            if _processors(module):
                module.set_attn_processor(kernels.AttnProcessor2_0())
        kind: type = kernels.AttnProcessor2_0
    elif wanted == "xformers":
        if importlib.util.find_spec("xformers") is None:
            raise BadDevice(
                "attention xformers: the package is not installed; install the cuda extra, or use sdpa"
            )
        if not next(denoiser.parameters()).is_cuda:
            raise BadDevice("attention xformers: it has kernels for CUDA only; on this device use sdpa")
        try:
            if transformer:
                denoiser.set_attention_backend("xformers")
            for module in modules:
                if _processors(module):
                    module.enable_xformers_memory_efficient_attention()
        except Exception as error:
            raise BadDevice(f"attention xformers: it cannot run here ({error}); use sdpa") from error
        kind = kernels.XFormersAttnProcessor
    else:
        raise BadDevice(f"unknown attention {wanted!r}; known are auto, sdpa, xformers")
    wrong = {type(p).__name__ for p in _processors(denoiser).values() if not isinstance(p, kind)}
    if wrong and not transformer:
        raise BadDevice(f"attention {wanted}: the UNet still uses {', '.join(sorted(wrong))}")
    return "xformers" if wanted == "xformers" else "sdpa"


@dataclass
class Offload:
    """Keeps on the device what runs, and of the other modules what fits beside it, for cards with little memory.

    accelerate's hooks move a module to the device when it is called; here others are moved back when it needs
    their room, text encoders first: what they said is remembered. accelerate's own chain, where each module moves
    its predecessor back, assumes one fixed order, and the engine calls modules in any order.
    """

    room: int = 0  # bytes for weights; where a module is larger, it has the device for itself
    hooks: list[tuple[Any, Any]] = field(default_factory=list)  # (module, accelerate's hook)
    here: list[Any] = field(default_factory=list)  # modules on the device

    def make_way(self, module: Any) -> None:
        """Move other modules back to host memory until this one fits beside the rest."""
        if not self.hooks or any(one is module for one in self.here):
            return
        for other, hook in self.hooks:  # in the order of `place`: text encoders first
            if sum(map(_bytes, self.here)) + _bytes(module) <= self.room:
                break
            if any(one is other for one in self.here):
                hook.offload()
                self.here = [one for one in self.here if one is not other]
        self.here.append(module)

    def clear(self) -> None:
        """Move every module back to host memory, also those that were called without `make_way`."""
        for _, hook in self.hooks:
            hook.offload()
        self.here = []

    def forget(self, modules: Sequence[Any]) -> None:
        """Drop the hooks of a model that is evicted."""
        self.hooks = [(module, hook) for module, hook in self.hooks if all(module is not m for m in modules)]
        self.here = [module for module in self.here if all(module is not m for m in modules)]


def place(modules: Sequence[nn.Module], device: str, offload: Offload | None) -> None:
    """Move modules to the device; with offload, each one moves when it is called."""
    if offload is None:
        for module in modules:
            module.to(device)
        return
    if not device.startswith("cuda"):
        raise BadDevice("CPU offload needs a GPU to offload from")
    offload.room = offload.room or int(_SHARE * torch.cuda.get_device_properties(device).total_memory)
    accelerate: Any = importlib.import_module("accelerate")
    for module in modules:
        offload.hooks.append((module, accelerate.cpu_offload_with_hook(module, device)[1]))


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _processors(module: Any) -> dict[str, Any]:
    return getattr(module, "attn_processors", {}) or {}


def main() -> None:
    """Print what a setting means here, as JSON: `{"devices": [...]}`, or `{"error": "..."}`.

    The worker's parent process calls `python -m consumer.engine.devices`, because it must not import torch.
    """
    try:
        answer: dict[str, Any] = {"devices": devices(sys.argv[1])}
    except BadDevice as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()


class CallTimer:
    """Times device calls without waiting for them: a GPU's calls return before they are done.

    A call is charged with its own seconds, and with those since the call before it ended: what the host did in
    between kept the device waiting, so these add up to the time for which there was something to do.
    """

    def __init__(self, device: str, clock: Callable[[], float]) -> None:
        """
        Args:
            clock: seconds; used where calls are done when they return.
        """
        self._device = device
        self._clock = clock
        self._ended: Any = None  # the last call's end, a time or a CUDA event; None after a pause
        #: CUDA events: the end of the call before, this call's beginning and end.
        self._running: deque[tuple[Any, Any, Any, Callable[[float, float], None]]] = deque()

    def pause(self) -> None:
        """Note that the time until the next call is nobody's: there is nothing to draw, or a model is loaded."""
        self._ended = None

    def time(self, work: Callable[[], T], then: Callable[[float, float], None]) -> T:
        """Do some work; `then` gets its seconds and those since the call before it, now or by a later `collect`."""
        if not self._device.startswith("cuda"):
            began = self._clock()
            result = work()
            ended = self._clock()
            then(ended - began, ended - (began if self._ended is None else self._ended))
            self._ended = ended
            return result
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(self._device)
        first.record(stream)
        result = work()
        last.record(stream)
        self._running.append((first if self._ended is None else self._ended, first, last, then))
        self._ended = last
        return result

    def collect(self) -> None:
        """Report the work that the device has finished."""
        while self._running and self._running[0][2].query():
            before, first, last, then = self._running.popleft()
            then(first.elapsed_time(last) / 1000, before.elapsed_time(last) / 1000)
