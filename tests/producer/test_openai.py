"""OpenAI's endpoints, called by OpenAI's own client."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.producer.facade import facade, ready, worker
from tests.producer.openai_calls import OURS, client, opened


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker that fails when it is told to."""
    place = tmp_path_factory.mktemp("openai") / "store"
    with worker(place, "--null", json.dumps({"fail_on": "please fail", "seconds_per_step": 0.01})):
        yield place


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    with facade(store) as listening:
        ready(listening)
        yield listening


@pytest.fixture
def api(address: str) -> Iterator[openai.OpenAI]:
    """The foreign client, as its own documentation makes it."""
    with client(address) as opened:
        yield opened


def png(size: tuple[int, int] = (64, 48), colour: Any = (40, 80, 200), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")
    return out.getvalue()


def sent(address: str, answer: Any) -> dict[str, Any]:
    """The manifest that an answer was drawn from."""
    return httpx.get(f"{address}/jobs/{answer.id}/request").json()


def test_words_become_pictures(api: openai.OpenAI):
    """As many as asked for, in the size asked for, with the seeds beside them."""
    answer = api.images.generate(prompt="a red circle", n=2, size="64x48", extra_body=OURS)
    assert [opened(one.b64_json).size for one in answer.data] == [(64, 48)] * 2
    assert answer.seeds == [5, 6]
    assert abs(answer.created - time.time()) < 600
    assert answer.output_format == "png"


def test_every_field_of_a_manifest_may_travel_along(api: openai.OpenAI, address: str):
    """Settings of OpenAI's models that no model here has are accepted and ignored."""
    answer = api.images.generate(
        prompt="x",
        model="sd15",
        size="auto",
        quality="high",
        style="vivid",
        background="auto",
        user="somebody",
        output_format="webp",
        output_compression=60,
        extra_body={**OURS, "cfg_scale": 3.5, "negative_prompt": "blue", "scheduler": "Euler a"},
    )
    assert opened(answer.data[0].b64_json).format == "WEBP"
    manifest = sent(address, answer)
    assert {k: manifest[k] for k in ("model", "cfg_scale", "negative_prompt", "scheduler", "output")} == {
        "model": "sd15",
        "cfg_scale": 3.5,
        "negative_prompt": "blue",
        "scheduler": "Euler a",
        "output": {"format": "webp", "quality": 60},
    }
    assert "width" not in manifest


def test_a_picture_may_be_an_address(api: openai.OpenAI):
    """A whole one, of the server as the caller knows it."""
    answer = api.images.generate(prompt="x", size="64x64", response_format="url", extra_body=OURS)
    assert answer.data[0].b64_json is None
    assert httpx.get(answer.data[0].url).content.startswith(b"\x89PNG")


def test_the_transparent_part_of_a_mask_is_drawn_anew(api: openai.OpenAI, address: str):
    """Transparent there is white here."""
    mask = Image.new("RGBA", (64, 48), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 48))
    out = io.BytesIO()
    mask.save(out, "PNG")
    answer = api.images.edit(
        image=("a.png", png()), mask=("m.png", out.getvalue()), prompt="x", n=2, extra_body=OURS
    )
    assert [opened(one.b64_json).size for one in answer.data] == [(64, 48)] * 2
    manifest = sent(address, answer)
    assert (manifest["task"], manifest["seed"]) == ("inpainting", 5)
    white = opened(manifest["mask_image"])
    assert [white.getpixel(at) for at in ((10, 24), (50, 24))] == [255, 0]


