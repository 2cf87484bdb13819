"""Continuous batching: images meet inside the UNet and come out as if each had been alone."""

from __future__ import annotations

import random

import pytest

from consumer.engine.loading import spelling
from consumer.renderer.protocol import Drawn, Stepped, Undrawable
from schemas import samplers

TASKS = ("text2img", "img2img", "inpainting")


@pytest.fixture(scope="module")
def mixture(registry, studio, task):
    """Every scheduler and every task, submitted to one engine at once, with other steps and guidance."""
    tasks = {}
    for i, scheduler in enumerate(samplers.names()):
        for j, kind in enumerate(TASKS):
            tasks[scheduler, kind] = task(
                f"{scheduler}/{kind}",
                task=kind,
                scheduler=scheduler,
                steps=3 + (i + j) % 2,
                cfg_scale=(1.0, 4.0, 7.5)[(i + j) % 3],
                seed=100 * i + j,
                prompt=f"number {i % 4}",
            )
    room = studio(registry)
    return tasks, room.draw(*tasks.values()), room


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("scheduler", samplers.names())
def test_every_image_equals_its_solo_run(mixture, registry, alone, apart, scheduler, kind):
    """In a mixture of all schedulers, tasks, steps and guidances it differs by one grey level at most."""
    tasks, ended, _ = mixture
    task = tasks[scheduler, kind]
    answer = ended[task.request, 0]

    assert isinstance(answer, Drawn), answer
    assert apart(answer.picture, alone(registry, task)) <= 1


def test_the_mixture_shared_its_calls(mixture):
    """All those images took far fewer UNet calls than one after the other would have."""
    tasks, ended, room = mixture
    counters = room.engine.counters

    assert counters.useful_rows > 3 * counters.unet_calls
    assert all(isinstance(event, Drawn) for event in ended.values())
    assert len(ended) == len(tasks)


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_device_calls_are_reported_with_their_rows_and_times(registry, studio, task, every):
    """What metrics show is what the device did, to the last call, however seldom progress is told."""
    room = studio(registry, progress_every=every)
    room.draw(*(task(f"r{number}", steps=3, seed=number) for number in range(3)))
    told = [call for event in room.events if isinstance(event, Stepped) for call in event.calls]
    counters = room.engine.counters
    assert sum(call.rows for call in told if call.kind == "decode") == counters.decode_rows == 3
    assert {call.pixels for call in told} == {32 * 32}
    calls = [call for call in told if call.kind == "unet"]
    assert len(calls) == counters.unet_calls
    assert sum(call.rows for call in calls) == counters.useful_rows
    assert sum(call.slots for call in calls) == counters.slots
    assert {call.model for call in calls} == {"tiny"}
    assert all(call.seconds > 0 for call in calls)


def test_slots_are_useful_on_a_saturated_mixed_load(registry, studio, task):
    """Sixty mixed images waste less than 15 % of the UNet's rows, the run-out at the end included."""
    rng = random.Random(7)
    tasks = [
        task(
            f"r{i}",
            task=rng.choice(TASKS),
            steps=rng.randint(2, 6),
            cfg_scale=rng.choice([1.0, 3.0, 7.5]),
            seed=i,
            scheduler=rng.choice(["DDIM", "Euler a", "DPM++ 2M Karras", "UniPC"]),
        )
        for i in range(60)
    ]
    room = studio(registry)
    ended = room.draw(*tasks)
    counters = room.engine.counters

    assert all(isinstance(event, Drawn) for event in ended.values())
    assert counters.slots == counters.unet_calls * 8
    assert counters.slot_efficiency >= 0.85


def test_the_number_of_rows_that_pays_is_measured(registry, studio, task):
    """On a device where a row costs the same beyond four rows, calls get no larger than four."""
    now = [0.0]

    def forward(real, *args, **kwargs):
        now[0] += max(4, kwargs["sample"].shape[0])  # seconds: four rows for the price of one
        return real(*args, **kwargs)

    unet = registry.get("tiny").plain["text2img"].unet
    real = unet.forward
    unet.forward = lambda *args, **kwargs: forward(real, *args, **kwargs)
    try:
        room = studio(registry, max_rows=16, measure=True, clock=lambda: now[0])
        ended = room.draw(*[task(f"r{i}", seed=i, steps=6) for i in range(12)])
    finally:
        del unet.forward

    assert all(isinstance(event, Drawn) for event in ended.values())
    assert room.engine.counters.slot_efficiency >= 0.85
    assert list(ended)[:2] == [("r0", 0), ("r1", 0)]
    assert room.engine.counters.unet_calls > 12 * 6 * 2 / 8


