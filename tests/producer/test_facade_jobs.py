"""Jobs and batches over real HTTP: put, look, watch, cancel."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.producer.facade import facade, ready, worker

PROMPT = {"prompt": "a red circle", "steps": 4, "width": 64, "height": 64, "seed": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker that takes its time."""
    place = tmp_path_factory.mktemp("jobs") / "store"
    with worker(place, "--null", json.dumps({"seconds_per_step": 0.02})):
        yield place


@pytest.fixture(scope="module")
def http(store: Path) -> Iterator[httpx.Client]:
    """A caller of a facade over that directory."""
    with facade(store) as address, httpx.Client(base_url=address, timeout=240) as caller:
        ready(address)
        yield caller


def events(http: httpx.Client, id: str) -> list[dict]:
    """All events of a job, until it has finished."""
    sent = []
    with http.stream("GET", f"/jobs/{id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data: "):
                sent.append(json.loads(line.removeprefix("data: ")))
    return sent


def test_the_same_body_under_an_id_is_the_same_job(http: httpx.Client):
    """First 201, then 200 with its state, whatever the order of the fields; another body is a conflict."""
    first = http.put("/jobs/cat", json=PROMPT)
    assert first.status_code == 201
    assert first.headers["location"] == "/jobs/cat"
    again = http.put("/jobs/cat", json=dict(reversed(PROMPT.items())))
    assert again.status_code == 200
    assert again.json()["id"] == "cat"
    assert events(http, "cat")[-1]["status"] == "succeeded"
    late = http.put("/jobs/cat", json=PROMPT)
    assert (late.status_code, late.json()["status"]) == (200, "succeeded")
    other = http.put("/jobs/cat", json=PROMPT | {"seed": 6})
    assert other.status_code == 409
    assert "another request" in other.json()["detail"]


def test_a_job_is_told_until_it_is_over(http: httpx.Client):
    """The stream ends with the result, and the pictures are where it says."""
    id = http.post("/jobs", json=PROMPT | {"steps": 50}).json()["id"]
    sent = events(http, id)
    assert sent[-1]["status"] == "succeeded"
    assert {job["status"] for job in sent[:-1]} <= {"queued", "processing"}
    image = http.get(sent[-1]["images"][0]["url"])
    assert image.content.startswith(b"\x89PNG")
    same = http.get(sent[-1]["images"][0]["url"], headers={"If-None-Match": image.headers["etag"]})
    assert same.status_code == 304
    assert json.loads(http.get(f"/jobs/{id}/request").content)["prompt"] == PROMPT["prompt"]
    assert http.get(f"/jobs/{id}?images=true").json()["data"][0].startswith("iVBOR")


def test_a_job_can_be_cancelled_while_it_is_drawn(http: httpx.Client):
    """The answer says how it ended; cancelling it again changes nothing."""
    http.put("/jobs/long", json=PROMPT | {"steps": 150, "number_of_images": 8}).raise_for_status()
    assert http.delete("/jobs/long").json()["status"] == "canceled"
    assert http.delete("/jobs/long").json()["status"] == "canceled"
    assert http.get("/jobs/long").json()["failure"]["code"] == "canceled"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs/nobody"),
        ("GET", "/jobs/nobody/events"),
        ("GET", "/jobs/nobody/images/0"),
        ("DELETE", "/jobs/nobody"),
        ("GET", "/batches/nobody"),
        ("GET", "/jobs/..%2F..%2Fetc%2Fpasswd"),
    ],
)
def test_an_unknown_id_is_not_found(http: httpx.Client, method: str, path: str):
    """404 in words, whatever the id looks like."""
    answer = http.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["detail"]


def test_an_id_that_is_none_is_refused_with_its_field(http: httpx.Client):
    """As in a manifest."""
    answer = http.put("/jobs/no%20spaces", json=PROMPT)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "id"]


def test_the_queue_tells_positions(tmp_path: Path):
    """How many are ahead."""
    with facade(tmp_path) as address, httpx.Client(base_url=address) as http:
        for n in range(3):
            http.put(f"/jobs/{n}", json=PROMPT).raise_for_status()
            time.sleep(0.02)
        assert [http.get(f"/jobs/{n}").json()["position"] for n in range(3)] == [0, 1, 2]
        assert sorted(http.get("/jobs").json()["queued"]) == ["0", "1", "2"]


def test_watching_what_is_removed_comes_to_an_end(tmp_path: Path):
    """The stream was cut off in the middle, with a traceback in the log."""
    with facade(tmp_path) as address:
        job = httpx.put(f"{address}/jobs/gone", json={"prompt": "x"}).json()
        with httpx.stream("GET", f"{address}/jobs/{job['id']}/events", timeout=240) as watched:
            lines = watched.iter_lines()
            assert next(lines) == "event: job"
            for file in (tmp_path / "requests").rglob("*.json"):
                file.unlink()
            assert not [one for one in lines if one.startswith("event:")]
        assert httpx.get(f"{address}/jobs/gone").status_code == 404


def test_a_batch_is_uploaded_watched_and_collected(http: httpx.Client):
    """Rows, counts, and the summary files; a wrong line is named."""
    rows = [PROMPT | {"custom_id": f"row{n}", "seed": n} for n in range(3)]
    lines = "\n".join(json.dumps(row) for row in rows)
    made = http.post("/batches?id=wall", content=lines)
    assert made.status_code == 202
    assert made.headers["location"] == "/batches/wall"
    end = time.monotonic() + 240
    while (batch := http.get("/batches/wall").json())["status"] in ("queued", "processing"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert batch["counts"]["succeeded"] == 3
    assert sorted(row["id"] for row in batch["rows"]) == ["wall/row0", "wall/row1", "wall/row2"]
    assert http.get(batch["rows"][0]["images"][0]["url"]).status_code == 200
    gallery = http.get(batch["files"]["gallery"])
    assert gallery.headers["content-type"].startswith("text/html")
    assert "sandbox" in gallery.headers["content-security-policy"]
    assert len(http.get(batch["files"]["results"]).text.splitlines()) == 3
    wrong = http.post("/batches", content=lines + '\n{"prompt": ""}')
    assert wrong.status_code == 422
    assert wrong.json()["detail"][0]["ctx"]["line"] == 4
