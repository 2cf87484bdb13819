"""`POST /events`: object stores that cannot send to SQS tell of new requests over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from producer.web.api_keys import BadKey, read_event_tokens
from tests.cloud import Cloud, wait_for
from tests.producer.facade import command, facade
from tests.worker_process import worker

TOKEN = "a-token-that-nobody-can-guess"
EVENTS = Path(__file__).parents[1] / "wire" / "events"
CAT = {"prompt": "a cat", "steps": 1, "seed": 3, "width": 8, "height": 8}


@pytest.fixture
def cloud(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    made = Cloud(moto_url)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def listening(cloud: Cloud) -> Iterator[tuple[httpx.Client, str, str]]:
    """A facade that takes events, as its store calls it; its express queue and the other one."""
    queues = cloud.queue(), cloud.queue()
    with (
        facade(cloud.store, queues=queues, event_tokens=read_event_tokens(TOKEN)) as address,
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}) as http,
    ):
        yield http, *queues


def event(name: str, bucket: str, key: str | None = None) -> Any:
    """A recorded event, about our bucket."""
    found = json.loads((EVENTS / name).read_text())
    message = found.get("message", found)
    message = json.loads(message) if isinstance(message, str) else message
    for record in message["Records"]:
        record["s3"]["bucket"]["name"] = bucket
        if key is not None:
            record["s3"]["object"]["key"] = key
    return message


@pytest.mark.parametrize("name", ["minio-webhook.json", "rustfs-webhook.json", "ceph-rgw-2.2.json"])
def test_a_stores_event_goes_to_the_queue_as_it_is(
    listening: tuple[httpx.Client, str, str], cloud: Cloud, name: str
):
    """Once; to the express queue where the request lies in that lane; for a store below a prefix, too."""
    http, express, other = listening
    bodies = [
        json.dumps(event(name, cloud.bucket, key))
        for key in ("requests/a.json", "requests/express/b.json", "team/requests/c.jsonl")
    ]
    for body in bodies:
        answer = http.post("/events", content=body)
        assert (answer.status_code, answer.json()) == (202, {"queued": 1, "ignored": {}})
    assert cloud.take(express) == [bodies[1]]
    assert sorted(cloud.take(other)) == sorted([bodies[0], bodies[2]])


def test_what_asks_for_nothing_is_counted_and_not_queued(
    listening: tuple[httpx.Client, str, str], cloud: Cloud
):
    """A result of ours, a removal: the store must not send them again."""
    http, *queues = listening
    answer = http.post("/events", json=event("minio-webhook.json", cloud.bucket, "results%2Fa%2Fresult.json"))
    assert (answer.status_code, answer.json()) == (202, {"queued": 0, "ignored": {"not_a_request": 1}})
    answer = http.post("/events", json=event("minio-removed.json", cloud.bucket))
    assert answer.json() == {"queued": 0, "ignored": {"removed": 1}}
    assert [cloud.depth(queue) for queue in queues] == [0, 0]


def test_what_is_no_event_of_our_bucket_is_refused_in_words(
    listening: tuple[httpx.Client, str, str], cloud: Cloud
):
    """Nothing reaches the queue, and the answer says what is wrong."""
    http, *queues = listening
    for body, status, words in (
        (b"", 422, "empty"),
        (b"\xff\xfe", 422, "not JSON"),
        (b"[" * 100_000, 422, "nested"),
        (b"[1]", 422, "a number"),
        (b'{"hello": 1}', 422, "neither a manifest nor an event"),
        (json.dumps(CAT).encode(), 422, "POST /jobs"),
        (b'{"reference": "requests/a.json"}', 422, "POST /jobs"),
        (json.dumps(event("minio-webhook.json", "theirs")).encode(), 422, "'theirs'"),
        (b" " * (1 << 20) + b"{}", 413, "the limit is"),
    ):
        answer = http.post("/events", content=body)
        assert answer.status_code == status, body[:80]
        assert words in answer.text, answer.text
    assert [cloud.depth(queue) for queue in queues] == [0, 0]


def test_only_a_store_with_the_token_is_heard(listening: tuple[httpx.Client, str, str], cloud: Cloud):
    """As a bearer token, as Ceph's password in the URL; MinIO asks with HEAD first."""
    http, _, other = listening
    body = event("minio-webhook.json", cloud.bucket, "requests/a.json")
    assert http.head("/events").status_code == 204
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer another-token-of-that-length"}):
        answer = http.post("/events", json=body, headers=headers)
        assert answer.status_code == 401
        assert "DREAMDROP_EVENTS_TOKEN" in answer.json()["detail"]
    assert cloud.depth(other) == 0
    assert httpx.post(f"{http.base_url}/events", json=body, auth=("ceph", TOKEN)).status_code == 202


def test_a_server_without_a_token_takes_no_events(tmp_path: Path):
    """404, and the setting's name; a short token, or one without a queue, stops the start."""
    with facade(tmp_path) as address:
        answer = httpx.post(f"{address}/events", json={}, headers={"Authorization": "Bearer x"})
    assert answer.status_code == 404
    assert "DREAMDROP_EVENTS_TOKEN" in answer.json()["detail"]
    with pytest.raises(BadKey, match="at least 24") as caught:
        read_event_tokens("t0p-secret")
    assert "t0p" not in str(caught.value)
    process = command("serve", "--store", str(tmp_path), "--port", "0", DREAMDROP_EVENTS_TOKEN=TOKEN)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--queue" in errors
    assert TOKEN not in errors


def test_an_event_over_http_has_its_request_drawn(cloud: Cloud):
    """From the store's POST to the result, by a worker that would not list for an hour."""
    url = cloud.queue()
    cloud.s3.put_object(Bucket=cloud.bucket, Key="requests/cat.json", Body=json.dumps(CAT).encode())
    with (
        worker(cloud.store, "--queue", url, "--reconcile", "3600"),
        facade(cloud.store, queues=(url,), event_tokens=read_event_tokens(TOKEN)) as address,
    ):
        body = event("minio-webhook.json", cloud.bucket, "requests%2Fcat.json")
        httpx.post(
            f"{address}/events", json=body, headers={"Authorization": f"Bearer {TOKEN}"}
        ).raise_for_status()
        wait_for(lambda: cloud.keys("results/cat/result.json"), "no result")
