"""A sampler as a table: what diffusers' scheduler would compute at each step, asked of it once.

Between two UNet calls most samplers only add up what they have seen: the latents and the model's
outputs of the last few steps, each times a number, and perhaps fresh noise. diffusers computes the
numbers anew at every step of every image, by dozens of operations on tensors of one element, and a
batch of eight images would pay for that eight times. So they are found once for each sampler and
number of steps, by feeding diffusers' own scheduler with ones and zeros; then a step is one
product and sum for each term. A scheduler that is not such a sum (random inputs tell) does its own steps.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.pipelines import build_scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.samplers import SchedulerChoice

_DEPTH = 6  # steps that a sampler may look back; the offered ones need five at most
_SILENT = 4  # probe columns that stay zero: what comes out of them is noise
_RANDOM = 12  # probe columns with random numbers: they try the table
_LOUD = 30.0  # their size; a clipped or thresholded sample would show
_CLOSE = 1e-4  # of the sum of the terms' sizes: float32 loses digits where alpha is small
_NOTHING = 1e-6  # a factor below this moves no latent by a visible amount
_KEPT = 256  # tables and timesteps to remember


@dataclass(frozen=True, slots=True)
class Step:
    """What happens between two UNet calls."""

    scale: float  # of the latents, for the UNet to look at
    terms: tuple[tuple[int, int, float], ...]  # (steps ago, 0 latents or 1 output, factor)
    noise: float | None  # its factor; None: no noise is drawn


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A scheduler that knows its timesteps and has done no step; images get copies."""

    scheduler: Any
    timesteps: tuple[float, ...]


class Samplers:
    """Makes the scheduler of each image, and remembers what was found out about its sampler."""

    def __init__(self) -> None:
        self._built: dict[Any, Any] = {}
        self._prepared: OrderedDict[Any, _Prepared] = OrderedDict()
        self._tables: OrderedDict[Any, tuple[Step, ...] | None] = OrderedDict()

    def make(self, choice: SchedulerChoice, config: Mapping[str, Any]) -> Sampler:
        """The scheduler of one image. Raises `Rejected` where it cannot run here."""
        key = (choice, repr(sorted(config.items())))
        if key not in self._built:
            self._built[key] = build_scheduler(choice, config)
        return Sampler(self, key, _own(self._built[key]))

    def prepare(self, key: Any, steps: int, device: Any) -> _Prepared:
        """The scheduler of this key, with its timesteps set."""
        full = (key, steps, str(device))
        if full not in self._prepared:
            scheduler = _own(self._built[key])
            scheduler.set_timesteps(steps, device=device)
            known = _Prepared(scheduler, tuple(scheduler.timesteps.tolist()))
            _remember(self._prepared, full, known)
        return self._prepared[full]

    def table(self, key: Any, steps: int, position: int, begin: int | None) -> tuple[Step, ...] | None:
        """Every step from this position on, or None when the scheduler must do its own."""
        full = (key, steps, position, begin)
        if full not in self._tables:
            scheduler = _own(self.prepare(key, steps, "cpu").scheduler)
            if begin is not None:
                scheduler.set_begin_index(begin)
            _remember(self._tables, full, ask(scheduler, position))
        return self._tables[full]


