"""Exact mode: the same bytes, whoever shared the calls."""

from __future__ import annotations

import random

import pytest

from consumer.renderer.protocol import Drawn

TASKS = ("text2img", "img2img", "inpainting")


@pytest.fixture
def touchy(make_registry):
    """The tiny model, with a UNet and a decoder whose numbers depend on how many rows a call has.

    Real kernels differ in the last bits only, and not on every machine; this model makes sure
    that a call of another size could not go unnoticed. It writes down the sizes that it saw.
    """
    registry = make_registry()
    pipe = registry.get("tiny").plain["text2img"]
    unet, decode, sizes = pipe.unet.forward, pipe.vae.decoder.forward, []

    def touchy_unet(*args, **kwargs):
        (out,) = unet(*args, **kwargs)
        sizes.append(len(out))
        return (out * (1 + len(out) / 100),)

    pipe.unet.forward = touchy_unet
    pipe.vae.decoder.forward = lambda z, *args: decode(z, *args) * (1 + len(z) / 10)
    return registry, sizes


def test_in_exact_mode_company_does_not_change_a_byte(touchy, studio, task):
    """In 200 random mixes every image has the bytes that it had alone."""
    registry, _ = touchy
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
        room.events.clear()
        mix = dice.sample(choices, dice.randint(2, 3))
        for one in mix:
            room.engine.submit(one)
            for _ in range(dice.randint(0, 2)):
                room.engine.step()
        for name, event in room.draw().items():
            assert isinstance(event, Drawn)
            assert event.picture == expected[name].picture


def test_exact_mode_pads_every_unet_call_to_one_size(touchy, studio, task):
    """Each UNet call is counted with all its slots, though one image fills only two of them."""
    registry, sizes = touchy
    room = studio(registry, exact=True, max_rows=4)
    room.draw(task(steps=3))

    assert sizes == [4, 4, 4]
    assert (room.engine.counters.useful_rows, room.engine.counters.slots) == (6, 12)


def test_without_exact_mode_that_model_would_show_its_company(touchy, studio, task, apart):
    """The proof above is worth something: outside exact mode the same model's pictures do differ."""
    registry, _ = touchy
    single = studio(registry).draw(task("a"))["a", 0].picture
    shared = studio(registry).draw(task("a"), task("b"))["a", 0].picture

    assert apart(single, shared) > 1
