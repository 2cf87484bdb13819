"""What a person reads who wrote a manifest by hand and got it wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.errors import Rejected
from schemas.manifest import parse_manifest, validate_manifest

FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"height": 7}, "height is 7; sizes are multiples of 8, at least 8"),
    ({"height": 100}, "height is 100; sizes are multiples of 8, such as 96 or 104"),
    ({"output": "gif"}, 'output is "gif"; it should be an object {...} with format, quality'),
    ({"loras": ["ink"]}, 'loras.0 is "ink"; it should be an object {...} with name, weight'),
    ({"loras": "ink"}, 'loras is "ink"; it should be a list [...]'),
    ({"metadata": 7}, "metadata is 7; it should be an object {...}"),
    (
        {"expires_at": "soon"},
        'expires_at is "soon"; it should be a date and time, such as 2030-01-31T12:00:00Z',
    ),
    ({"mask_image": "x"}, "image is missing; img2img and inpainting (mask_image) start from a picture"),
    ({"task": "inpainting", "image": "x"}, "mask_image is missing; inpainting repaints the white part of it"),
    (
        {"image": "x", "width": 64},
        "width is not a field of a request with a picture; leave it out: the result has the picture's size",
    ),
    ({"task": "text2img", "image": "x"}, "image is not a field of text2img; leave it out, or use img2img"),
    (
        {"task": "img2img", "image": "x", "mask_image": "x"},
        "mask_image is not a field of img2img; leave it out, or use inpainting",
    ),
]


@pytest.mark.parametrize(("fields", "sentence"), FAULTS)
def test_a_fault_is_told_in_the_words_of_json(fields: dict[str, Any], sentence: str):
    """The sentence says what to write instead, and names no class of this program."""
    with pytest.raises(Rejected) as caught:
        parse_manifest(json.dumps({"prompt": "a red circle", **fields}).encode())
    assert caught.value.message == sentence


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "x", "n" * 100_000: 1},
        {"prompt": "x", "task": "t" * 100_000},
        {"prompt": "x", "steps": "s" * 100_000},
        {"prompt": "x", "image": [0] * 100_000},
        {"prompt": "x", **{f"unknown{i}": i for i in range(20_000)}},
    ],
    ids=["a long name", "a long task", "a long value", "a long list", "many faults"],
)
def test_however_much_is_wrong_the_answer_is_short(document: dict[str, Any]):
    """It is read by a person, and written by a worker that has others to serve."""
    with pytest.raises(Rejected) as caught:
        validate_manifest(document)
    assert len(caught.value.message) < 2_000
    assert len(caught.value.field or "") <= 60
