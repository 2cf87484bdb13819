"""One call of a real module for the rows of many images: stack, run, split.

Device errors are handled here: when memory runs out, the rows are halved and the size is kept; a row
that raises is found by halving the group; latents whose picture is not finite are decoded again in
float32. The result is one answer or one failure for each call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine import device_errors, joining, rows
from consumer.engine.batch_size import KINDS, BatchSizer
from infra.lru import LruCache

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import nn

    from consumer.engine.call import Call
    from consumer.engine.compiling import Compiler

BUDGET = 2.0  # seconds that a call may take, unless it has one image only
_SURE = 3  # calls of a shape after which the fastest says how long a row takes
_ONE_IMAGE = {"unet": 2, "side": 2}  # rows, with guidance
#: Errors of a call that would be wrong again.
_WRONG_CALL = (TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)
_MEASURED = 1000  # kinds of calls whose time is kept


@dataclass(slots=True)
class Failure:
    """Why one call has no answer."""

    code: str
    message: str
    retry: bool
    field: str | None = None  # of the manifest


@dataclass
class Counters:
    """What the device did, since the start. The counts per kind of call serve tests and benchmarks."""

    calls: int = 0  # of any module
    unet_calls: int = 0
    useful_rows: int = 0  # UNet rows that belong to an image
    slots: int = 0  # UNet rows that those calls could have had
    text_calls: int = 0
    text_rows: int = 0
    side_calls: int = 0  # of ControlNets
    side_rows: int = 0
    encode_calls: int = 0
    encode_rows: int = 0
    decode_calls: int = 0
    decode_rows: int = 0
    splits: int = 0  # groups cut in two after an error
    idle_steps: int = 0  # `step` found nothing to do
    device_seconds: float = 0.0  # inside device calls; a GPU's calls may return before they are done
    host_seconds: float = 0.0  # between two device calls, while there was something to do

    @property
    def slot_efficiency(self) -> float:
        """The share of the slots that held an image's row."""
        return self.useful_rows / self.slots if self.slots else 1.0


@dataclass(slots=True)
class _RowTime:
    """How long a row of one kind of call takes."""

    calls: int = 0
    fastest: float = float("inf")  # seconds; the first calls of a shape are slow