def test_a_late_task_joins_at_the_next_step(registry, studio, task):
    """A task that comes while another is being drawn shares its very next UNet call."""
    room = studio(registry)
    room.engine.submit(task("early", steps=6, prompt="same"))
    while room.engine.counters.unet_calls < 2:
        room.engine.step()
    rows_before = room.engine.counters.useful_rows
    room.engine.submit(task("late", steps=2, prompt="same"))
    while room.engine.counters.unet_calls < 3:
        room.engine.step()

    assert room.engine.counters.useful_rows - rows_before == 4
    assert list(room.draw()) == [("late", 0), ("early", 0)]


def test_an_image_without_guidance_takes_one_row(registry, studio, task):
    """At cfg_scale 1 a step costs one UNet row, above it two."""
    room = studio(registry)
    room.draw(task("free", cfg_scale=1.0, steps=3))
    assert room.engine.counters.useful_rows == 3
    room.draw(task("guided", cfg_scale=1.5, steps=3))
    assert room.engine.counters.useful_rows == 9


def test_a_prompt_is_encoded_once(make_registry, studio, task):
    """Eight images of one prompt, and then eight more, ask the text encoder for two texts in all."""
    room = studio(make_registry())
    room.draw(*[task("a", index=i, seed=i) for i in range(8)])
    room.draw(*[task("b", index=i, seed=i) for i in range(8)])

    assert room.engine.counters.text_rows == 2  # the prompt and the empty one


def test_decodes_and_encodes_are_batched(registry, studio, task):
    """Four pictures that start and end together pass the VAE in one call each way."""
    room = studio(registry)
    room.draw(*[task("a", index=i, seed=i, task="img2img") for i in range(4)])

    assert (room.engine.counters.encode_calls, room.engine.counters.encode_rows) == (1, 4)
    assert (room.engine.counters.decode_calls, room.engine.counters.decode_rows) == (1, 4)


def test_a_canceled_request_leaves_and_the_others_stay(registry, studio, task, alone, apart):
    """Cancel drops what is half drawn and what waits, says nothing, and does not touch the neighbour."""
    import torch

    room = studio(registry)
    kept = task("kept", steps=5)
    room.engine.submit(kept)
    for i in range(9):
        room.engine.submit(task("gone", index=i, steps=5))
    for _ in range(4):
        room.engine.step()
    room.engine.cancel("gone")

    ended = room.draw()
    assert list(ended) == [("kept", 0)]
    assert apart(ended["kept", 0].picture, alone(registry, kept)) <= 1
    assert torch.is_grad_enabled()
    assert not room.engine.busy


def test_words_beyond_the_limit_become_a_warning(registry, studio, task, capfd):
    """A prompt of more tokens than the model reads is drawn, and the result says which words were cut."""
    room = studio(registry)
    ended = room.draw(task(prompt="abcde fghij klmno pqrst"))

    (warning,) = ended["r", 0].warnings
    assert warning == ("prompt_cut", 'the words "o pqrst" of prompt were cut: the model reads 14 tokens')
    assert "truncated" not in "".join(capfd.readouterr())


def test_a_prompt_that_just_fits_brings_no_warning(registry, studio, task):
    """Fourteen tokens between start and end are what a limit of sixteen leaves."""
    assert studio(registry).draw(task(prompt="abcdefghijklmn"))["r", 0].warnings == ()


def test_what_the_mask_keeps_is_kept_to_the_bit(registry, studio, task):
    """Inpainting changes no pixel where the mask is black, and does change the white part."""
    import numpy as np

    given = task(task="inpainting", strength=1.0)
    drawn = studio(registry).draw(given)["r", 0].picture
    before, after = (np.frombuffer(p.data, np.uint8).reshape(32, 32, 3) for p in (given.image, drawn))

    assert (before[:, :16] == after[:, :16]).all()
    assert (before[:, 16:] != after[:, 16:]).any()


