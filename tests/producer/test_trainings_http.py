"""Trainings over HTTP, in front of a real directory: the API, keys, and the pages without a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.stores.open import open_store
from producer.web.api_keys import new_key, read_keys
from tests.producer.facade import facade
from tests.producer.training_store import MANIFEST, REPORT, FakeTrainer, drop, every_state

STRICT = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory with a training in each state."""
    folder = tmp_path / "store"
    folder.mkdir()
    asyncio.run(every_state(folder))
    return folder


@pytest.fixture
def http(store: Path) -> Iterator[httpx.Client]:
    """A client of a facade over that directory."""
    with facade(store) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_trainings_are_listed_with_how_far_they_are(http: httpx.Client):
    """And requests know nothing of them."""
    listed = http.get("/trainings").json()
    assert (listed["queued"], listed["over"], listed["trainers"]) == (["waiting"], 3, 1)
    (running,) = listed["processing"]
    progress = running["progress"]
    assert (running["id"], progress["phase"], progress["steps_done"]) == ("running", "training", 40)
    assert (progress["loss"], progress["eta"]) == (0.125, 5400.0)
    latest = {one["id"]: one for one in listed["latest"]}
    assert (latest["done"]["model"], latest["done"]["report"]) == ("my-dog@2", "/trainings/done/report")
    assert latest["broken"]["failure"]["field"] == "base"
    assert latest["unwanted"]["status"] == "canceled"
    jobs = http.get("/jobs").json()
    assert (jobs["queued"], jobs["processing"], jobs["latest"], jobs["workers"]) == ([], [], [], 0)
    assert http.get("/jobs/done").status_code == 404
    assert "dreamdrop_trainers_alive 1.0" in http.get("/metrics").text


def test_one_training_has_its_pictures_and_its_report(http: httpx.Client):
    """The report may not run or load anything; only its own files are served."""
    done = http.get("/trainings/done").json()
    assert (done["status"], done["model"], done["parameters"]["rank"]) == ("succeeded", "my-dog@2", 8)
    assert [(one["step"], one["prompt"]) for one in done["validation"]] == [
        (step, "a photo of <b>sks</b> dog") for step in (0, 200, 400)
    ]
    picture = http.get(done["validation"][2]["url"])
    assert (picture.headers["content-type"], picture.content[:4]) == ("image/png", b"\x89PNG")
    report = http.get(done["report"])
    assert (report.content, report.headers["content-security-policy"]) == (REPORT, STRICT)
    assert report.headers["x-content-type-options"] == "nosniff"
    for missing in (
        "done/validation/200/1",
        "done/validation/7/0",
        "broken/report",
        "nobody",
        "nobody/report",
    ):
        answer = http.get(f"/trainings/{missing}")
        assert answer.status_code == 404, missing
        assert "/" not in answer.json()["detail"].replace("nobody", ""), "it tells where the store is"


def test_a_training_is_dropped_as_a_file(http: httpx.Client, store: Path):
    """Under a chosen id, once; or under a name of its own. A wrong one is refused by its field."""
    chosen = http.post("/trainings?id=mine", json=MANIFEST)
    assert (chosen.status_code, chosen.headers["location"]) == (202, "/trainings/mine")
    assert (chosen.json()["id"], chosen.json()["status"]) == ("mine", "queued")
    assert json.loads((store / "trainings/mine.json").read_bytes()) == MANIFEST
    assert http.post("/trainings?id=mine", json=MANIFEST).status_code == 202
    other = http.post("/trainings?id=mine", json=MANIFEST | {"steps": 3})
    assert (other.status_code, other.json()["id"]) == (409, "mine")
    assert http.post("/trainings?id=done", json=MANIFEST | {"steps": 3}).status_code == 409
    ids = {http.post("/trainings", json=MANIFEST).json()["id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(id.startswith("my-dog-") for id in ids)
    wrong = http.post("/trainings", json=MANIFEST | {"stepps": 3})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "stepps"])
    assert http.post("/trainings?id=a/b", json=MANIFEST).status_code == 422
    assert len(list((store / "trainings").iterdir())) == 4  # with the one that waited before


