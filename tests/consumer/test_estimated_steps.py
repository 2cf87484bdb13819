"""What `dreamdrop estimate` counts is what the engine does: rows and steps exactly, time within a factor."""

from __future__ import annotations

import itertools

import pytest

from consumer.renderer.protocol import Drawn, Stepped
from consumer.speeds import Speeds
from producer.planning.estimate import Costing
from producer.planning.speeds import Speeds as Told
from producer.planning.work import Piece, Work, unet_calls
from schemas import samplers


def piece(task) -> Piece:
    calls = unet_calls(task.scheduler, task.steps, task.strength)
    return Piece(task.model, task.width * task.height, 1, calls, 2 if task.cfg_scale > 1 else 1)


@pytest.mark.parametrize("kind", ["text2img", "img2img"])
def test_row_steps_are_counted_exactly_for_every_sampler(registry, studio, task, kind):
    """Samplers of second order call the UNet twice a step, PNDM once more, and a picture skips the first steps."""
    for number, name in enumerate(samplers.class_names()):
        cfg = (1.0, 5.0)[number % 2]
        room = studio(registry)
        one = task(
            task=kind, scheduler=name, steps=5, cfg_scale=cfg, strength=0.7 if kind != "text2img" else None
        )
        [ended] = room.draw(one).values()
        assert isinstance(ended, Drawn), (name, ended)
        assert room.engine.counters.useful_rows == piece(one).row_steps, name


def test_an_estimate_is_near_what_another_load_takes(registry, studio, task):
    """Measured with one mix of steps, the time of another mix is told within a quarter, by a clock that counts calls.

    The clock ticks at each reading, so a call's time does not depend on the machine.
    """

    def measured(tasks) -> list:
        ticks = itertools.count()
        room = studio(registry, clock=lambda: float(next(ticks)), max_rows=8)
        room.draw(*tasks)
        return [call for event in room.events if isinstance(event, Stepped) for call in event.calls]

    speeds = Speeds()
    for call in measured([task(f"a{i}", steps=8, seed=i) for i in range(12)]):
        speeds.called(call)
    mix = [task(f"b{i}", steps=3 + i % 9, cfg_scale=1.0 if i % 3 else 6.0, seed=i) for i in range(30)]
    work = Work()
    for one in mix:
        work.add(piece(one))
    told = Costing(Told.read([{"speeds": speeds.facts()}]), devices=1).seconds(work)
    took = sum(call.busy for call in measured(mix))
    assert 0.75 < told / took < 1.25, (told, took)
