"""Exact mode: the same bytes, whoever shared the calls."""

from __future__ import annotations

import random

from consumer.tasks import Drawn

TASKS = ("text2img", "img2img", "inpainting")


def test_in_exact_mode_company_does_not_change_a_byte(registry, studio, task):
    """In 200 random mixes every image has the bytes that it had alone."""
    dice = random.Random(11)
    choices = [
        task(
            f"choice{i}",
            task=TASKS[i % 3],
            scheduler=("DDIM", "Euler a", "DPM++ 2M", "LCM")[i % 4],
            steps=1 + i % 2,
            cfg_scale=(1.0, 5.0)[i % 2],
            seed=i,
            strength=None if i % 3 == 0 else 1.0,
            width=16,
            height=16,
        )
        for i in range(12)
    ]
    room = studio(registry, exact=True, max_rows=4)
    expected = {}
    for one in choices:
        expected |= room.draw(one)

    for _ in range(200):
        room.said.clear()
        mix = dice.sample(choices, dice.randint(2, 3))
        for one in mix:
            room.engine.submit(one)
            for _ in range(dice.randint(0, 2)):
                room.engine.step()
        for name, event in room.draw().items():
            assert isinstance(event, Drawn)
            assert event.picture == expected[name].picture


def test_exact_mode_pads_every_unet_call_to_one_size(registry, studio, task):
    """Each UNet call is counted with all its slots, though one image fills only two of them."""
    room = studio(registry, exact=True, max_rows=4)
    room.draw(task(steps=3))

    assert (room.engine.counters.useful_rows, room.engine.counters.slots) == (6, 12)
