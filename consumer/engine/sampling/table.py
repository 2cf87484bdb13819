"""The table of a sampler's steps, derived once from diffusers' own scheduler by feeding it with ones and zeros."""

from __future__ import annotations

import inspect
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

DEPTH = 6  # steps that a sampler may look back; the offered ones need at most five
_KINDS = 3  # of what a step may read: latents, outputs, and what a corrector left
_ZERO = 4  # probe columns that stay zero: their output is noise
_RANDOM = 12  # probe columns with random numbers: they verify the table
_SCALE = 30.0  # of the random numbers: clipping or thresholding of the sample would show
_TOLERANCE = 1e-4  # relative to the sum of the terms' sizes: float32 loses digits where alpha is small
_NEGLIGIBLE = 1e-6  # a factor below this moves no latent by a visible amount

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
    taken = accepted(scheduler)
    kwargs = {"eta": 0.0, "generator": noise_rng}
    kwargs = {name: value for name, value in kwargs.items() if name in taken}
    table: list[Step] = []
    history: deque[Had] = deque(maxlen=DEPTH)
    corrects = hasattr(scheduler, "last_sample")
    kinds = _KINDS if corrects else _KINDS - 1  # else a rounded noise would seem to leave something there
    for number, timestep in enumerate(scheduler.timesteps[position:]):
        latents, output, kept = (_probe(which * DEPTH + number % DEPTH, rng) for which in range(_KINDS))
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
        keeps = _terms(scheduler.last_sample, number, kinds) if corrects else ()
        step = Step(scale, _terms(rest, number, kinds), factor, keeps)
        if not _holds(step, step.terms, history, rest):
            return None
        if corrects and not _holds(step, keeps, history, scheduler.last_sample):
            return None
        table.append(step)
    return tuple(table)


def _probe(hot: int, rng: torch.Generator) -> torch.Tensor:
    """(1, 1, 1, columns): a one among zeros, random numbers, and zeros."""
    ones = torch.zeros(_KINDS * DEPTH)
    ones[hot] = 1
    random = _SCALE * torch.randn(_RANDOM, generator=rng)
    return torch.cat([ones, random, torch.zeros(_ZERO)]).reshape(1, 1, 1, -1)


def _terms(after: torch.Tensor, number: int, kinds: int) -> Terms:
    column = after[0, 0, 0].tolist()
    terms = []
    for ago in range(min(number + 1, DEPTH)):
        for which in range(kinds):
            factor = column[which * DEPTH + (number - ago) % DEPTH]
            if abs(factor) > _NEGLIGIBLE:
                terms.append((ago, which, factor))
    return tuple(terms) or ((0, 0, 0.0),)


def _holds(step: Step, terms: Terms, history: deque[Had], after: torch.Tensor) -> bool:
    """Whether these terms of the step turn the random numbers into what the scheduler made of them."""
    random = slice(_KINDS * DEPTH, _KINDS * DEPTH + _RANDOM)
    sizes = [[tensor.abs() for tensor in had if tensor is not None] for had in history]
    size = add_up(sizes, [(a, w, abs(f)) for a, w, f in terms])
    off = (add_up(history, terms) - after).abs()
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


def add_up(history: Any, terms: Any) -> torch.Tensor:
    """Add up the terms, in float32."""
    (ago, which, factor), *rest = terms
    total = history[ago][which].float() * factor
    for ago, which, factor in rest:
        total.add_(history[ago][which], alpha=factor)
    return total


def accepted(scheduler: Any) -> Any:
    return inspect.signature(type(scheduler).step).parameters
