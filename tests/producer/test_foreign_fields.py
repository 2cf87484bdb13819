"""Random bodies of A1111 and OpenAI: each is translated or refused with a message, and none breaks the server."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from producer.web import openapi
from producer.web.a1111 import fields as a1111_fields
from producer.web.a1111 import neutral
from producer.web.openai import batch_input
from producer.web.openai import fields as openai_fields
from schemas.errors import Rejected
from schemas.manifest import DEFAULT_LIMITS, validate_manifest
from tests.odd_values import HUGE, numbers, texts

PICTURE = openapi.examples()["redraw"]["value"]["image"]
SETTINGS = ("sd_model_checkpoint", "CLIP_stop_at_last_layers", "samples_format", "sd_vae", "other")
A1111 = (*neutral.NEUTRAL, *a1111_fields.A1111_NAMES.values(), *a1111_fields.SAME)
A1111 = (
    *A1111,
    "seed",
    "n_iter",
    "sampler_index",
    "scheduler",
    "resize_mode",
    "width",
    "mask_blur",
    "unknown",
)
OPENAI = ("prompt", "n", "size", "response_format", "output_format", "output_compression", "background")
OPENAI = (
    *OPENAI,
    "stream",
    "seed",
    "steps",
    "metadata",
    "loras",
    "output",
    "task",
    "id",
    "expires_at",
    "user",
)

scalars = (
    st.none() | numbers.filter(lambda value: not isinstance(value, float) or math.isfinite(value)) | texts
)
likely = st.sampled_from(
    ["", "karras", "Euler a", "auto", "64x64", "url", "png", "<lora:x:9>", PICTURE, 64, -1]
)
values = st.recursive(
    scalars | likely | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from(A1111), values, max_size=4),
    st.dictionaries(st.sampled_from(SETTINGS), values, max_size=2),
    st.booleans(),
)
@example({}, {"samples_format": {}}, False)
@example({"steps": HUGE}, {}, False)
@example({"denoising_strength": HUGE, "width": HUGE}, {}, True)
@settings(max_examples=300, deadline=None)
def test_an_a1111_body_is_a_manifest_or_refused(
    body: dict[str, Any], chosen: dict[str, Any], img2img: bool
) -> None:
    """A translated body can be written as JSON and is a valid manifest."""
    whole = {"prompt": "x", "init_images": [PICTURE], "override_settings": chosen, **body}
    whole = whole if img2img else {k: v for k, v in whole.items() if k != "init_images"}
    try:
        translation = a1111_fields.manifest_of(whole, img2img=img2img, model=None, limits=DEFAULT_LIMITS)
    except Rejected:
        return  # any other error would be a 500
    validate_manifest(json.loads(json.dumps(translation.manifest)), DEFAULT_LIMITS)


@given(st.dictionaries(st.sampled_from(OPENAI), values, max_size=4), values)
@settings(max_examples=300, deadline=None)
def test_an_openai_body_is_a_manifest_or_refused(body: dict[str, Any], name: Any) -> None:
    """Alone, and as a line of a batch, where the refusal has the line's number."""
    whole = {"prompt": "x", **body}
    right = True
    try:
        validate_manifest(openai_fields.manifest_of(whole).manifest, DEFAULT_LIMITS)
    except Rejected:
        right = False
    line = {"custom_id": name, "method": "POST", "url": batch_input.ENDPOINT, "body": whole}
    read = batch_input.read_lines(json.dumps(line).encode(), DEFAULT_LIMITS, 1_999_999_999)
    assert len(read.rows) + len(read.faults) == 1
    assert all(fault.line == 1 for fault in read.faults)
    assert right or not read.rows
