"""Every list of models says which are loaded, on disk, to be downloaded and out of reach."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from producer import AsyncClient
from schemas.defaults import ModelDefaults, ModelState
from schemas.layout import worker_key
from schemas.models import CardFile, Move, PublishedCard, card_key, current_key
from tests.producer.facade import facade


def heartbeat(store: Path, session: str, **facts: Any) -> None:
    """A worker that is alive, as the store sees it."""
    (store / "workers").mkdir(exist_ok=True)
    (store / "workers" / session).write_text(json.dumps({"v": 1, "session": session, "seq": 1, **facts}))


def test_every_list_tells_how_near_a_model_is(tmp_path: Path, dreamdrop: Callable[..., Any]):
    """One worker has loaded doodle and would have to download sd21; `sd15` is on another worker's disk."""
    models = ["doodle", "flux-dev", "sd15", "sd21"]
    far = {"flux-dev": {"state": "unreachable", "why": "it is gated"}}
    one = {"doodle": {"state": "loaded", "bytes": 10}, "sd21": {"state": "download", "bytes": 5_200_000_000}}
    two = {
        "doodle": {"state": "disk"},
        "sd15": {"state": "disk"},
        "sd21": {"state": "unreachable", "why": "off"},
    }

    def beat() -> None:  # before each look, as a worker's heartbeat counts for a minute
        heartbeat(
            tmp_path, "one", models=models, available=["doodle"], default_model="doodle", states=one | far
        )
        heartbeat(tmp_path, "two", models=models, available=["doodle", "sd15"], states=two | far)

    beat()
    with facade(tmp_path) as address, httpx.Client(base_url=address) as http:
        beat()
        ours = {model["name"]: model for model in http.get("/models").json()["models"]}
        openai = http.get("/v1/models").json()["data"]
        one_of_them = http.get("/v1/models/sd21").json()
        a1111 = http.get("/sdapi/v1/sd-models").json()
        page = http.get("/", headers={"Accept": "text/html"}).text
    states = {"doodle": "loaded", "sd15": "disk", "sd21": "download", "flux-dev": "unreachable"}
    assert {name: model["state"]["state"] for name, model in ours.items()} == states
    assert [(model["id"], model["state"]["state"]) for model in openai] == list(states.items())
    assert [(model["title"], model["state"]["state"]) for model in a1111] == list(states.items())
    assert one_of_them["state"] == {"state": "download", "bytes": 5_200_000_000, "why": ""}
    assert (ours["flux-dev"]["licence"], ours["flux-dev"]["memory"]) == (
        "FLUX.1 [dev] Non-Commercial",
        33_740_000_000,
    )
    options = dict(re.findall(r'<option value="([\w-]+)"[^>]*>([^<]*)</option>', page))
    assert [options[name] for name in models] == [
        "doodle",
        "flux-dev (not here: it is gated)",
        "sd15",
        "sd21 (not here: to be downloaded, about 5.2 GB)",
    ]

    beat()
    listed = dreamdrop("models", "--store", str(tmp_path))
    lines = {line.split("\t")[0]: line.split("\t")[1:] for line in listed.stdout.splitlines()}
    assert {name: line[0] for name, line in lines.items()} == {
        "doodle": "loaded",
        "sd15": "on disk",
        "sd21": "not here: to be downloaded, about 5.2 GB",
        "flux-dev": "not here: it is gated",
    }
    assert "33.7 GB of weights at 16 bits; FLUX.1 [dev] Non-Commercial" in lines["flux-dev"][1]
    beat()
    shown = dreamdrop("models", "show", "flux-dev", "--store", str(tmp_path)).stdout
    assert "state:          not here: it is gated" in shown
    assert "licence:        FLUX.1 [dev] Non-Commercial" in shown
    beat()
    as_json = json.loads(dreamdrop("models", "--store", str(tmp_path), "--json").stdout)["models"]
    assert {model["name"]: model["here"] for model in as_json} == {
        "doodle": 2,
        "sd15": 1,
        "sd21": 0,
        "flux-dev": 0,
    }


def test_an_older_worker_that_does_not_say_counts_as_having_its_models(tmp_path: Path):
    """So a fleet in the middle of an upgrade offers what it can draw; what cannot be read is as if not said."""
    heartbeat(tmp_path, "old", models=["doodle", "sd21"], default_model="doodle")
    heartbeat(tmp_path, "odd", models=["sd15"], available=[], states={"sd15": {"state": "on the moon"}})
    with facade(tmp_path) as address:
        listed = httpx.get(f"{address}/v1/models").json()["data"]
    assert {model["id"]: model["state"]["state"] for model in listed} == {
        "doodle": "disk",
        "sd21": "disk",
        "sd15": "download",
    }


@pytest.mark.anyio
async def test_a_published_model_shows_what_it_draws_with(home: AsyncClient):
    """What its card leaves open is its base's; the card is read once, and its name's move is noticed."""
    beat = {
        "seq": 1,
        "models": ["doodle"],
        "defaults": {"doodle": {"steps": 20, "cfg_scale": 4, "width": 128}},
    }
    await home.store.put(worker_key("one"), json.dumps(beat).encode())
    weights = CardFile(path="unet/a.safetensors", sha256="0" * 64, size=1000)
    for version, steps in ((1, 9), (2, None)):
        card = PublishedCard(
            name="my-dog", version=version, kind="full", base="doodle", steps=steps, files=(weights,)
        )
        await home.store.create(card_key("my-dog", version), card.to_json())
    await home.store.create(current_key("my-dog", 1), Move(version=1).model_dump_json().encode())
    first = {model.name: model for model in await home.models()}["my-dog"]
    await home.store.create(current_key("my-dog", 2), Move(version=2).model_dump_json().encode())
    second = {model.name: model for model in await home.models()}["my-dog"]

    assert first.defaults == ModelDefaults(steps=9, cfg_scale=4, width=128)
    assert second.defaults == ModelDefaults(steps=20, cfg_scale=4, width=128)
    assert first.state == ModelState(state="store", bytes=1000)
    assert (first.workers, first.versions) == (0, ("1", "2"))
