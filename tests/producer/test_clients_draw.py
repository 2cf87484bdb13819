"""What foreign clients get from a real model: previews on the way, and all of a picture that a mask keeps."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator

import openai
import pytest
import webuiapi
from PIL import Image

from tests.producer.facade import facade, ready, worker

RED = "a red circle on a blue background"
BLUE = (20, 20, 200)
SIDE = 128  # pixels


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A facade with a worker that has the bundled model."""
    place = tmp_path_factory.mktemp("draw") / "store"
    with worker(place, "--renderer", "diffusers", "--model", "doodle"), facade(place) as listening:
        ready(listening)
        yield listening


@pytest.fixture
def api(address: str) -> Iterator[webuiapi.WebUIApi]:
    api = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1")
    yield api
    api.session.close()


def red_pixels(picture: Image.Image, left: int, right: int) -> int:
    """How many there are between two columns."""
    raw = picture.convert("RGB").crop((left, 0, right, SIDE)).tobytes()
    return sum(raw[k] > raw[k + 2] + 80 for k in range(0, len(raw), 3))


def made_half(picture: Image.Image) -> None:
    """The left half stays to the last bit, on the right there is something red."""
    half = SIDE // 2
    kept = picture.convert("RGB").crop((0, 0, half, SIDE))
    assert kept.tobytes() == Image.new("RGB", (half, SIDE), BLUE).tobytes()
    assert red_pixels(picture, half, SIDE) > 200


def test_an_inpainting_of_a1111_keeps_what_the_mask_keeps(api: webuiapi.WebUIApi):
    """The left half stays to the last bit; on the right something is drawn."""
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (64, 0, 128, 128))
    base = Image.new("RGB", (128, 128), BLUE)
    drawn = api.img2img(
        images=[base],
        mask_image=mask,
        prompt=RED,
        steps=20,
        seed=3,
        width=128,
        height=128,
        denoising_strength=1,
    ).image
    made_half(drawn)


def test_an_edit_of_openai_keeps_what_is_not_transparent(address: str):
    """The same by their mask."""
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (64, 0, 128, 128))
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=240) as client:
        answer = client.images.edit(
            image=("a.png", _png(Image.new("RGB", (128, 128), BLUE))),
            mask=("m.png", _png(mask)),
            prompt=RED,
            extra_body={"steps": 20, "seed": 3},
        )
    drawn = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    made_half(drawn)


def test_progress_shows_how_the_picture_looks_now(api: webuiapi.WebUIApi, address: str):
    """A small picture, until the work is interrupted."""
    refused: list[str] = []

    def draw() -> None:
        other = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1")
        try:
            other.txt2img(prompt=RED, steps=150, batch_size=8, width=128, height=128)
        except RuntimeError as error:
            refused.append(str(error))
        finally:
            other.session.close()

    drawing = threading.Thread(target=draw)
    drawing.start()
    end = time.monotonic() + 240
    while not (progress := api.get_progress())["current_image"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    api.interrupt()
    drawing.join(240)
    preview = Image.open(io.BytesIO(base64.b64decode(progress["current_image"], validate=True)))
    preview.load()
    assert max(preview.size) <= 128
    assert refused


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
