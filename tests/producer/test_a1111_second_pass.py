"""A1111's hires fix and refiner: translated, told, or refused in its own words."""

from __future__ import annotations

from typing import Any

import pytest

from producer.web.a1111.fields import manifest_of
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import validate_manifest
from schemas.manifest_parts import Upscale

HIRES = {"prompt": "a cat", "steps": 20, "width": 512, "height": 768, "enable_hr": True}


def translated(body: dict[str, Any], *, img2img: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The manifest, and the fields of which something is told."""
    found = manifest_of(body, img2img=img2img, model=None, limits=Limits())
    return found.manifest, [note.field or "" for note in found.notes]


@pytest.mark.parametrize(
    ("fields", "upscale", "told"),
    [
        ({}, {"scale": 2.0, "strength": 0.75, "steps": 27}, []),
        ({"hr_scale": "1.5", "denoising_strength": 0.5}, {"scale": 1.5, "strength": 0.5, "steps": 40}, []),
        ({"hr_second_pass_steps": 7, "denoising_strength": 1}, {"scale": 2.0, "strength": 1, "steps": 7}, []),
        ({"hr_resize_x": 768}, {"scale": 1.5, "strength": 0.75, "steps": 27}, []),
        ({"hr_resize_x": 1024, "hr_resize_y": 1536, "hr_scale": 3}, {"scale": 2.0, "strength": 0.75, "steps": 27}, []),
        ({"hr_upscaler": "Latent"}, {"scale": 2.0, "strength": 0.75, "steps": 27}, ["hr_upscaler"]),
        ({"hr_upscaler": "None"}, {"scale": 2.0, "strength": 0.75, "steps": 27}, []),
        ({"hr_upscaler": "Lanczos"}, {"scale": 2.0, "strength": 0.75, "steps": 27}, []),
        ({"denoising_strength": 0.05}, {"scale": 2.0, "strength": 0.05, "steps": 150}, ["hr_second_pass_steps"]),
        (
            {"hr_sampler_name": "Use same sampler", "hr_prompt": "a cat", "hr_checkpoint_name": "Use same checkpoint"},
            {"scale": 2.0, "strength": 0.75, "steps": 27},
            [],
        ),
    ],
)  # fmt: skip
def test_a_hires_fix_is_an_upscale(fields: dict[str, Any], upscale: dict[str, Any], told: list[str]):
    """As many steps are drawn as A1111 draws; a filter that is not here is told."""
    manifest, notes = translated({**HIRES, **fields})
    assert manifest["upscale"] == upscale
    assert notes == told
    if not told:
        drawn = Upscale.model_validate(upscale).drawn_steps(20)
        assert drawn == fields.get("hr_second_pass_steps", 20)


def test_without_enable_hr_its_fields_do_nothing():
    """Clients send all of them, always."""
    body = {**HIRES, "enable_hr": False, "hr_scale": 2, "denoising_strength": 0.3, "hr_upscaler": "Latent"}
    manifest, notes = translated({**body, "hr_prompt": "something else"})
    assert "upscale" not in manifest
    assert notes == []


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"hr_scale": 1.3}, None, ""),  # the size of the model decides: its worker refuses it
        ({"hr_scale": 9}, "hr_scale", "less than or equal to 4"),
        ({"hr_scale": "big"}, "hr_scale", "number"),
        ({"denoising_strength": 0}, "denoising_strength", "greater than 0"),
        ({"hr_second_pass_steps": 500}, "hr_second_pass_steps", "at most 150"),
        ({"hr_resize_x": 1024, "hr_resize_y": 1024}, "hr_resize_x", "another shape than 512 x 768"),
        ({"hr_resize_x": 1024, "width": None}, "hr_resize_x", "needs width and height"),
        ({"hr_prompt": "a dog"}, "hr_prompt", "as the first one is"),
        ({"hr_sampler_name": "DDIM"}, "hr_sampler_name", "as the first one is"),
        ({"hr_checkpoint_name": "other"}, "hr_checkpoint_name", "as the first one is"),
        ({"refiner_checkpoint": "fine", "refiner_switch_at": 0}, "refiner_switch_at", "greater than 0"),
        ({"refiner_checkpoint": 5}, "refiner_checkpoint", "title of a model"),
    ],
)
def test_what_cannot_be_is_refused_in_its_words(fields: dict[str, Any], field: str | None, words: str):
    if field is None:
        validate_manifest(translated({**HIRES, **fields})[0])
        return
    with pytest.raises(Rejected) as refused:
        translated({**HIRES, **fields})
    assert refused.value.field == field
    assert words in refused.value.message


def test_a_refiner_is_translated():
    """Its title may have a hash; a switch at the end leaves it nothing."""
    plain = {"prompt": "a cat", "refiner_checkpoint": "fine.safetensors [1a2b3c]"}
    assert translated(plain)[0]["refiner"] == {"model": "fine.safetensors", "at": 0.8}
    assert translated({**plain, "refiner_switch_at": "0.6"})[0]["refiner"]["at"] == 0.6
    manifest, notes = translated({**plain, "refiner_switch_at": 1.0})
    assert ("refiner" in manifest, notes) == (False, ["refiner_checkpoint"])
    manifest, notes = translated({**plain, "enable_hr": True})
    assert (set(manifest) >= {"refiner", "upscale"}, notes) == (True, ["refiner_checkpoint"])
    for nothing in (None, "", "None", "string"):
        assert "refiner" not in translated({"prompt": "a cat", "refiner_checkpoint": nothing})[0]


def test_parentheses_are_weights_as_its_clients_mean_them():
    """In both prompts; tags of LoRAs are read first, and the manifest says the weight."""
    body = {"prompt": "a (red) cat <lora:ink:0.5>", "negative_prompt": "(blurry), bad"}
    manifest, notes = translated(body)
    assert (manifest["prompt"], manifest["negative_prompt"]) == ("a (red:1.1) cat", "(blurry:1.1), bad")
    assert notes == []
