"""Samplers as tables: the coefficients of each step, derived once from diffusers' own scheduler.

Between two UNet calls most samplers compute a linear combination of the latents and the model's
outputs of the last few steps, and perhaps fresh noise. diffusers computes the coefficients again at
every step of every image, by dozens of operations on tensors of one element, and a batch of eight
images would pay for that eight times. So they are derived once for each sampler and number of steps,
by feeding diffusers' own scheduler with ones and zeros; then a step is one multiply-add for each
term. A scheduler that is not linear (random inputs show it) does its own steps.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.loading.pipelines import build_scheduler, check_timesteps, counting
from schemas.samplers import FLOW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.samplers import SchedulerChoice

_DEPTH = 6  # steps that a sampler may look back; the offered ones need at most five
_KINDS = 3  # of what a step may read: latents, outputs, and what a corrector left
_ZERO = 4  # probe columns that stay zero: their output is noise
_RANDOM = 12  # probe columns with random numbers: they verify the table
_SCALE = 30.0  # of the random numbers: clipping or thresholding of the sample would show
_TOLERANCE = 1e-4  # relative to the sum of the terms' sizes: float32 loses digits where alpha is small
_NEGLIGIBLE = 1e-6  # a factor below this moves no latent by a visible amount
_KEPT = 256  # tables and prepared schedulers in the cache


#: A sum: (steps ago, 0 latents or 1 output or 2 what the corrector left, factor) of each term.
Terms = tuple[tuple[int, int, float], ...]
#: What one step had, in the same order.
Had = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Step:
    """What happens between two UNet calls."""

    scale: float  # of the latents, for the UNet's input
    terms: Terms
    noise: float | None  # its factor; None: no noise is drawn
    keeps: Terms = ()  # of the latents that a corrector leaves for the steps after; (): it has none


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A scheduler that knows its timesteps and has done no step; images get copies."""

    scheduler: Any
    timesteps: tuple[float, ...]


class Samplers:
    """Makes the scheduler of each image, and caches the tables of its sampler."""

    def __init__(self) -> None:
        self._built: dict[Any, Any] = {}
        self._prepared: OrderedDict[Any, _Prepared] = OrderedDict()
        self._tables: OrderedDict[Any, tuple[Step, ...] | None] = OrderedDict()

    def make(self, choice: SchedulerChoice, config: Mapping[str, Any]) -> Any:
        """The scheduler of one image. Raises `Rejected` where it cannot run here."""
        key = (choice, repr(sorted(config.items())))
        if key not in self._built:
            self._built[key] = build_scheduler(choice, config)
        own = _own(self._built[key])
        return (
            counting(own, choice.name) if choice.name == FLOW[0] else Sampler(self, key, own)
        )  # its step is one sum anyhow

    def prepare(self, key: Any, steps: int, device: Any) -> _Prepared:
        """The scheduler of this key, with its timesteps set."""
        full = (key, steps, str(device))
        if full not in self._prepared:
            scheduler = _own(self._built[key])
            scheduler.set_timesteps(steps, device=device)
            prepared = _Prepared(scheduler, check_timesteps(scheduler, key[0].name, steps))
            _remember(self._prepared, full, prepared)
        return self._prepared[full]

    def table(self, key: Any, steps: int, position: int, begin: int | None) -> tuple[Step, ...] | None:
        """Every step from this position on, or None when the scheduler must do its own steps."""
        full = (key, steps, position, begin)
        if full not in self._tables:
            scheduler = _own(self.prepare(key, steps, "cpu").scheduler)
            if begin is not None:
                scheduler.set_begin_index(begin)
            _remember(self._tables, full, derive(scheduler, position))
        return self._tables[full]