def test_the_smallest_strength_still_draws_a_step(registry, studio, task):
    """A strength that would leave no step is raised to one step, with a warning."""
    ended = studio(registry).draw(
        *[task(f"s{n}", task="img2img", steps=n, strength=0.001) for n in range(1, 60)]
    )

    assert all(
        isinstance(event, Drawn) and event.warnings[0][0] == "strength_raised" for event in ended.values()
    )


def test_clip_skip_counts_as_the_community_does(registry, studio, task, apart):
    """clip_skip 1 is none; 2 leaves out the last layer and draws another picture."""
    ended = studio(registry).draw(task("none"), task("one", clip_skip=1), task("two", clip_skip=2))

    assert apart(ended["none", 0].picture, ended["one", 0].picture) <= 1
    assert apart(ended["none", 0].picture, ended["two", 0].picture) > 1
    pipe = registry.get("tiny").plain["text2img"]
    assert spelling.arguments(pipe, task(clip_skip=2))["clip_skip"] == 1  # diffusers counts what is left out


def test_sizes_that_differ_take_turns(registry, studio, task, alone, apart):
    """Images of three sizes are drawn side by side, none waits for all of another size."""
    tasks = [task(f"r{i}", width=32 + 8 * (i % 3), height=32, seed=i, steps=4) for i in range(6)]
    room = studio(registry)
    ended = room.draw(*tasks)

    assert all(apart(ended[t.request, 0].picture, alone(registry, t)) <= 1 for t in tasks)
    assert room.engine.counters.unet_calls == 12  # three sizes, four steps, two images in each call


def test_a_solo_task_shares_no_call_with_another_request(registry, studio, task):
    """A suspect request is drawn beside the others, but never inside the same call."""
    room = studio(registry)
    room.draw(task("a", steps=3), task("suspect", steps=3, solo=True), task("b", steps=3))

    assert room.engine.counters.unet_calls == 6
    assert room.engine.counters.useful_rows == 18


def test_progress_is_told_as_it_happens_but_not_too_often(registry, studio, task):
    """By a clock that ticks once at each reading, progress comes at the set distance and counts up."""
    ticks = iter(range(10**6))
    room = studio(registry, clock=lambda: float(next(ticks)), progress_every=8.0)
    room.draw(task(steps=9))
    progress = [event for event in room.events if isinstance(event, Stepped)]

    assert 2 <= len(progress) < room.engine.counters.calls
    done = [event.steps["r", 0][0] for event in progress if event.steps]
    assert done == sorted(done)
    assert {event.steps["r", 0][1] for event in progress if event.steps} == {9}


def test_time_on_and_off_the_device_is_counted(registry, studio, task):
    """By a clock that ticks once at each reading, no moment between first and last call is unaccounted."""
    ticks = iter(range(10**6))
    room = studio(registry, clock=lambda: float(next(ticks)), progress_every=1e9)
    room.draw(task(steps=4))
    counters = room.engine.counters

    assert counters.device_seconds == counters.calls
    assert counters.host_seconds > 0
    before = counters.host_seconds
    room.draw(task(steps=4))
    assert counters.idle_steps == 2
    assert counters.host_seconds < 3 * before  # the pause between the two was idle, not host time
    first, *rest = [call for event in room.events if isinstance(event, Stepped) for call in event.calls]
    assert first.busy == first.seconds
    assert all(call.busy >= call.seconds for call in rest)


def test_an_unknown_scheduler_fails_alone(registry, studio, task):
    """A task that cannot be begun is answered with the field, and the rest is drawn."""
    ended = studio(registry).draw(task("bad", scheduler="Oiler"), task("good"), task("lost", model="nowhere"))

    assert isinstance(ended["good", 0], Drawn)
    assert (ended["bad", 0].code, ended["bad", 0].field, ended["bad", 0].retry) == (
        "unknown_scheduler",
        "scheduler",
        False,
    )
    assert (ended["lost", 0].code, ended["lost", 0].field) == ("unknown_model", "model")
    assert isinstance(ended["lost", 0], Undrawable)
