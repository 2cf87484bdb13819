"""The engine's own time: what it computes around the calls of a model, by sampler, on a model that costs nothing.

The denoiser's forward gives back fixed numbers. What is left between two calls of it is everything beside the device:
greenlets, keys, stacking, samplers, the pipeline's own code, admission and progress. It is the processor time of the
engine's thread, and the median over all steps, so that other programs on the machine disturb it little.
"""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from consumer.engine.engine import Engine
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Undrawable
from infra.models.cards import Cards
from tests.benchmarks import backlogs, contenders
from tests.benchmarks.contenders import MAX_ROWS
from tests.benchmarks.models import SIDES, available
from tests.benchmarks.table import Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer.renderer.protocol import ImageTask

SAMPLERS = ("Euler", "Euler a", "DDIM", "DPM++ 2M", "UniPC", "LCM")
_IMAGES = MAX_ROWS // 2  # with guidance
_STEPS = 50


def measure(folder: Path, table: Table, quick: bool) -> None:
    """Milliseconds per image and step, of eight images in shared calls, and of diffusers' own batch of eight."""
    rounds = 2 if quick else 5
    folders, _ = available(["launch", "flux"], folder / "host")
    registry = ModelRegistry(Cards.of(f"{name}={place}" for name, place in folders.items()))
    ours = Engine(registry, emit=_raise, max_rows=MAX_ROWS)
    table.head(
        "The engine's own time", f"{_IMAGES} images, {_STEPS} steps, per image and step, processor time"
    )
    for model, sampler in [*(("launch", name) for name in SAMPLERS), ("flux", "Flow Euler")]:
        engine, plain = [], []
        with free_of_charge(registry, model) as calls:
            for round_ in range(-1, rounds):  # the first warms up
                tasks = backlog(model, sampler, _STEPS, round_)
                took = drawn(ours, tasks, calls), batched(registry, tasks, calls)
                if round_ >= 0:
                    engine.append(1000 * took[0])
                    plain.append(1000 * took[1])
        table.add(Row(sampler, engine, unit="ms"))
        table.add(Row("  in diffusers' own batch", plain, unit="ms"))


def backlog(model: str, sampler: str, steps: int, round_: int) -> list[ImageTask]:
    tasks = backlogs.homogeneous(model, SIDES["launch"], _IMAGES, steps, round_)
    return [msgspec.structs.replace(task, scheduler=sampler) for task in tasks]


def drawn(engine: Engine, tasks: list[ImageTask], calls: list[tuple[float, float]]) -> float:
    """Seconds of this thread between two calls of the denoiser, for one image."""
    calls.clear()
    for task in tasks:
        engine.submit(task)
    while engine.step():
        pass
    return _between(calls)


def batched(registry: ModelRegistry, tasks: list[ImageTask], calls: list[tuple[float, float]]) -> float:
    """The same in one call of diffusers' pipeline with all prompts."""
    calls.clear()
    with torch.inference_mode():
        contenders.draw_together(registry.get(tasks[0].model), tasks)
    return _between(calls)


def _between(calls: list[tuple[float, float]]) -> float:
    return statistics.median(after[0] - before[1] for before, after in pairwise(calls)) / _IMAGES


def _raise(event: Any) -> None:
    if isinstance(event, Undrawable):
        raise RuntimeError(f"{event.request} was not drawn: {event.message}")


@contextmanager
def free_of_charge(registry: ModelRegistry, name: str) -> Iterator[list[tuple[float, float]]]:
    """A model whose denoiser answers with fixed numbers; yields when it was called and when it answered."""
    pipe = next(iter(registry.get(name).plain.values()))
    denoiser = contenders.denoiser_of(pipe)
    numbers: dict[Any, torch.Tensor] = {}
    calls: list[tuple[float, float]] = []

    def forward(sample: Any = None, *_args: Any, hidden_states: Any = None, **_kwargs: Any) -> Any:
        began = time.thread_time()
        shape = (hidden_states if sample is None else sample).shape
        if shape not in numbers:
            numbers[shape] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        calls.append((began, time.thread_time()))
        return (numbers[shape],)

    denoiser.forward = forward
    try:
        yield calls
    finally:
        del denoiser.forward
