"""No value in any field of a manifest breaks its reader: each is taken or refused, and what is taken can be echoed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.batch import split_rows
from schemas.errors import Rejected
from schemas.events import decode
from schemas.manifest import DEFAULT_LIMITS, Img2Img, Inpainting, Text2Img, has_expired, parse_manifest
from schemas.plan import Plan, plan
from schemas.result import Frozen, Result
from tests.odd_values import HUGE, LITERALS, odd

BODIES = {
    Text2Img: {"prompt": "x"},
    Img2Img: {"prompt": "x", "image": "aGk="},
    Inpainting: {"prompt": "x", "image": "aGk=", "mask_image": "aGk="},
}
FIELDS = sorted({(kind, name) for kind in BODIES for name in kind.model_fields}, key=str)
INNER = ('{{"name": "a", "weight": {}}}', '{{"name": {}}}')


def answered(body: bytes) -> Result | Rejected:
    """What a request ends with, read back from what is stored."""
    split_rows("b", body, DEFAULT_LIMITS)
    decode(body)
    try:
        manifest = parse_manifest(body)
    except Rejected as error:
        error.message.encode()
        (error.field or "").encode()
        return error
    has_expired(manifest)
    planned = plan(manifest, model="m", revision="", native_size=(64, 64), scheduler="Euler", random_seed=0)
    assert Plan.model_validate(json.loads(json.dumps(planned.document()))) == planned
    result = Result(
        id="a",
        status="succeeded",
        metadata=manifest.metadata,
        parameters=planned.document(),
        fingerprint="",
        request=Frozen.of(body),
    )
    return Result.model_validate_json(result.to_json())


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
def test_every_odd_literal_in_every_field_ends_in_one_answer(kind: type):
    """An integer of 400 digits raised OverflowError; 1e999 in `metadata` came back as null."""
    for name in [*kind.model_fields, "custom_id", "unknown"]:
        for literal in LITERALS:
            fields = {key: json.dumps(value) for key, value in BODIES[kind].items()} | {name: literal}
            body = "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}"
            try:
                answer = answered(body.encode())
            except Rejected:
                continue  # by the batch's reader: the name of a row
            if isinstance(answer, Result) and name == "metadata":
                assert answer.metadata == json.loads(literal)


@pytest.mark.parametrize("template", INNER)
@pytest.mark.parametrize("literal", LITERALS)
def test_every_odd_literal_inside_a_field_ends_in_one_answer(literal: str, template: str):
    """Fields inside `loras`, `output` and `metadata`."""
    for inner in (f'"loras": [{template}]', '"output": {{"quality": {}}}', '"metadata": {{"a": [{}]}}'):
        answer = answered(f'{{"prompt": "x", {inner.format(literal)}}}'.encode())
        if isinstance(answer, Result) and "metadata" in inner:
            assert answer.metadata == {"a": [json.loads(literal)]}


@given(st.sampled_from(FIELDS), odd)
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_in_any_field_ends_in_one_answer(field: tuple[Any, str], value: Any):
    """Random values; a refusal by the reader of rows is an answer, too."""
    kind, name = field
    with contextlib.suppress(Rejected):  # by the reader of rows
        answered(json.dumps({**BODIES[kind], name: value}).encode())


@pytest.mark.parametrize("field", ["steps", "number_of_images", "width", "height", "cfg_scale"])
def test_a_huge_number_is_refused_by_its_field_and_bound(field: str):
    """400 digits are cut in the message."""
    with pytest.raises(Rejected) as caught:
        parse_manifest(f'{{"prompt": "x", "{field}": {HUGE // 8 * 8}}}'.encode())
    assert caught.value.field == field
    assert len(caught.value.message) < 200


def test_a_number_that_no_answer_can_hold_is_refused_where_it_is():
    """1e999 is infinite for Python, and was echoed as null."""
    with pytest.raises(Rejected) as caught:
        parse_manifest(b'{"prompt": "x", "metadata": {"a": [1, {"b": 1e999}]}}')
    assert (caught.value.code, caught.value.field) == ("invalid_manifest", "metadata.a.1.b")
