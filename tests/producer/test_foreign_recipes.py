"""Pictures of other programs given to `replay` and to png-info: read, or refused in words that fit."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from producer.recipe import read_recipe
from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.text import foreign_recipes, infotext
from tests.producer.facade import facade

WANTED = {"prompt": "red circle", "negative_prompt": "bad", "seed": 5, "steps": 20, "cfg_scale": 7}
WANTED |= {"width": 512, "height": 640}
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            **{
                "seed": 5,
                "steps": 20,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1,
            },
            **{"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "red circle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
}
SWARM = {
    "sui_image_params": {
        **{"prompt": "red circle", "negativeprompt": "bad", "seed": 5, "steps": 20, "cfgscale": 7.0},
        **{"width": 512, "height": 640, "swarm_version": "0.9.6"},
    }
}
FOOOCUS = {
    **{"prompt": "red circle", "negative_prompt": "bad", "steps": 20, "resolution": "(512, 640)"},
    **{"guidance_scale": 7.0, "seed": "5", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras"},
}
INVOKE = {
    **{"positive_prompt": "red circle", "negative_prompt": "bad", "seed": 5, "steps": 20, "cfg_scale": 7},
    **{"width": 512, "height": 640, "scheduler": "euler_a", "model": {"name": "sd-1", "base": "sd-1"}},
    **{"generation_mode": "txt2img", "loras": [{"model": {"name": "ink"}, "weight": 0.5}]},
}
NOVEL = {"uc": "bad", "seed": 5, "steps": 20, "scale": 7.0, "width": 512, "height": 640, "sampler": "k_euler"}
TEXTS = {
    "SwarmUI": {"parameters": json.dumps(SWARM, indent=2)},
    "Fooocus": {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"},
    "ComfyUI": {"prompt": json.dumps(GRAPH), "workflow": "{}"},
    "InvokeAI": {"invokeai_metadata": json.dumps(INVOKE)},
    "NovelAI": {"Software": "NovelAI", "Description": "red circle", "Comment": json.dumps(NOVEL)},
}


def picture(path: Path, texts: dict[str, str]) -> Path:
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    Image.new("RGB", (64, 32)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("program", TEXTS)
def test_the_pictures_of_other_programs_are_read(tmp_path: Path, program: str):
    """Prompt, numbers and size come back, whatever the program calls them."""
    found = read_recipe(picture(tmp_path / "a.png", TEXTS[program])).manifest
    assert {field: found.get(field) for field in WANTED} == WANTED
    if program == "InvokeAI":
        assert found["loras"] == [{"name": "ink", "weight": 0.5}]
    validate_manifest({k: v for k, v in found.items() if k not in ("scheduler", "model")})


def test_a_comfyui_webp_is_read(tmp_path: Path):
    """It holds the graph in the EXIF field of the camera's model."""
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(GRAPH)
    Image.new("RGB", (64, 32)).save(tmp_path / "a.webp", exif=exif)
    assert read_recipe(tmp_path / "a.webp").manifest["prompt"] == "red circle"


REFUSED = [
    ({"prompt": json.dumps(GRAPH | {"9": GRAPH["3"]})}, "drawn by ComfyUI, and its graph has 2 samplers"),
    ({"workflow": "{}"}, "drawn by ComfyUI"),
    ({"parameters": '{"some": "thing"}'}, "JSON in a form of its own"),
    ({"parameters": '{"prompt": "half'}, "its recipe is damaged"),
    ({"invokeai_metadata": "{}"}, "drawn by InvokeAI, and its recipe has no prompt"),
    ({"Dream": '"a cat" -s 50'}, "InvokeAI 2"),
]


@pytest.mark.parametrize(("texts", "why"), REFUSED)
def test_what_is_not_a_request_is_refused_by_the_programs_name(
    tmp_path: Path, texts: dict[str, str], why: str
):
    """Never JSON as a prompt."""
    with pytest.raises(Rejected, match=why):
        read_recipe(picture(tmp_path / "a.png", texts))


def test_png_info_reads_and_refuses_them(tmp_path: Path):
    """The endpoint answers with A1111's text, or 422 with the program's name."""
    with facade(tmp_path / "store") as address:

        def info(texts: dict[str, str]) -> httpx.Response:
            image = base64.b64encode(picture(tmp_path / "a.png", texts).read_bytes()).decode()
            return httpx.post(f"{address}/sdapi/v1/png-info", json={"image": image})

        for texts in TEXTS.values():
            answer = info(texts).json()
            assert answer["info"].startswith("red circle")
            assert "\nNegative prompt: bad\nSteps: 20, " in answer["info"]
            assert (answer["parameters"]["Size"], answer["items"]) == ("512x640", texts)
        refused = info(REFUSED[0][0])
        assert (refused.status_code, "ComfyUI" in refused.text) == (422, True)


_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["sui_image_params", "model", "inputs", "class_type", "text", "3", "positive", *WANTED]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.sampled_from(list(infotext.KEYWORDS)), _JSON)
def test_hostile_json_is_read_or_refused(keyword: str, value: Any):
    """Whatever a stranger writes, the answer is a request that JSON can hold, or a refusal."""
    texts = {keyword: json.dumps(value), "Software": "NovelAI"}
    try:
        found = foreign_recipes.read(texts)
    except Rejected:
        return
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "line",
    [
        "Steps: 20, Size: ²x², CFG scale: nan, Seed: 5",
        "Steps: 1e999, Size: 512, CFG scale: inf, Seed: ٣",
        f"Steps: {'9' * 5000}, Size: 99999999x1, CFG scale: -, Seed: 0x5",
        f"Steps: {'9' * 400}, Size: -1x-1, CFG scale: 1_0, Seed: 5.0",
    ],
)
def test_a_hostile_parameters_text_is_read_as_far_as_it_goes(tmp_path: Path, line: str):
    """Nothing is raised, and JSON can hold what is read."""
    found = read_recipe(picture(tmp_path / "a.png", {"parameters": f"a cat\n{line}"})).manifest
    assert found["prompt"] == "a cat"
    json.dumps(found, allow_nan=False)


def test_what_a_worker_would_refuse_is_told(tmp_path: Path):
    """A size that another program can draw and we cannot."""
    found = read_recipe(
        picture(tmp_path / "a.png", {"parameters": "a cat\nSteps: 20, Seed: 1, Size: 510x512"})
    )
    assert "multiples of 8" in found.notes[-1]