class Sampler:
    """One image's scheduler: diffusers' own, except that its steps come from the table."""

    def __init__(self, samplers: Samplers, key: Any, scheduler: Any) -> None:
        self._samplers = samplers
        self._key = key
        self._scheduler = scheduler
        self._steps = 0  # of the request
        self.steps_done = 0
        self._own_schedule = False  # the pipeline chose more than the number of steps: no table knows that
        self._timesteps: tuple[float, ...] = ()
        self._table: tuple[Step, ...] | None = None
        self._position = 0  # of the table's first step among the timesteps
        self._done: int | None = None  # steps of the table; None: not begun
        self._history: deque[Had] = deque(maxlen=_DEPTH)

    @property  # type: ignore[misc]  # typeshed calls it an attribute
    def __class__(self) -> type:
        return type(self._scheduler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **schedule: Any) -> None:
        self._own_schedule = bool(schedule)
        if self._own_schedule:
            self._scheduler.set_timesteps(num_inference_steps, device=device, **schedule)
            self._timesteps = check_timesteps(self._scheduler, self._key[0].name, num_inference_steps)
            return
        prepared = self._samplers.prepare(self._key, num_inference_steps, device)
        self._scheduler, self._timesteps = _own(prepared.scheduler), prepared.timesteps
        self._steps, self._table, self._done = num_inference_steps, None, None
        self._history.clear()

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
        self.steps_done += 1
        if self._table is None or eta or return_dict:
            kwargs = {"eta": eta, "generator": generator, "return_dict": return_dict}
            accepted = _accepted(self._scheduler)
            kwargs = {name: value for name, value in kwargs.items() if name in accepted}
            return self._scheduler.step(model_output, timestep, sample, **kwargs)
        row = self._table[self._done or 0]
        self._done = (self._done or 0) + 1
        self._history.appendleft((sample, model_output, None))
        total = _sum(self._history, row.terms)
        if row.keeps:
            self._history[0] = (sample, model_output, _sum(self._history, row.keeps))
        if row.noise is not None:
            total.add_(_noise(model_output, generator), alpha=row.noise)
        return (total if total.dtype == model_output.dtype else total.to(model_output.dtype),)

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Any:
        if self._table is not None and self._done and hasattr(self._scheduler, "_step_index"):
            self._scheduler._step_index = self._position + self._done  # the table did the steps
        return self._scheduler.add_noise(original, noise, timesteps)

    def _begin(self, sample: torch.Tensor, timestep: Any) -> None:
        begin = getattr(self._scheduler, "begin_index", None)
        self._done = 0
        if self._own_schedule:
            return
        self._position = begin if begin is not None else self._timesteps.index(float(timestep))
        table = self._samplers.table(self._key, self._steps, self._position, begin)
        if table is not None and sample.dtype != torch.float32 and any(s.noise is not None for s in table):
            table = None  # schedulers differ in the precision in which they draw noise
        self._table = table


def derive(scheduler: Any, position: int) -> tuple[Step, ...] | None:
    """Derive a sampler's table by doing its steps with ones and zeros; None: its steps are not linear.

    Column k of the latents is one at the steps k, k + depth, ... and otherwise zero; the outputs have
    columns of their own. So the result in a column is the factor of its last nonzero input. A corrector (UniPC's)
    goes on from latents of its own, `last_sample`: these are replaced at each step, and have columns, too.

    Args:
        scheduler: on the CPU, fresh, with its timesteps set.
        position: of the first step among its timesteps.
    """
    rng = torch.Generator().manual_seed(0)  # of the probes
    noise_rng = torch.Generator().manual_seed(1)  # of the scheduler
    accepted = _accepted(scheduler)
    kwargs = {"eta": 0.0, "generator": noise_rng}
    kwargs = {name: value for name, value in kwargs.items() if name in accepted}
    table: list[Step] = []
    history: deque[Had] = deque(maxlen=_DEPTH)
    corrects = hasattr(scheduler, "last_sample")
    for number, timestep in enumerate(scheduler.timesteps[position:]):
        latents, output, kept = (_probe(which * _DEPTH + number % _DEPTH, rng) for which in range(_KINDS))
        if corrects and history:
            scheduler.last_sample = history[0][2]
        scale = float(scheduler.scale_model_input(torch.ones(1), timestep))
        before = noise_rng.get_state()
        after = scheduler.step(output, timestep, latents, **kwargs, return_dict=False)[0]
        history.appendleft((latents, output, kept))
        noise = _noise_since(before, noise_rng, latents.shape)
        if noise is None:
            factor, rest = None, after
        else:
            loudest = int(noise[0, 0, 0, -_ZERO:].abs().argmax()) - _ZERO
            factor = float(after[0, 0, 0, loudest] / noise[0, 0, 0, loudest])
            rest = after - factor * noise
        keeps = _terms(scheduler.last_sample, number) if corrects else ()
        step = Step(scale, _terms(rest, number), factor, keeps)
        if not _holds(step, step.terms, history, rest):
            return None
        if corrects and not _holds(step, keeps, history, scheduler.last_sample):
            return None
        table.append(step)
    return tuple(table)


