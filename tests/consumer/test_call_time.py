"""A device call cannot be interrupted, so it takes only as many rows as fit into its time."""

from __future__ import annotations

from consumer.engine.device_call import BUDGET, DeviceCaller


def a_caller(**settings: object) -> DeviceCaller:
    return DeviceCaller(16, **{"exact": False, "clock": float, **settings})  # type: ignore[arg-type]


def test_a_call_whose_rows_take_long_gets_fewer():
    """The fastest of at least three counts: the first calls of a shape are slow."""
    caller = a_caller()
    for seconds in (90.0, 8 * BUDGET, 4 * BUDGET):
        assert caller.limit("unet", "large") == 16
        caller.took("unet", "large", 16, seconds)
    assert caller.limit("unet", "large") == 4
    assert caller.limit("unet", "small") == caller.limit("decode", "large") == 16


def test_it_gets_the_rows_of_one_image_at_least():
    """With guidance: two for the UNet, one for the decoder."""
    caller = a_caller()
    for kind in ("unet", "decode"):
        for _ in range(3):
            caller.took(kind, "large", 2, 100 * BUDGET)
    assert (caller.limit("unet", "large"), caller.limit("decode", "large")) == (2, 1)


def test_exact_mode_has_one_size_for_all():
    """A size that depended on time would change an image's bytes."""
    caller = a_caller(exact=True)
    for _ in range(3):
        caller.took("unet", "large", 16, 100 * BUDGET)
    assert caller.limit("unet", "large") == 16


def test_the_engine_tells_its_calls_times(registry, studio, task):
    """By a clock that says two seconds a call: images of four rows in all are drawn two rows at a time."""
    ticks = iter(range(0, 10**9, 2 * int(BUDGET)))
    stage = studio(registry, max_rows=8, clock=lambda: float(next(ticks)))
    stage.draw(*(task(f"s{i}", steps=12, seed=i) for i in range(4)))
    counters = stage.engine.counters
    assert counters.useful_rows == 4 * 2 * 12
    assert counters.unet_calls > counters.useful_rows / 4
