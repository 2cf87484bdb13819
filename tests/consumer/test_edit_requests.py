"""What a request says to a model that edits pictures is judged when it is planned, before anything is loaded."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from consumer.intake.claiming import RequestClaimer
from consumer.intake.fleet import Capabilities
from consumer.intake.names import Meaning
from infra.models.cards import Cards, ModelCard
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import validate_manifest
from schemas.plan import Plan


def plan_of(family: str, **fields: Any) -> Plan:
    """The plan of a request to a model of a family."""
    card = ModelCard("edits", (), 1024, 1024, scheduler="Flow Euler", flow=True, family=family)
    claimer = RequestClaimer(None, None, Cards.of(), "doodle", Limits(), lambda: 0.0, random.Random(1))  # type: ignore[arg-type]
    return claimer.plan(validate_manifest({"prompt": "a fox", **fields}), Meaning(card))


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("sd2", {"image": ["a", "b"]}, "image has 2 pictures; model 'edits' takes one"),
        ("FluxKontextPipeline", {"image": ["a", "b"]}, "image has 2 pictures; model 'edits' takes one"),
        (
            "QwenImageEditPlusPipeline",
            {"image": ["a"] * 4},
            "image has 4 pictures; model 'edits' takes at most 3",
        ),
        ("Flux2KleinPipeline", {"image": ["a"] * 5}, "image has 5 pictures; model 'edits' takes at most 4"),
        (
            "QwenImageEditPipeline",
            {},
            "image is missing; model 'edits' edits pictures, so it needs one or more",
        ),
        (
            "QwenImageEditPipeline",
            {"image": "a", "mask_image": "b"},
            "mask_image is not read by model 'edits'",
        ),
    ],
)
def test_pictures_that_a_model_does_not_take(family: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Rejected) as refused:
        plan_of(family, **fields)
    assert refused.value.message.startswith(message)
    assert refused.value.field == message.partition(" ")[0]


@pytest.mark.parametrize(
    ("family", "fields", "task"),
    [
        ("sd2", {"image": ["a"]}, "img2img"),
        ("QwenImageEditPlusPipeline", {"image": ["a", "b", "c"]}, "img2img"),
        ("FluxKontextPipeline", {"width": 512, "height": 512}, "text2img"),
        ("", {"image": "a"}, "img2img"),
    ],
)
def test_pictures_that_it_takes(family: str, fields: dict[str, Any], task: str) -> None:
    assert plan_of(family, **fields).task == task


def test_strength_is_left_out_of_an_edits_plan() -> None:
    """A number that was sent gets a note; the default of img2img would be none of the request's."""
    left_open = plan_of("FluxKontextPipeline", image="a")
    sent = plan_of("FluxKontextPipeline", image="a", strength=0.8)
    other = plan_of("sd2", image="a")

    assert (left_open.strength, left_open.notes) == (None, ())
    assert (sent.strength, other.strength) == (None, 0.8)
    assert [(note.code, note.field) for note in sent.notes] == [("ignored", "strength")]


def test_an_older_worker_leaves_a_list_of_pictures_to_a_newer_one() -> None:
    """It knows the field and not that it may be a list; its refusal names the field."""
    newer = Capabilities.own(["edits"], [], Limits())
    older = dataclasses.replace(newer, fields=newer.fields - {"image=list"})
    error = Rejected.of_field("image", "should be a valid string")
    body = b'{"prompt": "x", "image": ["a", "b"]}'

    assert "image=list" in newer.fields
    assert newer.can_draw(error, body, len(body), batch=False, refused_by=older)
    assert not newer.can_draw(error, body, len(body), batch=False, refused_by=newer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": []}, "image is a list of 0; it should have 1 to 16 pictures"),
        ({"image": ["a"] * 17}, "image is a list of 17; it should have 1 to 16 pictures"),
        ({"image": ["a", 5]}, "image has no picture as text at place 1 of its list"),
        ({"image": ["a", ""]}, "image has no picture as text at place 1 of its list"),
        ({"image": 5}, "image is a number; it should be a picture as text, or a list of them"),
        ({"image": ["a", "b"], "mask_image": "c"}, "image is a list of 2; inpainting repaints one picture"),
    ],
)
def test_a_list_that_is_none_of_pictures(fields: dict[str, Any], message: str) -> None:
    """The message never repeats a picture."""
    with pytest.raises(Rejected) as refused:
        validate_manifest({"prompt": "a fox", **fields})
    assert refused.value.message.startswith(message)
    assert refused.value.field == "image"
