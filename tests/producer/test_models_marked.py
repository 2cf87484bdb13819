"""Models that no live worker has the weights of: marked where people choose, left out where programs do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.producer.facade import facade


def heartbeat(store: Path, session: str, **facts: Any) -> None:
    """A worker that is alive, as the store sees it."""
    (store / "workers").mkdir(exist_ok=True)
    (store / "workers" / session).write_text(json.dumps({"v": 1, "session": session, "seq": 1, **facts}))


def test_every_list_tells_which_models_cannot_be_had(tmp_path: Path, dreamdrop: Callable[..., Any]):
    """One worker knows sd21 and has only doodle; `sd15` is on another worker's disk."""
    models = ["doodle", "sd15", "sd21"]

    def beat() -> None:  # before each look, as a worker's heartbeat counts for a minute
        heartbeat(tmp_path, "one", models=models, available=["doodle"], default_model="doodle")
        heartbeat(tmp_path, "two", models=models, available=["sd15"], default_model="doodle")

    beat()
    with facade(tmp_path) as address, httpx.Client(base_url=address) as http:
        beat()
        openai = [model["id"] for model in http.get("/v1/models").json()["data"]]
        a1111 = [model["model_name"] for model in http.get("/sdapi/v1/sd-models").json()]
        page = http.get("/", headers={"Accept": "text/html"}).text
    assert sorted(openai) == ["doodle", "sd15"]
    assert sorted(a1111) == ["doodle", "sd15"]
    options = dict(re.findall(r'<option value="(\w+)"[^>]*>([^<]*)</option>', page))
    assert [name for name in models if "not here" in options[name]] == ["sd21"]

    beat()
    listed = dreamdrop("models", "--store", str(tmp_path))
    lines = {line.split("\t")[0]: line for line in listed.stdout.splitlines()}
    assert [name for name in models if "not here" in lines[name]] == ["sd21"]
    beat()
    as_json = json.loads(dreamdrop("models", "--store", str(tmp_path), "--json").stdout)
    here = {
        model["name"]: model["here"]
        for model in (as_json if isinstance(as_json, list) else as_json["models"])
    }
    assert here == {"doodle": 1, "sd15": 1, "sd21": 0}


def test_an_older_worker_that_does_not_say_counts_as_having_its_models(tmp_path: Path):
    """So a fleet in the middle of an upgrade offers what it can draw."""
    heartbeat(tmp_path, "old", models=["doodle", "sd21"], default_model="doodle")
    with facade(tmp_path) as address:
        listed = httpx.get(f"{address}/v1/models").json()["data"]
    assert sorted(model["id"] for model in listed) == ["doodle", "sd21"]
