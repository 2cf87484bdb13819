"""Bodies of real programs at A1111's endpoints: drawn, with warnings, or refused in the programs' own words."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.producer.a1111_bodies import IMG2IMG, TXT2IMG
from tests.producer.facade import facade, ready, worker

ASK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("bodies") / "store"
    with worker(store), facade(store) as listening:
        ready(listening)
        yield listening


def picture(mode: str = "RGB", colour: Any = "teal") -> str:
    out = io.BytesIO()
    Image.new(mode, (64, 64), colour).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def sdapi(address: str, path: str = "txt2img", **fields: Any) -> httpx.Response:
    return httpx.post(f"{address}/sdapi/v1/{path}", json={**ASK, **fields}, timeout=60)


def warnings_in(answer: httpx.Response) -> dict[str, str]:
    """The field and the code of each warning."""
    assert answer.status_code == 200, answer.text
    return {
        note["field"]: note["code"] for note in json.loads(answer.json()["info"])["dreamdrop"]["warnings"]
    }


@pytest.mark.parametrize("program", TXT2IMG)
def test_a_programs_body_is_drawn(address: str, program: str):
    """With the fields and the defaults that it sends."""
    answer = httpx.post(f"{address}/sdapi/v1/txt2img", json=TXT2IMG[program], timeout=60)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["images"]) == 1


@pytest.mark.parametrize("program", IMG2IMG)
@pytest.mark.parametrize("mask", [False, True], ids=["img2img", "inpainting"])
def test_a_programs_body_is_redrawn(address: str, program: str, mask: bool):
    """With and without a mask."""
    body = {**IMG2IMG[program], "init_images": [picture()]} | ({"mask": picture("L", 255)} if mask else {})
    answer = httpx.post(f"{address}/sdapi/v1/img2img", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


def test_what_is_ignored_is_told(address: str):
    """Saving options, other programs' fields, and scripts that are off."""
    told = {"save_images": True, "do_not_save_images": True, "distilled_cfg_scale": 2.0, "inpainting_fill": 2}
    settings = {"randn_source": "NV", "grid_save": True}
    scripts = {"ADetailer": {"args": [False, True, {}]}}
    answer = sdapi(address, **told, override_settings=settings, alwayson_scripts=scripts)
    fields = [*told, "alwayson_scripts.ADetailer", *(f"override_settings.{name}" for name in settings)]
    assert warnings_in(answer) == dict.fromkeys(fields, "ignored")


@pytest.mark.parametrize(
    ("name", "value", "drawn"),
    [
        *(("steps", value, 4) for value in ("4", 4.0, "4.0", " 4 ")),
        *(("seed", value, 5) for value in ("5", 5.0, "5.0")),
        ("cfg_scale", "7.5", 7.5),
        ("batch_size", "2", 2),
        ("n_iter", 2.0, 2),
        ("width", "128", 128),
    ],
)
def test_numbers_are_taken_as_text_and_as_floats(address: str, name: str, value: Any, drawn: float):
    """As A1111's own models take them."""
    answer = sdapi(address, **{name: value})
    assert answer.status_code == 200, answer.text
    info = json.loads(answer.json()["info"])
    assert {**info, "batch_size": len(answer.json()["images"]), "n_iter": len(answer.json()["images"])}[
        name
    ] == drawn


@pytest.mark.parametrize("value", [4.5, "many", True, "4,5", [4], "nan"])
def test_what_is_not_a_whole_number_is_refused(address: str, value: Any):
    """By its name."""
    for name in ("steps", "seed", "batch_size", "width"):
        refused = sdapi(address, **{name: value})
        assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["body", name])