class Sampler:
    """Stands for one image's scheduler: everything but its steps is diffusers'."""

    def __init__(self, samplers: Samplers, key: Any, scheduler: Any) -> None:
        self._samplers = samplers
        self._key = key
        self._scheduler = scheduler
        self._steps = 0  # asked for
        self._timesteps: tuple[float, ...] = ()
        self._table: tuple[Step, ...] | None = None
        self._position = 0  # of the table's first step among the timesteps
        self._done: int | None = None  # steps of the table; None: not begun
        self._seen: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=_DEPTH)  # latents, output

    @property  # type: ignore[misc]  # typeshed calls it an attribute
    def __class__(self) -> type:
        return type(self._scheduler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        known = self._samplers.prepare(self._key, num_inference_steps, device)
        self._scheduler, self._timesteps = _own(known.scheduler), known.timesteps
        self._steps, self._table, self._done = num_inference_steps, None, None
        self._seen.clear()

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        if self._done is None:
            self._begin(sample, timestep)
        if self._table is None:
            return self._scheduler.scale_model_input(sample, timestep)
        scale = self._table[self._done or 0].scale
        return sample if scale == 1 else sample * scale

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        if self._done is None:
            self._begin(sample, timestep)
        if self._table is None or eta or return_dict:
            given = {"eta": eta, "generator": generator, "return_dict": return_dict}
            taken = _accepted(self._scheduler)
            given = {name: value for name, value in given.items() if name in taken}
            return self._scheduler.step(model_output, timestep, sample, **given)
        row = self._table[self._done or 0]
        self._done = (self._done or 0) + 1
        self._seen.appendleft((sample, model_output))
        total = _sum(self._seen, row.terms)
        if row.noise is not None:
            total.add_(_noise(model_output, generator), alpha=row.noise)
        return (total.to(model_output.dtype),)

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Any:
        if self._table is not None and self._done and hasattr(self._scheduler, "_step_index"):
            self._scheduler._step_index = self._position + self._done  # it did not see the steps
        return self._scheduler.add_noise(original, noise, timesteps)

    def _begin(self, sample: torch.Tensor, timestep: Any) -> None:
        begin = getattr(self._scheduler, "begin_index", None)
        self._done = 0
        self._position = begin if begin is not None else self._timesteps.index(float(timestep))
        table = self._samplers.table(self._key, self._steps, self._position, begin)
        if table is not None and sample.dtype != torch.float32 and any(s.noise is not None for s in table):
            table = None  # in which precision noise is drawn is the scheduler's own affair
        self._table = table


def ask(scheduler: Any, position: int) -> tuple[Step, ...] | None:
    """Find a sampler's table by doing its steps with ones and zeros; None: it is no such sum.

    Column k of the latents is one at the steps k, k + depth, ... and else zero, the outputs have
    columns of their own; so what comes out in a column is the factor of what went in there last.

    Args:
        scheduler: on the CPU, fresh, with its timesteps set.
        position: of the first step among its timesteps.
    """
    dice = torch.Generator().manual_seed(0)
    drawn = torch.Generator().manual_seed(1)
    accepted = _accepted(scheduler)
    given = {"eta": 0.0, "generator": drawn}
    given = {name: value for name, value in given.items() if name in accepted}
    table: list[Step] = []
    seen: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=_DEPTH)
    for number, timestep in enumerate(scheduler.timesteps[position:]):
        latents, output = _probe(number % _DEPTH, dice), _probe(_DEPTH + number % _DEPTH, dice)
        scale = float(scheduler.scale_model_input(torch.ones(1), timestep))
        before = drawn.get_state()
        after = scheduler.step(output, timestep, latents, **given, return_dict=False)[0]
        seen.appendleft((latents, output))
        noise = _drawn(before, drawn, latents.shape)
        if noise is None:
            factor, rest = None, after
        else:
            loudest = int(noise[0, 0, 0, -_SILENT:].abs().argmax()) - _SILENT
            factor = float(after[0, 0, 0, loudest] / noise[0, 0, 0, loudest])
            rest = after - factor * noise
        step = Step(scale, _terms(rest, number), factor)
        if not _holds(step, seen, rest):
            return None
        table.append(step)
    return tuple(table)


def _probe(hot: int, dice: torch.Generator) -> torch.Tensor:
    """(1, 1, 1, columns): a one among zeros, random numbers, and zeros."""
    ones = torch.zeros(2 * _DEPTH)
    ones[hot] = 1
    loud = _LOUD * torch.randn(_RANDOM, generator=dice)
    return torch.cat([ones, loud, torch.zeros(_SILENT)]).reshape(1, 1, 1, -1)


def _terms(after: torch.Tensor, number: int) -> tuple[tuple[int, int, float], ...]:
    column = after[0, 0, 0].tolist()
    found = []
    for ago in range(min(number + 1, _DEPTH)):
        for which in (0, 1):
            factor = column[which * _DEPTH + (number - ago) % _DEPTH]
            if abs(factor) > _NOTHING:
                found.append((ago, which, factor))
    return tuple(found) or ((0, 0, 0.0),)


def _holds(step: Step, seen: deque[tuple[torch.Tensor, torch.Tensor]], after: torch.Tensor) -> bool:
    """Whether the table's step does to random numbers what the scheduler did."""
    loud = slice(2 * _DEPTH, 2 * _DEPTH + _RANDOM)
    size = _sum([(x.abs(), m.abs()) for x, m in seen], [(a, w, abs(f)) for a, w, f in step.terms])
    off = (_sum(seen, step.terms) - after).abs()
    numbers = [step.scale, step.noise or 0.0, *(factor for *_, factor in step.terms)]
    near = off[..., loud] <= _CLOSE * (size[..., loud] + abs(step.noise or 0.0)) + 1e-6
    return all(map(math.isfinite, numbers)) and bool(near.all())


def _drawn(before: torch.Tensor, used: torch.Generator, shape: torch.Size) -> torch.Tensor | None:
    """The noise that was drawn since `before`; NaN when it was not one draw of this shape."""
    if torch.equal(before, used.get_state()):
        return None
    again = torch.Generator()
    again.set_state(before)
    noise = torch.randn(shape, generator=again)
    return noise if torch.equal(again.get_state(), used.get_state()) else noise * math.nan


def _sum(seen: Any, terms: Any) -> torch.Tensor:
    """Add up the terms, in float32."""
    (ago, which, factor), *rest = terms
    total = seen[ago][which].float() * factor
    for ago, which, factor in rest:
        total.add_(seen[ago][which], alpha=factor)
    return total


def _noise(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=torch.float32)


def _accepted(scheduler: Any) -> Any:
    return inspect.signature(type(scheduler).step).parameters


def _own(scheduler: Any) -> Any:
    """A copy that shares no state with the others: tensors are never changed in place, lists are."""
    mine = copy.copy(scheduler)
    vars(mine).update({k: list(v) for k, v in vars(mine).items() if type(v) is list})
    return mine


def _remember(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)
