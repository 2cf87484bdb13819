"""Compiled denoisers: `torch.compile` for the shapes that are called often, in the background of eager calls.

A denoiser has a twin of the same modules around the same weights. A thread compiles the twin for one shape after the
other; the real module is never touched. Rows are padded to the next of 1, 2, 4, 8, ..., so that there are few shapes.
What cannot be compiled, or fails when it is called, is called eagerly from then on; no image fails by it.

Only plain weights are compiled: a call with LoRAs or an IP-Adapter uses the real module, whose layers change when they
are loaded and switched, and would be compiled again each time.
"""

from __future__ import annotations

import copy
import os
import queue
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine import device_errors, joining, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from torch import nn

    from consumer.engine.call import Call
    from consumer.engine.joining import Arguments

KINDS = ("off", "regional", "full")
MOST_SHAPES = (
    24  # of one denoiser: each takes seconds to minutes to compile, and slows the look-up of the others
)
_TEXT = 32  # tokens: lists of texts are counted in multiples of it, as Z-Image pads them
_WAIT = 30.0  # seconds for a compilation that may hold memory, before calls are made smaller for good


@dataclass
class _Twin:
    """A denoiser's modules once more, around the same weights, and what is known of its shapes."""

    module: nn.Module
    ready: set[Hashable] = field(default_factory=set)
    eager: set[Hashable] = field(default_factory=set)  # for good
    wanted: Counter[Hashable] = field(default_factory=Counter)  # eager calls of shapes that are not ready


