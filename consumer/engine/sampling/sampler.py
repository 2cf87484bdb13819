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
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.loading.pipelines import build_scheduler, check_timesteps, counting
from consumer.engine.sampling.table import DEPTH, Had, Step, accepted, add_up, derive
from schemas.samplers import FLOW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.samplers import SchedulerChoice

_KEPT = 256  # tables and prepared schedulers in the cache


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
        self.seen: Any = None  # the denoiser's input, timestep and output, as in `counting`
        self._scaled: torch.Tensor | None = None  # the denoiser's input, where it is not the latents
        self._own_schedule = False  # the pipeline chose more than the number of steps: no table knows that
        self._timesteps: tuple[float, ...] = ()
        self._table: tuple[Step, ...] | None = None
        self._position = 0  # of the table's first step among the timesteps
        self._done: int | None = None  # steps of the table; None: not begun
        self._history: deque[Had] = deque(maxlen=DEPTH)

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
            self._scaled = self._scheduler.scale_model_input(sample, timestep)
        else:
            scale = self._table[self._done or 0].scale
            self._scaled = sample if scale == 1 else sample * scale
        return self._scaled

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
        self.seen = (sample if self._scaled is None else self._scaled, timestep, model_output)
        if self._table is None or eta or return_dict:
            kwargs = {"eta": eta, "generator": generator, "return_dict": return_dict}
            taken = accepted(self._scheduler)
            kwargs = {name: value for name, value in kwargs.items() if name in taken}
            return self._scheduler.step(model_output, timestep, sample, **kwargs)
        row = self._table[self._done or 0]
        self._done = (self._done or 0) + 1
        self._history.appendleft((sample, model_output, None))
        total = add_up(self._history, row.terms)
        if row.keeps:
            self._history[0] = (sample, model_output, add_up(self._history, row.keeps))
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


def _noise(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=torch.float32)


def _own(scheduler: Any) -> Any:
    """A copy that shares no state with the others: tensors are never changed in place, lists are."""
    own = copy.copy(scheduler)
    vars(own).update({k: list(v) for k, v in vars(own).items() if type(v) is list})
    return own


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    while len(cache) > _KEPT:
        cache.popitem(last=False)
