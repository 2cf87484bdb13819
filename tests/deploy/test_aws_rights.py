"""Each role of the CloudFormation stack may do what its program does, and not what others do."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.claims.trainings import TrainingStore
from infra.models.published import publish
from infra.stores.memory import MemoryStore
from infra.stores.store import Store
from producer import client as client_module
from producer.client import AsyncClient
from schemas import layout
from schemas.models import PublishedCard
from tests.deploy.template import BUCKET, Template, allows
from tests.ended_batches import png
from tests.infra.claims_bench import BODY, Bench, paint, success, work
from tests.producer.facade import facade
from tests.worker_inside import make_worker, running
from training import control
from training.lease import saved

pytestmark = pytest.mark.anyio

#: What S3 is asked for by each call of a store. A create whose answer is lost is read back.
ACTIONS = {
    "get": ["s3:GetObject"],
    "head": ["s3:GetObject"],
    "fetch_file": ["s3:GetObject"],
    "create": ["s3:PutObject", "s3:GetObject"],
    "put": ["s3:PutObject"],
    "create_file": ["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"],
    "delete": ["s3:DeleteObject"],
}


class Recorder:
    """A real store that remembers who did what with which key."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: set[tuple[str, str]] = set()  # (call, key)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.store, name)
        if name not in ACTIONS:
            return value

        def call(key: str, *args: Any, **options: Any) -> Any:
            self.calls.add((name, key))
            return value(key, *args, **options)

        return call

    def prefixes(self, call: str) -> set[str]:
        return {key.partition("/")[0] for made, key in self.calls if made == call}

    def denied(self, statements: list[Any]) -> list[tuple[str, str]]:
        """What was done and is not allowed."""
        arn = f"arn:aws:s3:::{BUCKET}/"
        return [
            (action, key)
            for call, key in sorted(self.calls)
            for action in ACTIONS[call]
            if not allows(statements, action, arn + key)
        ]


async def wait(store: Store, *ids: str) -> None:
    async with asyncio.timeout(120):
        while not all([await store.head(layout.result_key(id)) for id in ids]):
            await asyncio.sleep(0.05)


async def draw_one(store: Store) -> None:
    """An ended request `a`."""
    bench = Bench(store)
    claims = bench.session("w")
    assert await work(claims, await bench.must_take(claims, "a"))


async def draw(store: Store) -> Recorder:
    """A worker's day: single requests, a batch, a picture of an upload, a refusal."""
    recorder = Recorder(store)
    await store.put("uploads/cat.png", png())
    await store.put("requests/a.json", b'{"prompt": "x", "steps": 2}')
    await store.put("requests/express/b.json", b'{"prompt": "x", "image": "uploads/cat.png", "steps": 2}')
    await store.put("requests/c.jsonl", b'{"prompt": "x", "steps": 1}\n{"prompt": "y", "steps": 1}\n')
    await store.put("requests/d.json", b'{"prompt": "x", "model": "nobody-has-it"}')
    await store.put("requests/e.json", b'{"prompt": "x", "metadata": {"a": "' + b"x" * 10_000 + b'"}}')
    async with running(make_worker(recorder, null={"seconds_per_step": 1.0})):
        await wait(store, "a", "b", "c", "d", "e")
    return recorder


async def test_a_worker_may_do_what_it_does() -> None:
    """Everything that a real worker does is allowed; of what it may delete nothing is a result."""
    recorder = await draw(MemoryStore())
    role = Template().role("WorkerRole")
    assert recorder.prefixes("delete") == {"requests", "claims", "workers", "status"}
    assert recorder.prefixes("put") == {"workers", "status"}  # the bucket's policy refuses it elsewhere
    assert "uploads" in recorder.prefixes("get")
    assert recorder.denied(role) == []


async def test_a_client_may_do_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submit, look, cancel and retry, a batch, an upload, a training's files, and `train stop`."""
    store = MemoryStore()
    await draw_one(store)
    recorder = Recorder(store)
    async with AsyncClient(recorder) as client:
        assert (await client.status("a")).over
        await client.submit({"prompt": "x"}, id="new")
        await client.submit_batch(b'{"prompt": "x"}\n{"prompt": "y"}\n', id="many")
        await client.cancel("new")
        await client.cancel("many")
        await client.retry("new")
    for key in ("trainings/dog.json", "uploads/dog/1.png"):
        assert await recorder.create(key, b"{}")
    monkeypatch.setattr(control, "open_store", lambda _url: contextlib.nullcontext(recorder))
    assert "stops" in await control.ask_to_stop("memory://rights", "dog")
    assert recorder.prefixes("delete") == {"requests"}
    assert recorder.denied(Template().role("ProducerRole")) == []