class Compiler:
    """The compiled denoisers of one device. Only one thread may use it; it has a thread of its own."""

    def __init__(
        self,
        kind: str,
        *,
        complain: Callable[[str], None],
        cache: Path | None = None,
        after: int = 4,
        backend: str = "inductor",
    ) -> None:
        """
        Args:
            kind: "regional" (the blocks that a denoiser repeats: those that diffusers names, else its lists) or "full".
            complain: gets a sentence for each shape that cannot be compiled, from `run`.
            cache: where compiled code is kept for the next process; None: where torch keeps it.
            after: calls of a shape after which it is compiled.
            backend: of `torch.compile`.
        """
        self.calls = 0  # of compiled code
        self._kind, self._say, self._after, self._backend = kind, complain, after, backend
        #: None: it cannot be compiled at all.
        self._twins: weakref.WeakKeyDictionary[nn.Module, _Twin | None] = weakref.WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self._done: queue.SimpleQueue[tuple[_Twin, Hashable, str]] = queue.SimpleQueue()
        if cache is not None:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        settings: Any = torch._dynamo.config  # a block's code is shared by all widths, shapes and models
        settings.recompile_limit = max(settings.recompile_limit, 512)
        settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, 4096)

    def run(self, call: Call, arguments: Arguments, count: int, limit: int) -> Any | None:
        """Answer a denoiser's call of plain weights by compiled code; None: call the module itself.

        Args:
            arguments: joined, with `count` rows.
            limit: rows that a call may have.
        """
        self._collect()
        if call.kind != "unet" or call.switched or joining.alone(call):
            return None
        if call.layout.reads_length:
            return None  # shapes inside depend on the text
        # Code around lists of texts of several lengths would be compiled for each length.
        twin = self._twin(call.module, "regional" if call.layout.ragged else self._kind)
        if twin is None:
            return None
        size = min(1 << (count - 1).bit_length(), limit)
        shape = (size, call.key, *_lengths(call, arguments))
        if shape not in twin.ready or self._thread is not None:
            # While a thread compiles, compiled code is not called: guards that look at global state would
            # fail and compile here, which stops all drawing.
            self._want(twin, shape, call, arguments, count, size)
            return None
        padded = _contiguous(joining.pad(call.layout, arguments, count, size))
        graphs = _graphs()
        try:
            answer = joining.answered(call.layout, twin.module(**padded))
        except Exception as error:
            if device_errors.is_sticky(error) or device_errors.is_out_of_memory(error):
                raise
            self._give_up(twin, shape, device_errors.describe(error))
            return None
        self.calls += 1
        if _graphs() > graphs:
            self._give_up(twin, shape, "its code had to be compiled again")
        return rows.take(answer, 0, count)

    @property
    def working(self) -> bool:
        """Whether something is being compiled."""
        return self._thread is not None

    def compiled(self, module: nn.Module) -> nn.Module:
        """A denoiser's twin; the module itself where it cannot be compiled."""
        twin = self._twin(module, self._kind)
        return module if twin is None else twin.module

    def makes_room(self) -> bool:
        """Where memory is short: wait for a compilation, which holds some. False: none ended."""
        thread = self._thread
        if thread is None:
            return False
        thread.join(_WAIT)
        self._collect()
        return not thread.is_alive()

    def wait(self) -> None:
        """Wait until nothing is being compiled."""
        if self._thread is not None:
            self._thread.join()
        self._collect()

    def _twin(self, module: nn.Module, kind: str) -> _Twin | None:
        if module not in self._twins:
            try:
                self._twins[module] = _Twin(_compiled(module, kind, self._backend))
            except Exception as error:  # copying runs the code of every part of a model
                self._twins[module] = None
                self._complain(type(module).__name__, device_errors.describe(error))
        return self._twins[module]

    def _want(
        self, twin: _Twin, shape: Hashable, call: Call, arguments: Arguments, count: int, size: int
    ) -> None:
        """Note a call of a shape that is not compiled, and begin with it if it is wanted most."""
        if shape in twin.eager or shape in twin.ready or len(twin.ready) >= MOST_SHAPES:
            return
        twin.wanted[shape] += 1
        if len(twin.wanted) > 4 * MOST_SHAPES:
            twin.wanted = Counter(dict(twin.wanted.most_common(2 * MOST_SHAPES)))
        wanted = twin.wanted[shape]
        if self._thread is not None or wanted < self._after or wanted < max(twin.wanted.values()):
            return
        example = _cloned(_contiguous(joining.pad(call.layout, arguments, count, size)))
        work = (twin, shape, example, next(call.module.parameters()).device)
        self._thread = threading.Thread(target=self._compile, args=work, daemon=True)
        self._thread.start()

    def _compile(self, twin: _Twin, shape: Hashable, example: Arguments, device: torch.device) -> None:
        """In the thread: compile by calling once."""
        why = ""
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            with torch.inference_mode():
                twin.module(**example)
        except Exception as error:  # compilers fail in many ways, and each means the same
            why = device_errors.describe(error)
        self._done.put((twin, shape, why))

    def _collect(self) -> None:
        """Note what the thread has done."""
        if self._done.empty():
            return
        twin, shape, why = self._done.get()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        twin.wanted.pop(shape, None)
        if why:
            self._give_up(twin, shape, why)
        else:
            twin.ready.add(shape)

    def _give_up(self, twin: _Twin, shape: Hashable, why: str) -> None:
        twin.ready.discard(shape)
        twin.eager.add(shape)
        self._complain(type(twin.module).__name__, why)

    def _complain(self, denoiser: str, why: str) -> None:
        text = f"calls of one kind to {denoiser} are not compiled, and are made eagerly from now on: {why}"
        self._say(text)


def _compiled(module: nn.Module, kind: str, backend: str) -> nn.Module:
    """A module around the same weights, which is compiled for each shape that it is called with."""
    weights = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin: Any = copy.deepcopy(module, weights)  # `weights` as the memory of what is copied already
    if kind == "full":
        twin.compile(dynamic=False, backend=backend)
        return twin
    if getattr(twin, "_repeated_blocks", None):
        twin.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
        return twin
    blocks = [block for part in twin.children() if isinstance(part, torch.nn.ModuleList) for block in part]
    if not blocks:
        raise ValueError("it repeats no blocks; try --compile full")
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)
    return twin


def _lengths(call: Call, arguments: Arguments) -> tuple[Hashable, ...]:
    """What a call's key leaves open of its shapes: how long its text is."""
    layout = call.layout
    found: list[Hashable] = [
        max(-(-len(entry) // _TEXT) for entry in arguments[name]) for name in layout.ragged
    ]
    if layout.text is not None:
        found += [arguments[layout.text.states].shape[1], layout.text.mask in arguments]
    return tuple(found)


def _graphs() -> int:
    """How many graphs this process has compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _contiguous(value: Any) -> Any:
    """With every tensor in one piece, because compiled code is made for strides, too."""
    return _changed(value, lambda tensor: tensor.contiguous())


def _cloned(value: Any) -> Any:
    return _changed(value, torch.Tensor.clone)


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed(part, change) for part in value)
    return value