@pytest.mark.parametrize("id", ["waiting", "running"])
def test_a_training_is_canceled(http: httpx.Client, store: Path, id: str):
    """One that waits and one that is under way; one that has ended stays as it is."""
    answer = http.delete(f"/trainings/{id}")
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert json.loads((store / f"training-results/{id}/result.json").read_bytes())["status"] == "canceled"
    assert http.delete("/trainings/done").json()["status"] == "succeeded"
    assert http.delete("/trainings/nobody").status_code == 404


def test_too_many_that_wait_are_refused(tmp_path: Path):
    """As in the express lane."""
    drop(tmp_path, "first")
    with facade(tmp_path, room=1) as address:
        answer = httpx.post(f"{address}/trainings", json=MANIFEST)
    assert (answer.status_code, "retry-after" in answer.headers) == (429, True)


def test_a_key_with_a_prefix_has_trainings_of_its_own(tmp_path: Path):
    """It sees no others, publishes under its own names, and reads its own files only."""
    secret, line = new_key("alice", prefix="team-a")
    for id in ("other", "team-a.cat"):
        drop(tmp_path, id)

    async def end() -> None:
        async with open_store(str(tmp_path)) as opened:
            trainer = FakeTrainer(opened)
            await trainer.publish(await trainer.take("other"))

    asyncio.run(end())
    own = MANIFEST | {"name": "team-a.dog", "archive": "uploads/team-a/dog.zip"}
    with (
        facade(tmp_path, keys=read_keys(line)) as address,
        httpx.Client(base_url=address, headers={"X-API-Key": secret}, timeout=60) as http,
    ):
        assert httpx.get(f"{address}/trainings").status_code == 401
        listed = http.get("/trainings").json()
        assert (listed["queued"], listed["over"]) == (["team-a.cat"], 0)
        assert [http.get(f"/trainings/other{rest}").status_code for rest in ("", "/report")] == [404, 404]
        assert http.delete("/trainings/other").status_code == 404
        assert "other" not in http.get("/t").text
        assert http.get("/trainings/cat").json()["id"] == "team-a.cat"
        sent = http.post("/trainings?id=dog", json=own | {"resume_from": "cat"})
        assert (sent.status_code, sent.json()["id"]) == (202, "team-a.dog")
        refused = {
            "name": own | {"name": "my-dog"},
            "archive": own | {"archive": "uploads/team-b/dog.zip"},
            "pictures.0.image": own | {"archive": None, "pictures": [{"image": "uploads/teamb/secret"}]},
        }
        for field, manifest in refused.items():
            answer = http.post("/trainings", json=manifest)
            assert answer.status_code == 422
            assert ".".join(answer.json()["detail"][0]["loc"]) == f"body.{field}"
    dropped = json.loads((tmp_path / "trainings/team-a.dog.json").read_bytes())
    assert dropped["resume_from"] == "team-a.cat"


def test_what_strangers_left_does_not_stop_the_pages(http: httpx.Client, store: Path):
    """A claim, a status, a result and a heartbeat that cannot be read, and prompts that are no list."""
    for key in (
        *("training-claims/running/000001", "training-status/running.json", "trainers/trainer-1"),
        *("training-results/done/result.json", "training-results/done/validation/prompts.json"),
    ):
        (store / key).write_bytes(b"[{")
    for path in ("/t", "/t/running", "/t/done", "/trainings", "/trainings/running", "/trainings/done"):
        assert http.get(path).status_code == 200, path
    assert http.get("/trainings/done").json()["status"] == "failed"
    assert http.get("/trainings").json()["trainers"] == 0


def test_the_pages_escape_what_they_show(http: httpx.Client, store: Path):
    """Prompts and messages come from strangers."""
    drop(store, "hostile", instance_prompt="<script>alert(1)</script>")
    text = http.get("/t/hostile").text
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text
    assert "&lt;b&gt;sks&lt;/b&gt;" in http.get("/t/done").text
    assert http.get("/t/nobody", headers={"Accept": "text/html"}).status_code == 404