def test_without_a_mask_the_whole_picture_is_redrawn(api: openai.OpenAI, address: str):
    """In its own size or another of the same shape."""
    answer = api.images.edit(image=[("a.png", png())], prompt="x", extra_body={**OURS, "strength": 0.5})
    assert (sent(address, answer)["task"], sent(address, answer)["strength"]) == ("img2img", 0.5)
    larger = api.images.edit(image=("a.png", png()), prompt="x", size="128x96", extra_body=OURS)
    assert opened(larger.data[0].b64_json).size == (128, 96)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"size": "64"}, "size"),
        ({"size": "63x64"}, "size"),
        ({"n": 1000}, "n"),
        ({"background": "transparent"}, "background"),
        ({"extra_body": {"stream": True}}, "stream"),
        ({"extra_body": {"stepz": 3}}, "stepz"),
        ({"output_format": "gif"}, "output_format"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_wrong_is_a_bad_request_that_names_the_field(
    api: openai.OpenAI, fields: dict[str, Any], param: str
):
    """As the class that users of the client catch, in the words of this server."""
    with pytest.raises(openai.BadRequestError) as refused:
        api.images.generate(**{"prompt": "x", **fields})
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert param.partition(".")[0].replace("size", "") in refused.value.body["message"]


def test_several_pictures_are_one_request(api: openai.OpenAI):
    """For a model that edits several; this one takes one, and the answer says so."""
    with pytest.raises(openai.BadRequestError) as refused:
        api.images.edit(image=[("a.png", png()), ("b.png", png())], prompt="x", extra_body=OURS)
    assert (refused.value.param, refused.value.code) == ("image", "invalid_manifest")
    assert "image has 2 pictures; model 'doodle' takes one" in refused.value.body["message"]


def test_wrong_pictures_are_bad_requests(api: openai.OpenAI):
    """No picture, too many, two and a mask, a mask that says nothing, another shape."""
    for fields, param in (
        ({"image": ("a.png", b"no picture")}, "image"),
        ({"image": [("a.png", png())] * 17}, "image"),
        ({"image": [("a.png", png())] * 2, "mask": ("m.png", png())}, "mask"),
        ({"image": ("a.png", png()), "mask": ("m.png", png())}, "mask"),
        ({"image": ("a.png", png()), "size": "64x64"}, "image"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            api.images.edit(prompt="x", **fields)
        assert refused.value.param == param


def test_a_failure_of_the_pipeline_is_theirs_to_catch_and_not_tried_again(address: str):
    """A server error; trying again by itself would draw it again and fail again."""
    with (
        client(address).with_options(max_retries=2) as patient,
        pytest.raises(openai.InternalServerError) as failed,
    ):
        patient.images.generate(prompt="please fail", size="64x64", extra_body=OURS)
    assert failed.value.code == "render_error"
    assert failed.value.response.headers["x-should-retry"] == "false"


def test_models_are_listed(api: openai.OpenAI):
    """And can be read by name; an unknown one is 404."""
    assert {"doodle", "sd21"} <= {model.id for model in api.models.list()}
    assert api.models.retrieve("doodle").owned_by == "dreamdrop"
    with pytest.raises(openai.NotFoundError, match="gpt-image-1"):
        api.models.retrieve("gpt-image-1")


def test_errors_of_every_kind_have_their_shape(tmp_path: Path):
    """Also those of the framework, and when nobody is there to draw."""
    with facade(tmp_path) as address:
        with client(address) as api, pytest.raises(openai.InternalServerError, match="no worker"):
            api.images.generate(prompt="x")
        for path in ("/v1/nowhere", "/v1/files/nobody", "/v1/files?limit=x", "/v1/batches?limit=0"):
            answer = httpx.get(f"{address}{path}")
            assert answer.status_code in (400, 404)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "detail" in httpx.get(f"{address}/nowhere").json()


def test_sizes_and_compression_are_taken_as_clients_send_them(address: str):
    """In any case, and with a compression of 0, which a manifest does not have."""
    for fields in ({"size": "64X64"}, {"size": " Auto "}, {"size": "64×64"}, {"size": ""}):
        answer = httpx.post(f"{address}/v1/images/generations", json={"prompt": "x", "steps": 1, **fields})
        assert answer.status_code == 200, answer.text
    webp = {"prompt": "x", "steps": 1, "output_format": "webp"}
    assert (
        httpx.post(f"{address}/v1/images/generations", json={**webp, "output_compression": 0}).status_code
        == 200
    )
    refused = httpx.post(f"{address}/v1/images/generations", json={**webp, "output_compression": 101})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "output_compression")


def test_empty_parts_of_a_form_are_parts_that_were_not_sent(address: str):
    """Browsers and generated clients send them for what is not filled in."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(out, "PNG")
    empty = {
        "n": "",
        "size": "",
        "seed": "",
        "user": "",
        "response_format": "",
        "output_format": "",
        "metadata": "",
    }
    files = {"image": ("a.png", out.getvalue()), "mask": ("", b"")}
    form = {"prompt": "x", "steps": "1", **empty}
    answer = httpx.post(f"{address}/v1/images/edits", data=form, files=files)
    assert answer.status_code == 200, answer.text
    none = httpx.post(f"{address}/v1/images/edits", data=form, files={"image": ("", b"")})
    assert (none.status_code, none.json()["error"]["param"]) == (400, "image")


def test_objects_of_a_form_are_json(address: str):
    """A second pass, as in the body of a manifest."""
    form = {"prompt": "x", "steps": "2", "upscale": '{"scale": 2}'}
    answer = httpx.post(f"{address}/v1/images/edits", data=form, files={"image": ("a.png", png())})
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["data"][0]["b64_json"]).size == (128, 96)


def test_an_opaque_mask_is_told(address: str):
    """It asks for nothing to be repainted; the warning has OpenAI's name of the field."""
    out = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 128, 128, 255)).save(out, "PNG")
    files = {"image": ("a.png", out.getvalue()), "mask": ("b.png", out.getvalue())}
    answer = httpx.post(f"{address}/v1/images/edits", data={"prompt": "x", "steps": "1"}, files=files)
    assert [(note["code"], note["field"]) for note in answer.json()["warnings"]] == [("empty_mask", "mask")]
