"""Odd JSON values over HTTP: every route gives one clear answer to each, and none is a 500."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.odd_values import HUGE
from tests.producer.facade import facade, ready, worker

ODD = (
    str(HUGE),
    f"-{HUGE}",
    "1" + "0" * 4000,
    "9" * 5000,
    "1e999",
    '"NaN"',
    f'"{HUGE}"',
    "true",
    "[[1e999]]",
    "-0.0",
)
MANIFEST = (
    "steps",
    "number_of_images",
    "seed",
    "cfg_scale",
    "width",
    "clip_skip",
    "expires_at",
    "metadata",
    "loras",
)
A1111 = (
    "steps",
    "batch_size",
    "n_iter",
    "seed",
    "cfg_scale",
    "width",
    "subseed",
    "eta",
    "override_settings",
    "unknown",
)
OPENAI = ("steps", "n", "seed", "cfg_scale", "size", "output_compression", "metadata", "partial_images")
BATCH = ("input_file_id", "endpoint", "completion_window", "metadata")
ROUTES = {
    "/generate/": MANIFEST,
    "/text2img/": MANIFEST,
    "/img2img/": ("image", "strength", "steps"),
    "/inpainting/": ("mask_image", "strength", "steps"),
    "/jobs": MANIFEST,
    "/sdapi/v1/txt2img": A1111,
    "/sdapi/v1/img2img": (*A1111, "init_images", "mask_blur", "denoising_strength", "resize_mode"),
    "/sdapi/v1/options": ("sd_model_checkpoint", "other"),
    "/sdapi/v1/png-info": ("image",),
    "/v1/images/generations": OPENAI,
    "/v1/batches": BATCH,
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("values") / "store"
    with worker(store), facade(store) as listening:
        ready(listening)
        yield listening


@pytest.mark.parametrize("route", ROUTES)
def test_no_value_of_any_field_is_a_500(address: str, route: str):
    """An integer of 400 digits was one on six routes; a refusal names the field."""
    with httpx.Client(base_url=address, timeout=60) as client:
        for field in ROUTES[route]:
            for literal in ODD:
                body = f'{{"prompt": "x", "{field}": {literal}}}'
                answer = client.post(route, content=body, headers={"Content-Type": "application/json"})
                assert answer.status_code < 500, (field, literal[:20], answer.text)
                answer.json()


def test_a_huge_number_is_refused_by_name_everywhere(address: str):
    """The caller's own name of the field, in the family's own shape."""
    steps = f'{{"prompt": "x", "steps": {HUGE}}}'
    for route in ("/generate/", "/jobs", "/sdapi/v1/txt2img"):
        answer = httpx.post(address + route, content=steps)
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "steps"])
    answer = httpx.post(f"{address}/v1/images/generations", content=steps)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steps")
