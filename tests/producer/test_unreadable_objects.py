"""Objects that cannot be read: they are shown as such, and harm nobody else's view of the store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from producer import Client
from schemas.layout import fingerprint
from schemas.result import Frozen, Result
from tests.producer.facade import facade

PAGES = ("/", "/live", "/b", "/jobs", "/readyz", "/metrics", "/v1/batches", "/v1/files", "/sdapi/v1/progress")
BROKEN = {
    "empty": b"",
    "half": b'{"id": "half", "status": "succ',
    "binary": b"\xff\x00\xfe",
    "list": b"[]",
    "deep": b"[" * 100_000,
    "version": b'{"v": 2, "id": "version", "status": "dreamt"}',
    "infinite": b'{"v": 1, "id": "infinite", "status": "failed", "timings": {"total": 1e999}}',
}


def result(id: str, **fields: Any) -> bytes:
    body = b'{"prompt": "a red circle"}'
    written = Result(id=id, status="canceled", fingerprint=fingerprint(body), request=Frozen.of(body))
    return json.dumps({**json.loads(written.to_json()), **fields}).encode()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a good result, and with everything else that a client could have written."""
    place = tmp_path / "store"

    def write(key: str, body: bytes) -> None:
        path = place / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    write("results/good/result.json", result("good"))
    newer = result("newer", mood="cheerful", timings={"total": 1.0, "dream": 2.0})
    write("results/newer/result.json", newer)
    odd = {
        "finished_at": "yesterday",
        "parameters": {"prompt": 5, "seeds": "abc", "output": [1e300]},
        "images": [],
    }
    write("results/odd/result.json", result("odd", **odd))
    write(
        "results/rows/result.json", result("rows", failure={"code": "canceled", "message": "it was canceled"})
    )
    write("results/rows/a/result.json", result("rows/a"))
    write("uploads/openai/file-fresh.1.json", b"{}")
    write("uploads/openai/batch_fresh.1.json", b"{}")
    write("claims/waiting/000001", json.dumps({"id": "waiting"}).encode())
    write("status/waiting.json", b'{"id": "waiting", "eta": 1e999, "steps_total": 5}')
    write("claims/counted/000001", b"{}")
    write("status/counted.json", b'{"id": "counted", "steps_done": %b, "steps_total": 1}' % (b"9" * 400))
    for name, body in BROKEN.items():
        write(f"results/{name}/result.json", body)
        write(f"results/rows/{name}/result.json", body)
        write(f"claims/claimed-{name}/000001", body)
        write(f"status/claimed-{name}.json", body)
        write(f"workers/{name}", body)
        write(f"requests/dropped-{name}.json", body)
        write(f"uploads/openai/file-{name}.json", body)
        write(f"uploads/openai/batch_{name}.json", body)
    return place


@pytest.fixture
def http(store: Path) -> Iterator[httpx.Client]:
    with facade(store) as address, httpx.Client(base_url=address, timeout=60) as caller:
        yield caller


@pytest.mark.parametrize("path", PAGES)
def test_lists_and_pages_are_shown_all_the_same(http: httpx.Client, path: str):
    """One unreadable `result.json` was a 500 for everybody."""
    answer = http.get(path)
    assert answer.status_code in (200, 503), answer.text  # 503: no worker that is readable may be there
    assert "Internal Server Error" not in answer.text


def test_what_cannot_be_read_is_marked(http: httpx.Client):
    """As a failure that says so; a result of a newer version is read without what is not known."""
    jobs = {job["id"]: job for job in http.get("/jobs?limit=200").json()["latest"]}
    for name in BROKEN:
        assert jobs[name]["status"] == "failed"
        assert "cannot be read" in jobs[name]["failure"]["message"]
    assert (jobs["newer"]["status"], jobs["newer"]["timings"]["total"]) == ("canceled", 1.0)
    page = http.get("/").text
    assert "results/empty/result.json cannot be read" in page


def test_each_is_shown_at_its_own_address(http: httpx.Client):
    """A page or an error in words, for results, claims and dropped files alike."""
    for name in (
        *BROKEN,
        *(f"claimed-{name}" for name in BROKEN),
        *(f"dropped-{name}" for name in BROKEN),
        "odd",
    ):
        for path in (
            f"/pictures/{name}",
            f"/jobs/{name}",
            f"/b/{name}",
            f"/batches/{name}",
            f"/recipe/{name}",
        ):
            answer = http.get(path)
            assert answer.status_code < 500, (path, answer.text)
    for name in ("waiting", "counted"):
        assert http.get(f"/jobs/{name}").json()["status"] == "processing"


def test_a_batch_shows_its_readable_rows_and_marks_the_others(http: httpx.Client):
    """The page and the JSON."""
    rows = {row["id"]: row["status"] for row in http.get("/batches/rows").json().get("rows", [])}
    assert rows == {"rows/a": "canceled", **{f"rows/{name}": "failed" for name in BROKEN}}
    assert http.get("/b/rows").status_code == 200


def test_the_command_line_lists_them_too(store: Path, dreamdrop: Callable[..., Any]):
    """`status` was a traceback."""
    listed = dreamdrop("status", "--store", str(store))
    assert listed.returncode == 0
    for id in ("empty", "claimed-half", "good"):
        shown = dreamdrop("status", id, "--store", str(store))
        assert "Traceback" not in shown.stderr + shown.stdout
    ended = dreamdrop("status", "empty", "--store", str(store), "--json")
    assert json.loads(ended.stdout)["status"] == "failed"


def test_nobody_waits_for_a_result_that_cannot_be_read(store: Path):
    """It is there for ever, so it is an end."""
    with Client(store) as client:
        assert client.wait("empty", timeout=10).status == "failed"


def test_a_result_of_absurd_size_is_not_read(store: Path):
    """It would fill the memory of whoever looks."""
    huge = store / "results/huge/result.json"
    huge.parent.mkdir()
    with huge.open("wb") as file:
        file.write(b"{")
        os.truncate(huge, 1 << 30)
    with Client(store) as client:
        assert "cannot be read" in client.result("huge").failure.message  # type: ignore[union-attr]


def test_an_object_that_is_no_heartbeat_is_no_worker(http: httpx.Client):
    """A call would wait for nothing."""
    assert http.get("/readyz").status_code == 503
    assert http.post("/generate/", json={"prompt": "x"}).status_code == 503
