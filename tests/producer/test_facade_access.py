"""Who may call, from where, and what a browser may do with the answers."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from producer.web.api_keys import BadKey, new_key, read_keys
from producer.web.facade import LATEST
from schemas.result import Frozen, Result
from tests.producer.facade import facade, ready, worker

PROMPT = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 5}


@pytest.fixture
def open_facade(tmp_path: Path) -> Iterator[httpx.Client]:
    """A facade without keys, as it is on loopback."""
    with facade(tmp_path) as address, httpx.Client(base_url=address) as http:
        yield http


def test_with_keys_nobody_else_comes_in(tmp_path: Path):
    """401 without one or with a wrong one; a bearer token, a header and a browser's password are each right."""
    key, line = new_key("alice")
    with facade(tmp_path, keys=read_keys(line)) as address, httpx.Client(base_url=address) as http:
        for wrong in ({}, {"Authorization": "Bearer dd_wrong"}, {"Authorization": "Basic ???"}):
            answer = http.get("/jobs", headers=wrong)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
        assert http.get("/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert http.get("/jobs", headers={"X-API-Key": key}).status_code == 200
        assert http.get("/jobs", auth=("anybody", key)).status_code == 200
        assert http.get("/livez").status_code == 200  # load balancers have no keys
        assert http.get("/metrics").status_code == 401


def test_a_prefix_is_a_wall(tmp_path: Path):
    """Two teams use the same id, and neither sees the other's."""
    (red, red_line), (blue, blue_line) = new_key("red", prefix="red"), new_key("blue", prefix="blue")
    with facade(tmp_path, keys=read_keys(f"{red_line} {blue_line}")) as address:
        as_red = httpx.Client(base_url=address, headers={"X-API-Key": red})
        as_blue = httpx.Client(base_url=address, headers={"X-API-Key": blue})
        with as_red, as_blue:
            assert as_red.put("/jobs/cat", json=PROMPT).json()["id"] == "red.cat"
            assert as_blue.put("/jobs/cat", json=PROMPT | {"seed": 9}).json()["id"] == "blue.cat"
            assert as_red.get("/jobs/red.cat").status_code == 200
            assert as_red.get("/jobs/blue.cat").status_code == 404
            assert as_red.delete("/jobs/blue.cat").status_code == 404
            assert as_red.get("/jobs").json()["queued"] == ["red.cat"]
            assert as_blue.post("/batches?id=red.wall", content=json.dumps(PROMPT)).json()["id"] == (
                "blue.red.wall"
            )


def test_behind_its_wall_a_caller_sees_its_own_however_busy_others_are(tmp_path: Path):
    """Its list and its count have its own results only; so has its page."""
    (red, red_line), (blue, blue_line) = new_key("red", prefix="red"), new_key("blue", prefix="blue")
    for id in ("red.cat", *(f"blue.{n}" for n in range(LATEST + 1))):
        folder = tmp_path / "results" / id
        folder.mkdir(parents=True)
        ended = Result(id=id, status="canceled", fingerprint="", request=Frozen(text="", cut=True))
        (folder / "result.json").write_bytes(ended.to_json())
    os.utime(tmp_path / "results" / "red.cat" / "result.json", (1, 1))  # long ago
    with facade(tmp_path, keys=read_keys(f"{red_line} {blue_line}")) as address:
        mine = httpx.get(f"{address}/jobs", headers={"X-API-Key": red}).json()
        assert ([job["id"] for job in mine["latest"]], mine["over"]) == (["red.cat"], 1)
        assert "/pictures/red.cat" in httpx.get(address, headers={"X-API-Key": red}).text
        theirs = httpx.get(f"{address}/jobs", headers={"X-API-Key": blue}).json()
        assert theirs["over"] == LATEST + 1
        assert not any(job["id"].startswith("red") for job in theirs["latest"])


def test_a_key_has_its_own_bound(tmp_path: Path):
    """A caller that uses up its own limit does not use up that of others."""
    (one, first), (two, second) = new_key("one", room=1), new_key("two")
    slow = json.dumps({"seconds_per_step": 0.5})
    with worker(tmp_path, "--null", slow), facade(tmp_path, keys=read_keys(f"{first},{second}")) as address:
        ready(address)
        with httpx.Client(base_url=address, headers={"X-API-Key": one}) as busy:
            held = threading.Thread(
                target=lambda: busy.post("/generate/", json=PROMPT | {"steps": 8}, timeout=240)
            )
            held.start()
            while not httpx.get(f"{address}/jobs", headers={"X-API-Key": two}).json()["processing"]:
                pass
            full = httpx.post(f"{address}/generate/", json=PROMPT, headers={"X-API-Key": one})
            assert full.status_code == 429
            assert full.headers["retry-after"]
            other = httpx.post(f"{address}/generate/", json=PROMPT, headers={"X-API-Key": two}, timeout=240)
            assert other.status_code == 200
            held.join()


def test_a_setting_that_is_no_key_is_told_without_repeating_it():
    """It may hold a secret."""
    for text in ("hunter2", "alice=hunter2", "alice=" + "0" * 64 + ";pass=hunter2"):
        with pytest.raises(BadKey) as fault:
            read_keys(text)
        assert "hunter2" not in str(fault.value)


@pytest.mark.parametrize(("name", "prefix", "which"), [("al ice", "", "name"), ("alice", "team;a", "prefix")])
def test_a_key_for_a_name_that_no_setting_can_hold_is_not_made(name: str, prefix: str, which: str):
    """The error names the part that is wrong, not the setting, which nobody has touched yet."""
    with pytest.raises(BadKey, match=f"^the {which} '"):
        new_key(name, prefix=prefix)


def test_a_wrong_key_is_told_apart_from_none(tmp_path: Path):
    """A caller that sent a key is not asked to send one; the key itself is not repeated."""
    with facade(tmp_path, keys=read_keys(new_key("alice")[1])) as address:
        assert httpx.get(f"{address}/jobs").json()["detail"].startswith("a key is needed")
        detail = httpx.get(f"{address}/jobs", headers={"X-API-Key": "dd_other"}).json()["detail"]
        assert detail.startswith("this server does not know the key")
        assert "dd_other" not in detail


def test_a_page_of_another_site_cannot_draw_here(open_facade: httpx.Client):
    """Neither by a form or script of its own, nor by a host name that resolves to this machine."""
    for origin in ("https://evil.example", "null", "http://[evil"):
        answer = open_facade.post("/jobs", json=PROMPT, headers={"Origin": origin})
        assert answer.status_code == 403
    own = str(open_facade.base_url).rstrip("/")
    assert open_facade.post("/jobs", json=PROMPT, headers={"Origin": own}).status_code == 202
    renamed = open_facade.get("/jobs", headers={"Host": "evil.example"})
    assert renamed.status_code == 421
    assert "access-control-allow-origin" not in open_facade.get("/jobs", headers={"Origin": own}).headers


def test_a_prefix_is_a_wall_for_named_pictures_too(tmp_path: Path):
    """A caller with a prefix names objects under uploads/<prefix>/ only, in a request and in a batch's rows."""
    key, line = new_key("blue", prefix="blue")
    with facade(tmp_path, keys=read_keys(line)) as address:
        http = httpx.Client(base_url=address, headers={"X-API-Key": key})
        with http:
            for named, status in (
                ("uploads/red/secret.png", 422),
                ("uploads/blue/../red/secret.png", 422),
                (f"{tmp_path.as_uri()}/uploads/red/secret.png", 422),
                ("s3://bucket/uploads/red/secret", 422),
                ("uploads/blue/own.png", 202),
                ("data:image/png;base64,AAAA", 202),
            ):
                body = {"prompt": "a red circle", "image": named}
                answer = http.post("/jobs", json=body)
                assert answer.status_code == status, (named, answer.text)
                rows = b"\n" + json.dumps({"prompt": "x"}).encode() + b"\n" + json.dumps(body).encode()
                batch = http.post("/batches", content=rows)
                assert batch.status_code == status, (named, batch.text)
                nested = {"prompt": "x", "controlnet": [{"name": "canny", "image": named}]}
                assert http.post("/jobs", json=nested).status_code == status, named
                if status == 422:
                    assert "uploads/blue/" in answer.json()["detail"][0]["msg"]
                    assert "line 3" in batch.json()["detail"][0]["msg"]


def test_a_heavy_body_holds_up_nobody_else(tmp_path: Path):
    """While a batch of many rows is read, the server answers other calls."""
    rows = b"\n".join(b'{"prompt": "a", "metadata": {"n": %d}}' % n for n in range(50_000))
    with facade(tmp_path) as address, httpx.Client(base_url=address, timeout=240) as http:
        answers: list[int] = []
        busy = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{address}/batches", content=rows, timeout=240).status_code
            )
        )
        busy.start()
        looks = 0
        while busy.is_alive():
            assert http.get("/livez").status_code == 200
            looks += 1
        busy.join()
    assert answers == [202]
    assert looks >= 15


