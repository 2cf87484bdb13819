"""`upscale` and `refiner` in manifests, plans and recipes: what is resolved, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import validate_manifest
from schemas.manifest_limits import check_upscaled
from schemas.manifest_parts import Upscale, steps_to_draw
from schemas.plan import Plan, Refines, exact_names, plan
from schemas.text import infotext

TEXT = {"prompt": "a cat"}
PICTURE = {**TEXT, "image": "inputs/a.png"}


def planned(second: Refines | None = None, **fields: Any) -> Plan:
    return plan(
        validate_manifest({**TEXT, **fields}),
        model="m",
        revision="r",
        native_size=(512, 512),
        scheduler="Euler",
        random_seed=1,
        size_multiple=8,
        refiner=second,
    )


def test_an_upscale_is_resolved_in_the_plan():
    """Its defaults, and the steps of the request; the plan's steps count both passes."""
    one = planned(upscale={}, steps=20)
    assert one.upscale == Upscale(scale=2.0, strength=0.5, steps=20)
    assert one.all_steps == 30
    assert one.upscale.size(512, 768, "m", 8) == (1024, 1536)
    assert planned(image="inputs/a.png", upscale={"scale": 1.5, "steps": 8}).upscale == Upscale(
        scale=1.5, steps=8
    )


def test_a_plan_without_them_reads_as_ever():
    """An older worker reads it, and its hash is the same."""
    assert not {"upscale", "refiner"} & planned().document().keys()
    both = planned(Refines(model="x", at=0.8), upscale={"scale": 2})
    assert Plan.model_validate(json.loads(json.dumps(both.document()))) == both


