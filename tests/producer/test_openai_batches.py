"""OpenAI's files and batches, by OpenAI's own client."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from producer.web.api_keys import new_key, read_keys
from tests.cloud import Cloud
from tests.producer.facade import facade, ready, worker
from tests.producer.openai_calls import client, ended, line, made, opened, uploaded


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker that fails when it is told to."""
    place = tmp_path_factory.mktemp("openai") / "store"
    with worker(place, "--null", json.dumps({"fail_on": "please fail", "seconds_per_step": 0.01})):
        yield place


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    with facade(store) as listening:
        ready(listening)
        yield listening


@pytest.fixture
def api(address: str) -> Iterator[openai.OpenAI]:
    """The foreign client, as its own documentation makes it."""
    with client(address) as opened:
        yield opened


def test_a_batch_is_drawn_and_its_answers_are_a_file(api: openai.OpenAI):
    """Each line's name is kept, whatever is in it; failures have a file of their own."""
    file = uploaded(
        api,
        line("plain", n=2),
        line("with spaces / and more", response_format="url"),
        "",
        line("broken", prompt="please fail"),
    )
    batch = made(api, file, metadata={"for": "test"})
    assert batch.metadata == {"for": "test"}
    batch = ended(api, batch.id)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert batch.completed_at
    assert batch.completed_at >= batch.created_at - 1
    answers = [json.loads(one) for one in api.files.content(batch.output_file_id).text.splitlines()]
    by_name = {one["custom_id"]: one["response"]["body"]["data"] for one in answers}
    assert sorted(by_name) == ["plain", "with spaces / and more"]
    assert [opened(one["b64_json"]).size for one in by_name["plain"]] == [(64, 64)] * 2
    url = by_name["with spaces / and more"][0]["url"]
    assert httpx.get(url).content.startswith(b"\x89PNG")
    errors = [json.loads(one) for one in api.files.content(batch.error_file_id).text.splitlines()]
    assert [one["custom_id"] for one in errors] == ["broken"]
    assert errors[0]["error"]["code"] == "render_error"
    assert api.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert batch.id in {one.id for one in api.batches.list()}


def test_a_batch_with_mistakes_fails_at_once_and_says_where(api: openai.OpenAI, address: str):
    """With every line's number; nothing of it is drawn."""
    file = uploaded(
        api,
        line("good"),
        "{not json",
        line("good"),
        {**line("elsewhere"), "url": "/v1/chat/completions"},
        line("typo", stepz=3),
    )
    batch = made(api, file)
    assert batch.status == "failed"
    assert [fault.line for fault in batch.errors.data] == [2, 3, 4, 5]
    assert [fault.param for fault in batch.errors.data] == [None, "custom_id", "url", "stepz"]
    assert api.batches.retrieve(batch.id).status == "failed"
    assert httpx.get(f"{address}/jobs/{batch.id}").status_code == 404


def test_a_batch_can_be_canceled(api: openai.OpenAI):
    """What was drawn before stays."""
    file = uploaded(api, *(line(f"row{k}", steps=100) for k in range(8)))
    batch = api.batches.cancel(made(api, file).id)
    assert batch.status == "cancelled"
    assert api.batches.retrieve(batch.id).status == "cancelled"
    assert api.batches.cancel(batch.id).status == "cancelled"


def test_files_are_kept_until_they_are_deleted(api: openai.OpenAI, store: Path):
    """Also by a server that was started later."""
    first, second = uploaded(api, line("a")), uploaded(api, line("b"))
    with facade(store) as other, client(other) as late:
        assert json.loads(late.files.content(first).text)["custom_id"] == "a"
        assert late.files.retrieve(second).filename == "requests.jsonl"
        ids = [one.id for one in late.files.list(limit=1)]  # page by page
        assert [id for id in ids if id in (first, second)] == [second, first]
        assert late.files.delete(first).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(first)
    with pytest.raises(openai.NotFoundError):
        made(api, first)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        api.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")


def test_a_batch_in_a_bucket_is_known_to_every_server(cloud: Cloud):
    """Uploaded at one, made at another, read at a third; nothing of it is in a server's memory."""
    with worker(cloud.store, environment=os.environ | cloud.environment()):
        with facade(cloud.store) as first, client(first) as api:
            file = uploaded(api, line("a"), line("b", n=2))
        with facade(cloud.store) as second, client(second) as api:
            batch = made(api, file).id
        with facade(cloud.store) as third, client(third) as api:
            assert ended(api, batch).request_counts.completed == 2
            answers = api.files.content(api.batches.retrieve(batch).output_file_id).text
    bodies = {one["custom_id"]: one["response"]["body"] for one in map(json.loads, answers.splitlines())}
    assert {name: len(body["data"]) for name, body in bodies.items()} == {"a": 1, "b": 2}


def test_keys_are_asked_for_and_prefixes_are_walls(tmp_path: Path):
    """Nobody sees another's files and batches; the client's own error tells that a key is wrong."""
    (red, red_line), (blue, blue_line) = new_key("red", prefix="red"), new_key("blue", prefix="blue")
    with facade(tmp_path, keys=read_keys(f"{red_line} {blue_line}")) as address:
        with client(address, "sk-wrong") as nobody, pytest.raises(openai.AuthenticationError) as refused:
            nobody.models.list()
        assert refused.value.code == "invalid_api_key"
        with client(address, red) as as_red, client(address, blue) as as_blue:
            file = uploaded(as_red, line("a"))
            batch = made(as_red, file).id
            assert [one.id for one in as_red.files.list()] == [file]
            assert [one.id for one in as_red.batches.list()] == [batch]
            assert not list(as_blue.files.list())
            assert not list(as_blue.batches.list())
            for ask in (
                lambda: as_blue.files.retrieve(file),
                lambda: as_blue.files.content(file),
                lambda: as_blue.files.delete(file),
                lambda: as_blue.batches.retrieve(batch),
                lambda: as_blue.batches.cancel(batch),
                lambda: made(as_blue, file),
            ):
                with pytest.raises(openai.NotFoundError):
                    ask()
            assert as_red.batches.retrieve(batch).status == "in_progress"