def _probe(hot: int, rng: torch.Generator) -> torch.Tensor:
    """(1, 1, 1, columns): a one among zeros, random numbers, and zeros."""
    ones = torch.zeros(_KINDS * _DEPTH)
    ones[hot] = 1
    random = _SCALE * torch.randn(_RANDOM, generator=rng)
    return torch.cat([ones, random, torch.zeros(_ZERO)]).reshape(1, 1, 1, -1)


def _terms(after: torch.Tensor, number: int) -> Terms:
    column = after[0, 0, 0].tolist()
    terms = []
    for ago in range(min(number + 1, _DEPTH)):
        for which in range(_KINDS):
            factor = column[which * _DEPTH + (number - ago) % _DEPTH]
            if abs(factor) > _NEGLIGIBLE:
                terms.append((ago, which, factor))
    return tuple(terms) or ((0, 0, 0.0),)


def _holds(step: Step, terms: Terms, history: deque[Had], after: torch.Tensor) -> bool:
    """Whether these terms of the step turn the random numbers into what the scheduler made of them."""
    random = slice(_KINDS * _DEPTH, _KINDS * _DEPTH + _RANDOM)
    sizes = [[tensor.abs() for tensor in had if tensor is not None] for had in history]
    size = _sum(sizes, [(a, w, abs(f)) for a, w, f in terms])
    off = (_sum(history, terms) - after).abs()
    numbers = [step.scale, step.noise or 0.0, *(factor for *_, factor in terms)]
    near = off[..., random] <= _TOLERANCE * (size[..., random] + abs(step.noise or 0.0)) + 1e-6
    return all(map(math.isfinite, numbers)) and bool(near.all())


def _noise_since(before: torch.Tensor, rng: torch.Generator, shape: torch.Size) -> torch.Tensor | None:
    """The noise that was drawn since `before`; NaN when it was not one draw of this shape."""
    if torch.equal(before, rng.get_state()):
        return None
    again = torch.Generator()
    again.set_state(before)
    noise = torch.randn(shape, generator=again)
    return noise if torch.equal(again.get_state(), rng.get_state()) else noise * math.nan


def _sum(history: Any, terms: Any) -> torch.Tensor:
    """Add up the terms, in float32."""
    (ago, which, factor), *rest = terms
    total = history[ago][which].float() * factor
    for ago, which, factor in rest:
        total.add_(history[ago][which], alpha=factor)
    return total


def _noise(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=torch.float32)


def _accepted(scheduler: Any) -> Any:
    return inspect.signature(type(scheduler).step).parameters


def _own(scheduler: Any) -> Any:
    """A copy that shares no state with the others: tensors are never changed in place, lists are."""
    own = copy.copy(scheduler)
    vars(own).update({k: list(v) for k, v in vars(own).items() if type(v) is list})
    return own


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    while len(cache) > _KEPT:
        cache.popitem(last=False)
