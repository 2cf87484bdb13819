"""An id stands for one request: what happens when one id is used twice in different ways."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from infra.claims.claim import Claim
from infra.stores.directory.store import DirectoryStore
from schemas.layout import claim_key, fingerprint
from schemas.result import Frozen
from tests.producer.facade import facade, ready, worker

PROMPT = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 5}


@pytest.fixture
def http(tmp_path: Path) -> Iterator[httpx.Client]:
    """A caller of a facade over a directory without a worker."""
    with facade(tmp_path) as address, httpx.Client(base_url=address, timeout=240) as caller:
        yield caller


def test_a_job_and_a_batch_do_not_share_a_name(http: httpx.Client):
    """Whichever comes first has it; the same again is the same, the other is a conflict."""
    rows = json.dumps(PROMPT)
    assert http.post("/batches?id=cat", content=rows).status_code == 202
    assert http.put("/jobs/cat", json=PROMPT).status_code == 409
    assert http.post("/batches?id=cat", content=rows).status_code == 202
    assert http.put("/jobs/dog", json=PROMPT).status_code == 201
    assert http.post("/batches?id=dog", content=rows).status_code == 409
    assert http.put("/jobs/dog", json=PROMPT).status_code == 200


def test_a_file_that_waits_under_a_name_keeps_it(http: httpx.Client, tmp_path: Path):
    """A dropped file's name is taken by its body; one that asks under an id of its own leaves it free."""
    waiting = tmp_path / "requests"
    waiting.mkdir(exist_ok=True)
    (waiting / "owl.json").write_text(json.dumps(PROMPT | {"seed": 9}))
    (waiting / "bat.json").write_text(json.dumps(PROMPT | {"id": "vampire"}))
    taken = http.put("/jobs/owl", json=PROMPT)
    assert taken.status_code == 409
    assert "another request" in taken.json()["detail"]
    assert http.put("/jobs/bat", json=PROMPT).is_success


def test_of_different_bodies_at_once_one_gets_the_name(tmp_path: Path):
    """Even while a worker takes each request as soon as it lies there."""
    with worker(tmp_path), facade(tmp_path) as address:
        ready(address)
        for n in range(12):
            callers = 9
            together = threading.Barrier(callers)

            def put(k: int, name: str = f"r{n}", together: threading.Barrier = together) -> tuple[int, int]:
                with httpx.Client(base_url=address, timeout=240) as http:
                    together.wait()
                    return http.put(f"/jobs/{name}", json=PROMPT | {"seed": k % 3}).status_code, k % 3

            with ThreadPoolExecutor(callers) as pool:
                answers = list(pool.map(put, range(callers)))
            assert {status for status, _ in answers} <= {200, 201, 409}
            assert len({seed for status, seed in answers if status != 409}) == 1, answers


def test_a_claim_beside_the_result_of_another_body_is_none_of_its_name(http: httpx.Client, tmp_path: Path):
    """A worker claims a late request's id first, then sees that it is over, and looks for another one."""
    assert http.put("/jobs/cat", json=PROMPT).status_code == 201
    over = (tmp_path / "requests/express/cat.json").read_bytes()
    assert http.delete("/jobs/cat").is_success
    late = Claim(
        id="cat",
        fingerprint=fingerprint(over.replace(b'"seed": 5', b'"seed": 6')),
        frozen=Frozen(text=""),
        plan=None,
        session="worker",
        nonce="1",
        epoch=1,
        attempt=1,
    )
    asyncio.run(DirectoryStore(tmp_path).create(claim_key("cat", 1), late.body()))
    assert http.put("/jobs/cat", json=PROMPT).status_code == 200
    assert http.put("/jobs/cat", json=PROMPT | {"seed": 6}).status_code == 409
