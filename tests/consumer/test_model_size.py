"""How large a picture may be: a multiple of what its model is made for."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from consumer.intake.fleet import Capabilities
from infra.stores.memory import MemoryStore
from producer import AsyncClient
from schemas.errors import TooManyPixels
from schemas.limits import ALWAYS_DRAWN, Limits
from schemas.result import Result
from tests.worker_inside import make_worker, running

pytestmark = pytest.mark.anyio

DOT: dict[str, Any] = {"prompt": "a red circle", "steps": 1, "model": "doodle"}


def a_picture(width: int, height: int, colour: str = "red") -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def answered(*bodies: dict[str, Any], **settings: Any) -> list[Result]:
    """The results of requests that a worker with null renderers took."""
    store = MemoryStore()
    async with running(make_worker(store, **settings)), AsyncClient(store) as client:
        for number, body in enumerate(bodies):
            await store.create(f"requests/r{number}.json", json.dumps(body).encode())
        return [await client.wait(f"r{number}", timeout=120) for number in range(len(bodies))]


async def test_a_size_beyond_the_models_bound_is_refused_with_field_and_bound():
    """Also when one side is the model's own; 1024 x 1024, which clients of OpenAI send, is drawn by every model."""
    big, wide, documented = await answered(
        DOT | {"width": 1032, "height": 1032},
        DOT | {"width": 2048, "height": 2048 - 8},
        DOT | {"width": 1024, "height": 1024},
    )
    for result in (big, wide):
        assert result.failure is not None
        assert (result.failure.code, result.failure.field) == ("invalid_manifest", "width")
        assert "1,048,576 pixels" in result.failure.message
        assert "128 x 128" in result.failure.message
    assert [(image.width, image.height) for image in documented.images] == [(1024, 1024)]


async def test_a_photograph_is_scaled_to_the_models_bound_with_a_warning():
    """With its mask; 12 megapixels were drawn at 4 by a model of 128 x 128."""
    photograph, mask = a_picture(4000, 3000), a_picture(4000, 3000, "white")
    results = await answered(DOT | {"image": photograph}, DOT | {"image": photograph, "mask_image": mask})
    for result in results:
        (image,) = result.images
        assert 0.9 * ALWAYS_DRAWN < image.width * image.height <= ALWAYS_DRAWN
        (warning,) = [note for note in result.warnings if note.code == "image_resized"]
        assert warning.field == "image"
        assert f"4000 x 3000; drawn at {image.width} x {image.height}" in warning.message
        assert "1,048,576 pixels" in warning.message


async def test_the_bound_is_a_setting():
    """An operator with patience, or a larger device, raises it."""
    (result,) = await answered(DOT | {"width": 1032, "height": 1032}, limits=Limits(max_native_areas=66))
    assert result.status == "succeeded"


def test_a_large_model_keeps_its_sizes():
    """Eight times the native area, up to the limit for all models."""
    assert Limits().for_model(512, 512).max_pixels == 8 * 512 * 512
    assert Limits().for_model(1024, 1024).max_pixels == Limits().max_pixels
    assert Limits(max_pixels=100).for_model(128, 128).max_pixels == 100


@pytest.mark.parametrize(("areas", "able"), [(8, False), (65, False), (66, True)])
def test_only_a_worker_with_a_higher_bound_can_draw_it(areas: int, able: bool):
    """Another difference in limits does not count: both would leave the request to each other."""
    own = Capabilities.own(["doodle"], (), Limits())
    other = Capabilities.own(["doodle"], (), replace(Limits(max_native_areas=areas), max_steps=500))
    error = TooManyPixels((1032, 1032), "doodle", (128, 128), ALWAYS_DRAWN)
    body = json.dumps(DOT | {"width": 1032, "height": 1032}).encode()
    assert other.can_draw(error, body, len(body), batch=False, refused_by=own) is able
