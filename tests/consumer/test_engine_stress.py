"""Random histories: whatever comes, leaves or breaks, every image ends once and ends right."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from greenlet import greenlet

from consumer.renderer.protocol import Drawn, Undrawable
from schemas import samplers

TASKS = ("text2img", "img2img", "inpainting")


def random_task(task, rng, name):
    """Any of the things that a request may ask for."""
    return task(
        name,
        task=rng.choice(TASKS),
        width=rng.choice([16, 32]),
        height=16,
        steps=rng.randint(1, 4),
        strength=rng.choice([0.3, 0.9, 1.0]),
        cfg_scale=rng.choice([0.0, 1.0, 3.0, 9.0]),
        seed=rng.randrange(2**63),
        prompt=rng.choice(["one", "two", "three"]),
        negative_prompt=rng.choice([None, "four"]),
        scheduler=rng.choice(samplers.names()),
        solo=rng.random() < 0.1,
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_image_ends_once_and_right_whatever_happens(registry, studio, task, alone, apart, seed):
    """Tasks come and are canceled at random, and the UNet fails now and then: nothing is lost or changed."""
    rng = random.Random(seed)
    unet = registry.get("tiny").plain["text2img"].unet
    tasks = {f"r{i}": random_task(task, rng, f"r{i}") for i in range(16)}
    expected = {name: alone(registry, one) for name, one in tasks.items()}
    real, canceled = unet.forward, set()

    def unreliable(*args, **kwargs):
        rows = kwargs["sample"].shape[0]
        if rng.random() < 0.1 and rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if rng.random() < 0.1 and rows > 2:
            raise ValueError("a row of this call is bad, it seems")
        return real(*args, **kwargs)

    unet.forward = unreliable
    room = studio(registry)
    try:
        for name, one in tasks.items():
            room.engine.submit(one)
            for _ in range(rng.randint(0, 3)):
                room.engine.step()
            if rng.random() < 0.15:
                victim = f"r{rng.randint(0, int(name[1:]))}"  # one that has come already
                if (victim, 0) not in room.ended():
                    canceled.add(victim)
                room.engine.cancel(victim)
        room.draw()
    finally:
        del unet.forward

    ended = [event.request for event in room.events if isinstance(event, Drawn | Undrawable)]
    assert len(ended) == len(set(ended))
    assert not canceled & set(ended)
    drawn = {name: event for (name, _), event in room.ended().items() if isinstance(event, Drawn)}
    assert set(drawn) | canceled == set(tasks)
    assert all(apart(event.picture, expected[name]) <= 1 for name, event in drawn.items())
    assert not room.engine.busy


def test_nothing_of_an_image_stays_behind(registry, studio, task):
    """After images were drawn, canceled and failed, no greenlet and no tensor of theirs is kept."""
    room = studio(registry)

    def round_trip():
        room.events.clear()
        for i in range(6):
            room.engine.submit(task(f"r{i}", seed=i, steps=3, width=36 if i == 5 else 32))
        for _ in range(3):
            room.engine.step()
        room.engine.cancel("r0")
        room.draw()
        room.events.clear()
        gc.collect()
        objects = gc.get_objects()
        greenlets = sum(type(o) is greenlet and not o.dead for o in objects)
        return greenlets, sum(type(o) is torch.Tensor for o in objects)

    round_trip()
    greenlets, tensors = round_trip()
    again, tensors_again = round_trip()

    assert greenlets == again
    assert tensors_again <= tensors
