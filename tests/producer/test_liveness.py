"""Workers count as alive while their heartbeats change; no two machines' clocks are compared."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from infra.stores.memory import MemoryStore
from infra.stores.store import Info
from producer.liveness import ALIVE, Liveness, looks_alive
from producer.overview import heartbeats
from producer.web.app import create_app
from producer.web.settings import FacadeSettings

DAY = 86_400.0


def beat(version: int, *, modified: float) -> Info:
    return Info("workers/one", 100, str(version), modified)


@pytest.mark.parametrize("ahead", [-DAY, -70.0, 0.0, 70.0, DAY])
def test_a_heartbeat_that_changes_is_alive_whatever_its_date(ahead: float):
    """The worker's clock, or ours, may be a day wrong."""
    now = 0.0
    liveness = Liveness(clock=lambda: now)
    liveness.is_alive(beat(1, modified=time.time() + ahead))
    now = 10.0
    assert liveness.is_alive(beat(2, modified=time.time() + ahead + 10))
    now = 10.0 + ALIVE - 1
    assert liveness.is_alive(beat(2, modified=time.time() + ahead + 10))


@pytest.mark.parametrize("ahead", [-DAY, 0.0, DAY])
def test_a_heartbeat_that_stays_the_same_is_not_alive_for_long(ahead: float):
    """A dead worker whose clock was a day ahead does not count for a day."""
    now = 0.0
    liveness = Liveness(clock=lambda: now)
    liveness.is_alive(beat(1, modified=time.time() + ahead))
    now = ALIVE + 1
    assert not liveness.is_alive(beat(1, modified=time.time() + ahead))


def test_a_date_in_the_future_is_no_sign_of_life():
    """One look goes by the date, in both directions."""
    assert looks_alive(beat(1, modified=time.time()))
    assert not looks_alive(beat(1, modified=time.time() + DAY))
    assert not looks_alive(beat(1, modified=time.time() - DAY))


@pytest.mark.anyio
async def test_ready_means_that_a_model_is_loaded():
    """A worker that loads its model beats already, and `/readyz` says what it does."""
    app = create_app(FacadeSettings(store="memory://ready"))
    facade = app.state.facade
    async with facade.client:
        store: MemoryStore = facade.client.store
        store._clock = time.time
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answers = []
            for seq, state in enumerate((None, "loading", "idle")):
                if state is not None:
                    await store.put("workers/one", json.dumps({"v": 1, "seq": seq, "state": state}).encode())
                assert len(await heartbeats(store)) == (state is not None)
                facade.workers.forget()
                answer = await http.get("/readyz")
                answers.append((answer.status_code, answer.json()["status"]))

    assert answers == [(503, "no worker is alive"), (503, "loading a model"), (200, "ready")]