def test_a_hires_fix_is_drawn_at_its_size_and_told_as_a1111_tells_it(address: str):
    """Width and height are those of the first pass; the picture is larger."""
    answer = sdapi(address, enable_hr=True, hr_scale=1.5, denoising_strength=0.5, hr_second_pass_steps=4)
    assert warnings_in(answer) == {}
    with Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))) as drawn:
        assert drawn.size == (96, 96)
        text = drawn.info["parameters"]
    info = json.loads(answer.json()["info"])
    assert (info["width"], info["height"], info["denoising_strength"]) == (64, 64, 0.5)
    assert "Size: 64x64" in text
    assert "Denoising strength: 0.5, Hires upscale: 1.5, Hires steps: 4" in text
    assert info["infotexts"][0] == text


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"sampler_name": "Euler", "scheduler": "Exponential"}, "scheduler"),
        ({"sampler_name": "Exponential"}, "sampler_name"),
        ({"override_settings": {"sd_model_checkpoint": "nope"}}, "override_settings.sd_model_checkpoint"),
        (
            {"override_settings": {"CLIP_stop_at_last_layers": 99}},
            "override_settings.CLIP_stop_at_last_layers",
        ),
        (
            {"override_settings": {"samples_format": "jpg", "jpeg_quality": 0}},
            "override_settings.jpeg_quality",
        ),
        ({"clip_skip": 99}, "clip_skip"),
        ({"enable_hr": True, "hr_scale": 1.01}, "hr_scale"),
        ({"refiner_checkpoint": "nope"}, "refiner_checkpoint"),
        ({"refiner_checkpoint": "sd15"}, "refiner_checkpoint"),
        ({"prompt": "a <lora:x:9>"}, "prompt"),
        ({"prompt": "a <lora:x:strong>"}, "prompt"),
        ({"batch_size": 65}, "batch_size"),
        ({"init_images": [picture()]}, "init_images"),
        (
            {"alwayson_scripts": {"controlnet": {"args": [{"module": "canny"}]}}},
            "alwayson_scripts.controlnet.args.0.module",
        ),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, False, {}]}}}, "alwayson_scripts"),
        ({"cfg_scale": -1, "steps": 0, "batch_size": 0}, "batch_size"),
    ],
    ids=str,
)
def test_a_refusal_names_the_field_that_the_caller_sent(address: str, fields: dict[str, Any], loc: str):
    """Also where the worker refuses it."""
    refused = sdapi(address, **fields)
    assert (refused.status_code, ".".join(refused.json()["detail"][0]["loc"][1:])) == (422, loc)


def test_faults_that_are_told_together_have_the_callers_names(address: str):
    """The first is the entry's field, and the others are in its message."""
    refused = sdapi(address, "img2img", init_images=[picture()], denoising_strength=7, steps=0)
    fault = refused.json()["detail"][0]
    assert fault["loc"] == ["body", "steps"]
    assert "denoising_strength is 7" in fault["msg"]


@pytest.mark.parametrize(
    ("mode", "colour", "repainted"),
    [
        ("RGBA", (0, 0, 0, 0), False),
        ("RGBA", (0, 0, 0, 255), False),
        ("RGBA", (255, 255, 255, 255), True),
        ("L", 0, False),
        ("L", 255, True),
    ],
)
def test_a_mask_speaks_as_it_does_to_a1111(address: str, mode: str, colour: Any, repainted: bool):
    """One that asks for nothing is told so."""
    mask = {"mask": picture(mode, colour), "mask_blur": 0, "inpaint_full_res": False, "inpainting_fill": 1}
    answer = sdapi(address, "img2img", init_images=[picture()], **mask)
    assert warnings_in(answer) == ({} if repainted else {"mask": "empty_mask"})


def test_a_mask_painted_on_a_transparent_ground_repaints_what_is_painted(address: str):
    """A canvas's strokes are opaque, in any colour."""
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    mask.paste((0, 0, 0, 255), (0, 0, 32, 64))
    out = io.BytesIO()
    mask.save(out, "PNG")
    answer = sdapi(
        address, "img2img", init_images=[picture()], mask=base64.b64encode(out.getvalue()).decode()
    )
    id = json.loads(answer.json()["info"])["dreamdrop"]["id"]
    sent = httpx.get(f"{address}/jobs/{id}/request").json()["mask_image"]
    grey = Image.open(io.BytesIO(base64.b64decode(sent)))
    assert [grey.getpixel(at) for at in ((10, 32), (50, 32))] == [255, 0]