def test_an_unknown_id_tells_nothing_of_others_and_not_where_the_store_lies(tmp_path: Path):
    """No endpoint and no page suggests another team's id for a similar one."""
    (red, red_line), (blue, blue_line) = new_key("red", prefix="red"), new_key("blue", prefix="blue")
    with facade(tmp_path, keys=read_keys(f"{red_line} {blue_line}")) as address:
        assert httpx.put(f"{address}/jobs/cat", json=PROMPT, headers={"X-API-Key": red}).status_code == 201
        for path in (
            "/jobs/red.cats",
            "/pictures/red.cats",
            "/b/red.cats",
            "/batches/red.cats",
            "/v1/batches/red.cats",
        ):
            answer = httpx.get(address + path, headers={"X-API-Key": blue})
            assert answer.status_code == 404, path
            text = answer.text.replace("red.cats", "")
            assert "red" not in re.sub(r"<style.*?</style>", "", text), path
            assert str(tmp_path) not in text, path


def test_a_store_that_is_away_is_told_without_its_place(tmp_path: Path):
    """503 and when to try again; callers do not learn which directory or bucket it is."""
    store = tmp_path / "store"
    with facade(store) as address:
        store.chmod(0o700)
        store.rename(tmp_path / "elsewhere")
        answer = httpx.get(f"{address}/jobs/cat")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "does not answer" in answer.json()["detail"]
    assert str(tmp_path) not in answer.text


def test_every_answer_ties_a_browsers_hands(open_facade: httpx.Client):
    """Errors included."""
    for path in ("/jobs", "/jobs/nobody", "/nowhere", "/openapi.json"):
        headers = open_facade.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_health_and_metrics_say_what_is_there(tmp_path: Path):
    """Alive without a worker, ready with one; every answer is counted by its route."""
    with facade(tmp_path) as address:
        assert httpx.get(f"{address}/livez").json() == {"status": "alive"}
        assert httpx.get(f"{address}/readyz").status_code == 503
        with worker(tmp_path):
            ready(address)
            assert httpx.get(f"{address}/jobs/nobody").status_code == 404
            text = httpx.get(f"{address}/metrics").text
    assert "dreamdrop_workers_alive 1.0" in text
    assert re.search(
        r'dreamdrop_http_answers_total\{method="GET",route="/jobs/\{id:path\}",status="404"\} 1', text
    )
