"""What a worker says of the times of its device calls: bounded, and with all the time that they take."""

from __future__ import annotations

import json

import pytest

from consumer.renderer.protocol import DeviceCall
from consumer.speeds import KINDS, Speeds


def call(kind: str, rows: int, busy: float, pixels: int = 4096, model: str = "tiny") -> DeviceCall:
    return DeviceCall(kind, model, pixels, rows, 16, busy / 2, busy)


def test_a_row_and_an_image_have_their_times_apart():
    """The host's time between two calls counts; the first call of a shape does not, once there is another."""
    speeds = Speeds()
    for kind, rows, busy in (
        ("text", 1, 0.5),  # the first image
        ("unet", 2, 9.0),
        ("unet", 2, 0.02),
        ("decode", 1, 0.5),
        ("text", 1, 0.01),  # the second one
        ("unet", 3, 0.03),
        ("unet", 12, 9.0),
        ("unet", 15, 0.03),
        ("decode", 2, 0.05),
    ):
        speeds.called(call(kind, rows, busy))
    [told] = speeds.facts()
    assert (told["model"], told["pixels"]) == ("tiny", 4096)
    assert told["row_ms"]["8"] == pytest.approx(2.0)  # the calls of 12 and of 15 rows
    assert told["row_ms"]["2"] == pytest.approx(10.0, rel=0.02)
    assert told["image_ms"] == pytest.approx(30.0)


def test_what_is_told_stays_small():
    """However many models, sizes and rows there are, the latest kinds are told, in 3 KB at most."""
    speeds = Speeds()
    for pixels in range(100):
        for rows in range(1, 2000, 7):
            speeds.called(call("unet", rows, rows * 0.0123456, 1000 * pixels, "a-model-of-somebody"))
    told = speeds.facts()
    assert len(told) == KINDS
    assert told[-1]["pixels"] == 99_000
    assert len(json.dumps(told)) < KINDS * 200


def test_a_size_that_was_only_begun_is_not_told():
    """A text encoder's call alone says nothing of a step."""
    speeds = Speeds()
    speeds.called(call("text", 1, 0.01))
    assert speeds.facts() == []


def test_a_controlnet_s_calls_are_no_part_of_an_image_s_time():
    """They come with every step of a few images; all images of the model would seem slow."""
    speeds = Speeds()
    for kind in ("text", "side", "unet", "side", "unet", "decode"):
        speeds.called(call(kind, 1, 0.01))
    assert speeds.facts()[0]["image_ms"] == pytest.approx(20.0)
