"""The models' defaults, as clients see them, and bodies of each kind of client that leave fields open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import webuiapi

from producer import AsyncClient
from producer.overview import defaults_of
from schemas.defaults import ModelDefaults
from schemas.layout import worker_key
from tests.producer.facade import command, facade, ready, worker

DOODLE = {
    "steps": 20,
    "cfg_scale": 4.0,
    "scheduler": "DPM++ 2M",
    "width": 128,
    "height": 128,
    "size_multiple": 8,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker that has a model of its own beside the bundled one."""
    place = tmp_path_factory.mktemp("defaults") / "store"
    mine = tmp_path_factory.mktemp("mine")
    (mine / "model_index.json").write_text("{}")
    options = ("--models", f"mine={mine},steps=9,cfg=0,size=64x96,multiple=32", "--model", "doodle")
    with worker(place, *options):
        yield place


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    with facade(store) as listening:
        ready(listening)
        yield listening


def by_name(listed: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return {model[key]: model["defaults"] for model in listed}


def test_every_list_of_models_has_them(address: str, store: Path):
    """Ours, OpenAI's, A1111's and the command's."""
    mine = DOODLE | {"steps": 9, "cfg_scale": 0.0, "width": 64, "height": 96, "size_multiple": 32}
    sdapi = f"{address}/sdapi/v1"
    lists = [
        by_name(httpx.get(f"{address}/models").json()["models"], "name"),
        by_name(httpx.get(f"{address}/v1/models").json()["data"], "id"),
        by_name(httpx.get(f"{sdapi}/sd-models").json(), "model_name"),
    ]
    assert [(found["doodle"], found["mine"]) for found in lists] == [(DOODLE, mine)] * 3
    assert httpx.get(f"{address}/v1/models/mine").json()["defaults"] == mine
    assert httpx.get(f"{sdapi}/options").json()["defaults"] == DOODLE
    listing = command("models", "--store", str(store))
    out, _ = listing.communicate(timeout=240)
    assert "by default 20 steps, guidance 4, DPM++ 2M, 128 x 128" in out
    assert "by default 9 steps, no guidance, DPM++ 2M, 64 x 96" in out


def numbers(address: str, id: str) -> tuple[int, float]:
    result = httpx.get(f"{address}/jobs/{id}").json()
    return result["parameters"]["steps"], result["parameters"]["cfg_scale"]


def test_the_documented_endpoints_leave_open_what_the_caller_did(address: str):
    """And keep what is sent, also where it is the documented default."""
    for body, expected in (
        ({"prompt": "x"}, (20, 4)),
        ({"prompt": "x", "cfg_scale": 7, "steps": 30}, (30, 7)),
        ({"prompt": "x", "model": "mine"}, (9, 0)),
    ):
        drawn = httpx.post(f"{address}/generate/", json=body).json()
        assert numbers(address, drawn["id"]) == expected, body


def test_a1111s_client_sends_its_numbers_and_a_bare_body_does_not(address: str):
    """`webuiapi` always sends steps and guidance."""
    api = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1")
    drawn = api.txt2img(prompt="x", steps=3, cfg_scale=7, width=64, height=64)
    api.session.close()
    assert (drawn.info["steps"], drawn.info["cfg_scale"]) == (3, 7)
    bare = httpx.post(f"{address}/sdapi/v1/txt2img", json={"prompt": "x"}).json()
    assert {name: json.loads(bare["info"])[name] for name in ("steps", "cfg_scale")} == {
        "steps": 20,
        "cfg_scale": 4,
    }


def test_openais_client_gets_the_cards_numbers(address: str):
    """It has no field for them; `extra_body` has."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as api:
        plain = api.images.generate(prompt="x").model_dump()
        told = api.images.generate(prompt="x", extra_body={"steps": 2}).model_dump()
    assert [numbers(address, drawn["id"]) for drawn in (plain, told)] == [(20, 4), (2, 4)]


def test_a_size_that_the_model_cannot_draw_is_refused_in_words(address: str):
    """Not drawn in another."""
    body = {"prompt": "x", "model": "mine", "width": 72, "height": 64}
    answer = httpx.post(f"{address}/text2img/", json=body)
    assert answer.status_code == 422
    assert "multiples of 32, such as 64 or 96" in answer.text


@pytest.mark.anyio
async def test_what_workers_do_not_agree_on_is_not_shown(home: AsyncClient):
    """An older worker says nothing; a hostile or newer heartbeat costs only its own fields."""
    told = {"m": {"steps": 9, "cfg_scale": 0, "scheduler": 5, "sampler": "new"}}
    for name, defaults in {"one": told, "two": {"m": {"steps": 9, "cfg_scale": 2.5}}}.items():
        beat = {"seq": 1, "models": ["m"], "defaults": defaults}
        await home.store.put(worker_key(name), json.dumps(beat).encode())
    [found] = await home.models()
    assert found.defaults == ModelDefaults(steps=9)
    for odd in ({}, {"defaults": 5}, {"defaults": {"m": 5}}, {"defaults": {"m": {"steps": "many"}}}):
        assert defaults_of([{"models": ["m"], **odd}], "m") == ModelDefaults()
    assert defaults_of([{"models": ["m"], "defaults": told}, {"models": ["m"]}], "m") == ModelDefaults()