@dataclass
class DeviceCaller:
    """Runs groups of calls that can be stacked."""

    max_rows: int
    exact: bool
    clock: Callable[[], float]
    sizer: BatchSizer | None = None  # None: as many rows as allowed
    counters: Counters = field(default_factory=Counters)
    compiler: Compiler | None = None
    #: By key: what was left when memory ran out.
    safe_rows: LruCache[Hashable, int] = field(default_factory=lambda: LruCache(KINDS))
    row_times: LruCache[Hashable, _RowTime] = field(default_factory=lambda: LruCache(_MEASURED))
    _ended: float | None = None  # when the last device call returned; None: there was nothing to do since

    def idle(self) -> None:
        """Note that there is nothing to do."""
        self.counters.idle_steps += 1
        self._ended = None

    def limit(self, kind: str, key: Hashable) -> int:
        """The most rows that a call of this kind and key may have.

        A call cannot be interrupted. So where rows take long, it gets only as many as fit into `BUDGET`, and one
        image's at least. Exact mode has one size for all.
        """
        most = min(self._full(kind), self.safe_rows.get(key, self.max_rows))
        times = self.row_times.get((kind, key))
        if times is not None and times.calls >= _SURE and not self.exact:
            most = min(most, max(_ONE_IMAGE.get(kind, 1), int(BUDGET / times.fastest)))
        return min(most, self.sizer.rows(key)) if self.sizer is not None and kind == "unet" else most

    def took(self, kind: str, key: Hashable, rows: int, seconds: float) -> None:
        """Note how long a call took."""
        times = self.row_times.setdefault((kind, key), _RowTime())
        times.calls += 1
        times.fastest = min(times.fastest, max(seconds / rows, 1e-9))

    def run(
        self, calls: Sequence[Call], key: Hashable, ready: Callable[[], None]
    ) -> list[tuple[Call, Any | Failure]]:
        """Answer every call of a group.

        Args:
            key: of the group, LoRAs included; safe sizes are kept under it.
            ready: brings the model into the state that the group needs.

        A sticky error is raised as it is: no call can be answered any more.
        """
        groups: list[list[Call]] = [list(calls)]
        done: list[tuple[Call, Any | Failure]] = []
        while groups:
            group = groups.pop()
            answers, failure = self._attempt(group, key, ready)
            # Here, outside `except`, no traceback holds the tensors of the failed attempt.
            if failure is None:
                done += zip(group, answers or (), strict=True)
                continue
            if failure.code == "out_of_memory":
                device_errors.free_memory()
                if (self.compiler is not None and self.compiler.makes_room()) or self._halve(group, key):
                    groups.append(group)
                    continue
            if len(group) > 1:
                self.counters.splits += 1
                half = len(group) // 2
                groups += [group[half:], group[:half]]
            else:
                done.append((group[0], failure))
        return done

    def _attempt(
        self, group: list[Call], key: Hashable, ready: Callable[[], None]
    ) -> tuple[list[Any] | None, Failure | None]:
        try:
            ready()
            return self._call(group, key), None
        except Exception as error:
            if device_errors.is_sticky(error):
                raise
            if device_errors.is_out_of_memory(error):
                return None, Failure(
                    "out_of_memory", "the image does not fit this device's memory, even alone", False
                )
            again = not isinstance(error, _WRONG_CALL)
            return None, Failure("render_error", f"the model failed: {device_errors.describe(error)}", again)

    def _halve(self, group: list[Call], key: Hashable) -> bool:
        """Halve the rows of this key's calls; False when it is one already."""
        now = min(self.limit(group[0].kind, key), sum(call.rows for call in group))
        if now <= 1:
            return False
        self.safe_rows[key] = now // 2
        self.counters.splits += 1
        return True

    def _call(self, group: list[Call], key: Hashable) -> list[Any]:
        """Run the group's rows in pieces up to the limit; the answers are in the group's order."""
        if joining.alone(group[0]):
            return [self._piece(call, call.arguments, call.rows, call.rows, key) for call in group]
        total = sum(call.rows for call in group)
        stacked = joining.stack(group, exact=self.exact)
        layout = group[0].layout
        limit = self.limit(group[0].kind, key)
        pieces = []
        for start in range(0, total, limit):
            stop = min(start + limit, total)
            part = stacked if (start, stop) == (0, total) else joining.take(layout, stacked, start, stop)
            pieces.append(self._piece(group[0], part, stop - start, limit, key))
        return rows.split(rows.join(pieces), [call.rows for call in group])

    def _piece(self, like: Call, arguments: Any, count: int, limit: int, key: Hashable) -> Any:
        padded = (
            joining.pad(like.layout, arguments, count, limit) if count < limit and self.exact else arguments
        )
        sizer = self.sizer if like.kind == "unet" and self.sizer and self.sizer.measuring(key) else None
        if sizer is not None:
            _synchronize(like.module)
        began = self.clock()
        self.counters.host_seconds += began - self._ended if self._ended is not None else 0.0
        answer = self.compiler and self.compiler.run(like, arguments, count, limit)
        if answer is None:
            answer = joining.answered(like.layout, getattr(like.module, like.method)(**padded))
        if sizer is not None:
            _synchronize(like.module)
            sizer.record(key, count, self.clock() - began)
        self._ended = self.clock()
        self._count(like.kind, count, limit, self._ended - began)
        return rows.take(answer, 0, count) if padded is not arguments else answer

    def _count(self, kind: str, count: int, limit: int, seconds: float) -> None:
        counters = self.counters
        counters.calls += 1
        counters.device_seconds += seconds
        if kind == "unet":
            counters.unet_calls += 1
            counters.useful_rows += count
            counters.slots += limit
        else:
            for name, more in ((f"{kind}_calls", 1), (f"{kind}_rows", count)):
                setattr(counters, name, getattr(counters, name) + more)

    def _full(self, kind: str) -> int:
        """The most rows of a call of this kind. In exact mode every call is padded to it."""
        return 1 if self.exact and kind not in ("unet", "side") else self.max_rows


def _synchronize(module: nn.Module) -> None:
    """Let the device finish: a GPU's calls return before they are done."""
    device = next(module.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def finite_picture(call: Call, answer: Any) -> Any | Failure:
    """A decoded picture, or why there is none: a black square is a failure, never a result."""
    if _is_finite(answer) and not _is_black(answer):
        return answer
    if not _is_finite(call.arguments):
        return Failure(
            "non_finite", "the model produced numbers that are not finite (NaN) while denoising", False
        )
    try:
        again = _decode_in_float32(call)
    except Exception as error:
        if device_errors.is_sticky(error):
            raise
        again = None
    if again is not None:
        return again
    if _is_finite(answer):
        return Failure(
            "non_finite",
            "the picture is black all over, which usually means that the model's numbers overflowed; "
            "try another scheduler, a lower cfg_scale, or a worker with --dtype float32",
            False,
        )
    return Failure("non_finite", "the decoder produced numbers that are not finite (NaN)", False)


def _decode_in_float32(call: Call) -> Any | None:
    """Decode one call's latents again with the VAE in float32; None when that does not help."""
    module = call.module
    before = next(module.parameters()).dtype
    if before == torch.float32:
        return None
    try:
        module.to(torch.float32)
        answer = getattr(module, call.method)(
            **{k: v.float() if isinstance(v, torch.Tensor) else v for k, v in call.arguments.items()}
        )
    finally:
        module.to(before)
    return answer if _is_finite(answer) and not _is_black(answer) else None


def _is_finite(value: Any) -> bool:
    """Whether every number in an answer is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in rows.tensors_in(value))


def _is_black(answer: Any) -> bool:
    """Whether a decoded picture, in [-1, 1], is black: no real one is so dark and so even."""
    for tensor in rows.tensors_in(answer):
        levels = (tensor.float() + 1).clamp(0, 2) * 127.5  # grey levels
        if bool((levels.mean() < 2) & (levels.std() < 1)):
            return True
    return False