@pytest.mark.parametrize("scale", [1.29167, 1.291667, 1.5, 4])
def test_a_scale_with_a_few_decimals_makes_a_whole_size(scale: float):
    width, height = Upscale(scale=scale).size(768, 768, "m", 8)
    assert width == height == round(768 * scale)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        (
            {"upscale": {"scale": 1.3}},
            "upscale.scale",
            "multiples of 8: 1.29688 (664 x 664) or 1.3125 (672 x 672)",
        ),
        ({"upscale": {"scale": 1}}, "upscale.scale", "greater than 1"),
        ({"upscale": {"scale": 5}}, "upscale.scale", "less than or equal to 4"),
        ({"upscale": {"strength": 0.1, "steps": 5}}, "upscale.strength", "leaves none of 5 steps"),
        ({"upscale": {"strength": 0}}, "upscale.strength", "greater than 0"),
        ({"upscale": {"steps": 151}}, "upscale.steps", "at most 150"),
        ({"upscale": {"scle": 2}}, "upscale.scle", "did you mean 'scale'?"),
        ({"upscale": 2}, "upscale", "an object {...} with scale, strength, steps"),
        (
            {**PICTURE, "mask_image": "inputs/b.png", "upscale": {}},
            "upscale",
            "keeps every pixel outside the mask",
        ),
        (
            {**PICTURE, "mask_image": "inputs/b.png", "refiner": {"model": "x"}},
            "refiner",
            "is not a field of inpaint",
        ),
        ({"refiner": {"at": 0.5}}, "refiner.model", "is missing"),
        ({"refiner": {"model": "x", "at": 1.0}}, "refiner.at", "less than 1"),
        ({"refiner": {"model": "x", "at": 0.9}, "steps": 5}, "refiner.at", "the refiner none of 5 steps"),
        ({"refiner": {"model": "x", "at": 0.1}, "steps": 5}, "refiner.at", "the model none of 5 steps"),
        (
            {**PICTURE, "strength": 0.3, "refiner": {"model": "x", "at": 0.7}},
            "refiner.at",
            "the model none of 30",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_field(fields: dict[str, Any], field: str, words: str):
    with pytest.raises(Rejected) as refused:
        planned(Refines(model="x", at=fields.get("refiner", {}).get("at", 0.8)), **fields)
    assert refused.value.field == field
    assert words in refused.value.message


def test_the_nearest_scales_are_told_for_every_multiple():
    """Also where the picture itself is of no such multiple; what is told can be asked for."""
    with pytest.raises(Rejected, match=r"multiples of 16: 2 \(1024 x 1552\)$"):
        Upscale(scale=1.3).size(512, 776, "m", 16)
    assert Upscale(scale=2).size(512, 776, "m", 16) == (1024, 1552)
    with pytest.raises(Rejected, match="begin with another size"):
        Upscale(scale=1.3).size(8, 8, "m", 64)


def test_the_final_size_is_checked():
    """By pixels and by side, as the limits hold for the model."""
    for limits, words in (
        (Limits(max_pixels=1_000_000), "1,000,000 pixels"),
        (Limits(max_side=1000), "1000 a side"),
    ):
        with pytest.raises(Rejected, match=words) as refused:
            check_upscaled(planned(upscale={}), (512, 512), 8, limits)
        assert refused.value.field == "upscale.scale"
    check_upscaled(planned(upscale={}), (512, 512), 8, Limits())


@pytest.mark.parametrize(
    "fields",
    [
        {"loras": [{"name": "l"}]},
        {"controlnet": [{"name": "c", "image": "inputs/c.png"}]},
        {"ip_adapter": {"name": "i", "image": "inputs/i.png"}},
    ],
)
def test_what_acts_on_the_first_model_only_is_told(fields: dict[str, Any]):
    """A refiner draws without it; an upscale is drawn by the first model again."""
    one = planned(Refines(model="x", at=0.8), refiner={"model": "x"}, **fields)
    assert [(note.code, note.field) for note in one.notes] == [("ignored", *fields)]
    assert planned(upscale={}, **fields).notes == ()


def test_exact_names_have_the_refiner_s_version():
    """So that a picture that is drawn again has the same weights."""
    document = planned(Refines(model="fine", at=0.7, revision="3", version=3)).document()
    assert exact_names(document) == {"refiner": {"model": "fine@3", "at": 0.7}}
    assert exact_names({"refiner": {"model": ["odd"]}}) == {}


def test_other_programs_read_both_in_the_recipe():
    """A1111's names; its strength is that of the second pass, and its steps are those that are drawn."""
    recipe = {**TEXT, "steps": 20, "seed": 5, "width": 512, "height": 512, "cfg_scale": 7, "model": "xl"}
    recipe |= {
        "upscale": {"scale": 1.5, "strength": 0.4, "steps": 30},
        "refiner": {"model": "fine", "at": 0.8},
    }
    text = infotext.write(recipe)
    for part in ("Size: 512x512", "Hires upscale: 1.5", "Hires steps: 12", "Denoising strength: 0.4"):
        assert part in text
    assert "Refiner: fine, Refiner switch at: 0.8" in text
    found = infotext.read(text)
    assert found["upscale"] == {"scale": 1.5, "strength": 0.4, "steps": 30}
    assert found["refiner"] == {"model": "fine", "at": 0.8}
    assert "strength" not in found


@pytest.mark.parametrize(
    ("pairs", "upscale"),
    [
        (
            "Hires upscale: 2, Hires steps: 10, Denoising strength: 0.5",
            {"scale": 2, "strength": 0.5, "steps": 20},
        ),
        ("Hires resize: 768x1152, Denoising strength: 0.7", {"scale": 1.5, "strength": 0.7, "steps": 29}),
        ("Hires upscale: 2", {"scale": 2}),
        ("Hires upscale: 2, Hires steps: 99999999999999999999, Denoising strength: 1e-300", {"scale": 2}),
        ("Hires upscale: x, Hires resize: 0x0x0", {"scale": 0.0}),
    ],
)
def test_a_second_pass_of_a1111_is_read(pairs: str, upscale: dict[str, Any]):
    text = f"a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 512x768, {pairs}"
    assert infotext.read(text)["upscale"] == upscale


def test_steps_to_draw_is_the_inverse():
    for drawn in range(1, 60):
        for hundredths in range(1, 101):
            steps = steps_to_draw(drawn, hundredths / 100)
            assert int(steps * (hundredths / 100)) >= drawn
            assert int((steps - 1) * (hundredths / 100)) <= drawn


def test_parentheses_in_a_recipe_of_a1111_are_weights():
    """In one that was drawn here they are what they were."""
    text = "a (red) cat\nNegative prompt: (bad)\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5"
    found = infotext.read(text)
    assert (found["prompt"], found["negative_prompt"]) == ("a (red:1.1) cat", "(bad:1.1)")
    assert infotext.read(text + ", Version: Dreamdrop")["prompt"] == "a (red) cat"
