"""How near models are to a worker. A hub that cannot be reached costs one short try, and nobody else a request."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from consumer.renderer.protocol import RendererSettings, Undrawable
from infra.models.cards import BUILT_IN, BUNDLED, Cards, ModelCard
from infra.models.hub_caches import Hub
from infra.stores.memory import MemoryStore
from schemas.defaults import ModelState
from tests.worker_inside import make_worker, running


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """A port of this machine at which nobody listens, as the hub's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield port


def test_it_is_asked_once_a_minute(closed: int) -> None:
    """An answer counts for so long, whichever it was."""
    now = [0.0]
    hub = Hub(clock=lambda: now[0])
    assert hub.why == ""
    assert hub.why_not().startswith("127.0.0.1: ")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
            now[0] = 59.0
            assert hub.why_not() == hub.why != ""
            now[0] = 61.0
            assert hub.why == ""
            assert hub.why_not() == ""


def test_a_proxy_is_asked_where_there_is_one(closed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it the hub itself may have no address here."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert Hub().why_not() == ""


@pytest.mark.anyio
async def test_only_the_request_for_that_model_ends(closed: int) -> None:
    """With the reason and the remedy, without a renderer that waits; what was dropped with it is drawn."""
    store = MemoryStore()
    requests = {"far": {"model": "sd15"}, "near": {}, "second": {"refiner": {"model": "sdxl"}}}
    for name, fields in requests.items():
        body = {"prompt": "x", "steps": 10, "width": 64, "height": 64, **fields}
        await store.create(f"requests/{name}.json", json.dumps(body).encode())
    here = ModelCard("here", (str(BUNDLED / "doodle"),), 64, 64, scheduler="DDIM", family="sdxl")
    cards = Cards({card.name: card for card in (*BUILT_IN, here)})
    worker = make_worker(store, cards=cards, default_model="here")
    worker.jobs._preparation._hub = Hub()
    results = {}
    async with running(worker):
        with anyio.fail_after(60):
            while len(results) < len(requests):
                await anyio.sleep(0.05)
                for name in requests:
                    if [info async for info in store.list(f"results/{name}/result.json")]:
                        results[name] = json.loads((await store.get(f"results/{name}/result.json")).body)

    assert results["near"]["status"] == "succeeded"
    for name, field, model in (("far", "model", "sd15"), ("second", "refiner.model", "sdxl")):
        assert (results[name]["status"], results[name]["attempts"]) == ("failed", 1)
        failure = results[name]["failure"]
        assert (failure["code"], failure["field"]) == ("model_unavailable", field)
        told = f"model {model!r} is not here, and the hub cannot be reached (127.0.0.1: "
        assert told in failure["message"]


def test_heartbeats_say_how_near_each_model_is(closed: int, tmp_path: Path) -> None:
    """What a child has loaded, what lies on the disk, what would be downloaded, and why one cannot be had."""
    worker = make_worker(MemoryStore(), children=[RendererSettings(kind="diffusers")])
    loads = worker.renderers[0].loads
    loads.loaded = {"sd15": 4_000_000}
    loads.answered(
        "sdxl", Undrawable("r", 0, "model_unavailable", "model 'sdxl' is not here", False, "model")
    )
    loads.answered("sd21", Undrawable("r", 0, "render_error", "it failed", True))
    states = worker.heartbeats.states()

    assert states["sd15"] == {"state": "loaded", "bytes": 4_000_000}
    assert states["doodle"] == {"state": "disk"}
    assert states["sd21"] == {"state": "download", "bytes": 5_160_000_000}
    assert states["sdxl"] == {"state": "unreachable", "why": "model 'sdxl' is not here"}
    assert states["flux-dev"]["state"] == "unreachable"
    assert len(json.dumps(states)) < 2500  # they are written every few seconds
    assert {ModelState.read(state).state for state in states.values()} == {
        "loaded",
        "disk",
        "download",
        "unreachable",
    }
