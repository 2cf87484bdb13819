"""OpenAI's endpoints, called by OpenAI's own client."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from producer.web.keys import new_key, read_keys
from tests.cloud import Cloud
from tests.producer.facade import facade, ready, worker

OURS = {"steps": 2, "seed": 5}


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


def client(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture
def api(address: str) -> Iterator[openai.OpenAI]:
    """The foreign client, as its own documentation makes it."""
    with client(address) as opened:
        yield opened


def opened(text: str | None) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(text or "", validate=True)))
    picture.load()
    return picture


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
    """And what their models understand and ours do not is tolerated where it changes nothing that is checked."""
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
        ({"output_format": "gif"}, "output.format"),
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


def test_wrong_pictures_are_bad_requests(api: openai.OpenAI):
    """No picture, two pictures, a mask that says nothing, another shape."""
    for fields, param in (
        ({"image": ("a.png", b"no picture")}, "image"),
        ({"image": [("a.png", png()), ("b.png", png())]}, "image"),
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
    """And found by name, or not."""
    assert {"doodle", "sd21"} <= {model.id for model in api.models.list()}
    assert api.models.retrieve("doodle").owned_by == "dreamdrop"
    with pytest.raises(openai.NotFoundError, match="gpt-image-1"):
        api.models.retrieve("gpt-image-1")


def line(name: str, **body: Any) -> dict[str, Any]:
    body = {"prompt": "x", "size": "64x64", **OURS, **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": body}


def uploaded(api: openai.OpenAI, *lines: Any) -> str:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    return api.files.create(file=("requests.jsonl", text.encode()), purpose="batch").id


def made(api: openai.OpenAI, file: str, **more: Any) -> Any:
    return api.batches.create(
        input_file_id=file, endpoint="/v1/images/generations", completion_window="24h", **more
    )


def ended(api: openai.OpenAI, id: str) -> Any:
    end = time.monotonic() + 60
    while (batch := api.batches.retrieve(id)).status == "in_progress":
        assert time.monotonic() < end, batch
        time.sleep(0.05)
    return batch


def test_a_batch_is_drawn_and_its_answers_are_a_file(api: openai.OpenAI):
    """Each line's name is kept, whatever is in it; failures have a file of their own."""
    file = uploaded(
        api,
        line("plain", n=2),
        line("with spaces / and more", response_format="url"),
        "",
        line("broken", prompt="please fail"),
    )
    batch = made(api, file, metadata={"for": "test"})
    assert batch.metadata == {"for": "test"}
    batch = ended(api, batch.id)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert batch.completed_at
    assert batch.completed_at >= batch.created_at - 1
    answers = [json.loads(one) for one in api.files.content(batch.output_file_id).text.splitlines()]
    by_name = {one["custom_id"]: one["response"]["body"]["data"] for one in answers}
    assert sorted(by_name) == ["plain", "with spaces / and more"]
    assert [opened(one["b64_json"]).size for one in by_name["plain"]] == [(64, 64)] * 2
    url = by_name["with spaces / and more"][0]["url"]
    assert httpx.get(url).content.startswith(b"\x89PNG")
    errors = [json.loads(one) for one in api.files.content(batch.error_file_id).text.splitlines()]
    assert [one["custom_id"] for one in errors] == ["broken"]
    assert errors[0]["error"]["code"] == "render_error"
    assert api.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert batch.id in {one.id for one in api.batches.list()}


def test_a_batch_with_mistakes_fails_at_once_and_says_where(api: openai.OpenAI, address: str):
    """With every line's number; nothing of it is drawn."""
    file = uploaded(
        api,
        line("good"),
        "{not json",
        line("good"),
        {**line("elsewhere"), "url": "/v1/chat/completions"},
        line("typo", stepz=3),
    )
    batch = made(api, file)
    assert batch.status == "failed"
    assert [fault.line for fault in batch.errors.data] == [2, 3, 4, 5]
    assert [fault.param for fault in batch.errors.data] == [None, "custom_id", "url", "stepz"]
    assert api.batches.retrieve(batch.id).status == "failed"
    assert httpx.get(f"{address}/jobs/{batch.id}").status_code == 404


def test_a_batch_can_be_canceled(api: openai.OpenAI):
    """What was drawn before stays."""
    file = uploaded(api, *(line(f"row{k}", steps=100) for k in range(8)))
    batch = api.batches.cancel(made(api, file).id)
    assert batch.status == "cancelled"
    assert api.batches.retrieve(batch.id).status == "cancelled"
    assert api.batches.cancel(batch.id).status == "cancelled"


def test_files_are_kept_until_they_are_deleted(api: openai.OpenAI, store: Path):
    """Also by a server that was started later."""
    first, second = uploaded(api, line("a")), uploaded(api, line("b"))
    with facade(store) as other, client(other) as late:
        assert json.loads(late.files.content(first).text)["custom_id"] == "a"
        assert late.files.retrieve(second).filename == "requests.jsonl"
        ids = [one.id for one in late.files.list(limit=1)]  # page by page
        assert [id for id in ids if id in (first, second)] == [second, first]
        assert late.files.delete(first).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(first)
    with pytest.raises(openai.NotFoundError):
        made(api, first)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        api.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")


def test_a_batch_in_a_bucket_is_known_to_every_server(cloud: Cloud):
    """Uploaded at one, made at another, read at a third; nothing of it is in a server's memory."""
    with worker(cloud.store, environment=os.environ | cloud.environment()):
        with facade(cloud.store) as first, client(first) as api:
            file = uploaded(api, line("a"), line("b", n=2))
        with facade(cloud.store) as second, client(second) as api:
            batch = made(api, file).id
        with facade(cloud.store) as third, client(third) as api:
            assert ended(api, batch).request_counts.completed == 2
            answers = api.files.content(api.batches.retrieve(batch).output_file_id).text
    found = {one["custom_id"]: one["response"]["body"] for one in map(json.loads, answers.splitlines())}
    assert {name: len(body["data"]) for name, body in found.items()} == {"a": 1, "b": 2}


def test_keys_are_asked_for_and_prefixes_are_walls(tmp_path: Path):
    """Nobody sees another's files and batches; the client's own error tells that a key is wrong."""
    (red, red_line), (blue, blue_line) = new_key("red", prefix="red"), new_key("blue", prefix="blue")
    with facade(tmp_path, keys=read_keys(f"{red_line} {blue_line}")) as address:
        with client(address, "sk-wrong") as nobody, pytest.raises(openai.AuthenticationError) as refused:
            nobody.models.list()
        assert refused.value.code == "invalid_api_key"
        with client(address, red) as as_red, client(address, blue) as as_blue:
            file = uploaded(as_red, line("a"))
            batch = made(as_red, file).id
            assert [one.id for one in as_red.files.list()] == [file]
            assert [one.id for one in as_red.batches.list()] == [batch]
            assert not list(as_blue.files.list())
            assert not list(as_blue.batches.list())
            for ask in (
                lambda: as_blue.files.retrieve(file),
                lambda: as_blue.files.content(file),
                lambda: as_blue.files.delete(file),
                lambda: as_blue.batches.retrieve(batch),
                lambda: as_blue.batches.cancel(batch),
                lambda: made(as_blue, file),
            ):
                with pytest.raises(openai.NotFoundError):
                    ask()
            assert as_red.batches.retrieve(batch).status == "in_progress"


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