async def test_a_web_server_may_do_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's rights, and the files of OpenAI's clients."""
    store = MemoryStore()
    await draw_one(store)
    recorder = Recorder(store)
    monkeypatch.setattr(client_module, "open_store", lambda _url: recorder)
    line = '{"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "x"}}\n'
    with facade("memory://rights") as address, httpx.Client(base_url=address, timeout=60) as http:
        assert http.get("/jobs/a").status_code == 200
        assert http.get("/", follow_redirects=True).status_code == 200
        files = {"file": ("a.jsonl", line.encode())}
        answer = http.post("/v1/files", data={"purpose": "batch"}, files=files)
        assert answer.status_code == 200, answer.text
        assert http.delete(f"/v1/files/{answer.json()['id']}").status_code == 200
    assert "uploads" in recorder.prefixes("put")
    assert "uploads" in recorder.prefixes("delete")
    assert recorder.denied(Template().role("FacadeRole")) == []
    assert (
        recorder.denied(Template().role("ProducerRole")) != []
    )  # it is not given what only the server needs


async def test_a_trainer_may_do_what_it_does(tmp_path: Path) -> None:
    """The protocol on the trainings' prefixes, checkpoints that come and go, and the published product."""
    store = MemoryStore()
    recorder = Recorder(store)
    bench = Bench(TrainingStore(recorder))
    dead, alive = bench.session("dead"), bench.session("alive")
    await store.put("trainings/cat.json", BODY)
    source = (await bench.store.get("requests/cat.json")).info
    assert await dead.take(source, BODY, id="cat", plan={}) is not None
    [held] = await bench.sweep_after_lease(alive)
    await alive.beat()
    await bench.store.put(layout.status_key("cat"), b"{}")
    (tmp_path / "checkpoint.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0")
    name = f"{saved.folder_of('cat')}checkpoints/000000001.000001/"
    await saved.save_folder(recorder, tmp_path, name, last="checkpoint.json")
    await saved.load_folder(recorder, name, tmp_path / "again")
    await saved.delete_checkpoints(recorder, "cat")
    await publish(recorder, tmp_path, PublishedCard(name="cat", version=1, kind="full"))
    assert await alive.commit(held, success(held, [await paint(alive, held, 0)]))
    await alive.retire()
    assert "models" in recorder.prefixes("create_file")
    role = Template().role("TrainerRole")
    assert recorder.denied(role) == []


KEYS = [
    f"{prefix}x"
    for prefix in (
        *(layout.REQUESTS, layout.CLAIMS, layout.WORKERS, layout.STATUS, layout.RESULTS, layout.MODELS),
        *(layout.UPLOADS, layout.TRAININGS, layout.TRAINING_CLAIMS, layout.TRAINING_RESULTS),
        *(layout.TRAINING_STATUS, layout.TRAINERS),
    )
]


@pytest.mark.parametrize("role", ["WorkerRole", "TrainerRole", "FacadeRole", "ProducerRole"])
def test_nobody_may_remove_results_or_models(role: str) -> None:
    """Only an operator's own credentials can, such as for `dreamdrop clean`."""
    statements = Template().role(role)
    for key in (
        "results/a/result.json",
        "results/a/0.png",
        "models/a/1/card.json",
        "training-results/a/result.json",
    ):
        assert not allows(statements, "s3:DeleteObject", f"arn:aws:s3:::{BUCKET}/{key}"), key


def test_workers_and_trainers_do_not_meet() -> None:
    """Neither can write what the other one decides by, nor anybody's models but a trainer."""
    template = Template()

    def may(role: str, action: str) -> set[str]:
        statements = template.role(role)
        return {key[:-1] for key in KEYS if allows(statements, action, f"arn:aws:s3:::{BUCKET}/{key}")}

    assert may("WorkerRole", "s3:PutObject") == {"requests/", "claims/", "workers/", "status/", "results/"}
    assert may("TrainerRole", "s3:PutObject") == {
        "training-claims/", "training-status/", "training-results/", "trainers/", "models/",
    }  # fmt: skip
    assert may("ProducerRole", "s3:PutObject") == {"requests/", "trainings/", "uploads/"}
    assert may("FacadeRole", "s3:DeleteObject") == {"requests/", "trainings/"}


def test_the_bucket_itself_keeps_write_once() -> None:
    """What the protocol only creates cannot be written without a condition, and nothing travels in the clear."""
    tls, once = Template().properties("BucketPolicy")["PolicyDocument"]["Statement"]
    assert tls["Condition"] == {"Bool": {"aws:SecureTransport": False}}
    protected = {pattern.split("/")[1] for pattern in once["Resource"]}
    assert protected == {"claims", "results", "models", "training-claims", "training-results"}
    assert once["Effect"] == "Deny"
    assert once["Condition"]["Null"] == {"s3:if-none-match": True}
    assert not any(fnmatch.fnmatch("arn:aws:s3:::pictures/status/a.json", p) for p in once["Resource"])
