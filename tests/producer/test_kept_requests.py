"""A long request is kept beside its result, once and whole: the result stays short, and repeats are exact."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from infra.claims import kept_request
from infra.claims.claim import Claim
from infra.claims.claims import Claims, Timing
from infra.stores.directory.store import DirectoryStore
from infra.stores.memory import MemoryStore
from producer import AsyncClient
from producer.errors import NothingToRetry
from schemas import layout
from schemas.result import Frozen, Result
from tests.producer.facade import facade
from tests.worker_process import result as ended
from tests.worker_process import worker

pytestmark = pytest.mark.anyio


def picture() -> str:
    """A PNG of noise, in base64: some 200 KB."""
    buffer = io.BytesIO()
    Image.effect_noise((384, 384), 90).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def body(**fields: Any) -> bytes:
    return json.dumps({"prompt": "a cat", "image": picture(), "steps": 2, **fields}).encode()


def test_a_result_does_not_repeat_a_picture(tmp_path: Path):
    """result.json is short; the request is byte for byte beside it, and is what every reader gets."""
    sent = body()
    assert len(sent) > 100_000
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests/cat.json").write_bytes(sent)
    with worker(tmp_path):
        answer = ended(tmp_path, "cat")
    assert answer["status"] == "succeeded"
    assert (tmp_path / "results/cat/result.json").stat().st_size < 8_000
    assert (tmp_path / answer["request"]["key"]).read_bytes() == sent
    # An older reader, which knows no key, is told that this is only the beginning.
    assert answer["request"]["cut"] is True
    assert sent.decode().startswith(answer["request"]["text"])
    with facade(tmp_path) as address:
        assert httpx.get(f"{address}/jobs/cat/request").content == sent
        recipe = httpx.get(f"{address}/recipe/cat").json()
        assert recipe["image"] == json.loads(sent)["image"]
        assert recipe["seed"] == answer["parameters"]["seeds"][0]
        page = httpx.get(f"{address}/pictures/cat", headers={"Accept": "text/html"}).text
        assert "/recipe/cat" in page


async def test_what_failed_is_retried_byte_for_byte(tmp_path: Path):
    """Also what was canceled before any worker saw it."""
    sent = body(prompt="burn this")
    async with AsyncClient(tmp_path) as client:
        await client.submit(sent, id="failed")
        with worker(tmp_path, null={"fail_on": "burn"}):
            assert ended(tmp_path, "failed")["status"] == "failed"
        await client.submit(sent, id="canceled")
        await client.cancel("canceled")
        for id in ("failed", "canceled"):
            assert (tmp_path / f"results/{id}/result.json").stat().st_size < 8_000
            retry = await client.retry(id)
            assert retry.ticket is not None
            again = json.loads((tmp_path / retry.ticket.key).read_bytes())
            assert again["image"] == json.loads(sent)["image"]
        [kept] = (tmp_path / "results/failed").glob("request-*")
        kept.write_bytes(b"something else")
        await client.cancel("failed-r2")
        with pytest.raises(NothingToRetry, match="only the beginning of the request"):
            await client.retry("failed")


async def test_the_request_is_stored_before_the_result_and_short_ones_stay_inside():
    """A result never names a request that is not stored; the order holds however the request ends."""

    class Journal(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.created: list[str] = []

        async def create(self, key: str, body: bytes, **options: Any) -> bool:
            self.created.append(key)
            return await super().create(key, body, **options)

    for long in (True, False):
        store = Journal()
        sent = b'{"prompt": "%s"}' % (b"x" * (kept_request.INLINE if long else 10))
        claims = Claims(store, session="s", clock=lambda: 0.0, rng=random.Random(1), timing=Timing())
        held = await claims.take(None, sent, id="a", plan=None)
        assert held is not None
        await claims.commit(held, held.claim.ended("failed", None, worker="s"))
        names = [key.rpartition("/")[2][:8] for key in store.created]
        assert names == ["000001", "request-", "result.j"] if long else ["000001", "result.j"]
        result = Result.model_validate_json((await store.get("results/a/result.json")).body)
        assert (await kept_request.with_request(store, result)).request == Frozen.of(sent)


async def test_a_request_that_used_up_its_attempts_is_kept_too(tmp_path: Path):
    """A sweep ends it from the claim that dead workers left."""
    sent = b'{"prompt": "%s"}' % (b"x" * kept_request.INLINE)
    async with DirectoryStore(tmp_path, fsync=False) as store:
        claim = Claim(
            id="a", fingerprint=layout.fingerprint(sent), frozen=Frozen.of(sent), plan=None, session="dead",
            nonce="n", epoch=3, attempt=3,
        )  # fmt: skip
        await store.create(layout.claim_key("a", 3), claim.body())
        now = 0.0
        claims = Claims(store, session="s", clock=lambda: now, rng=random.Random(1), timing=Timing())
        await claims.sweep()
        now = 100.0
        await claims.sweep()
        result = await claims.result("a")
        assert result is not None
        assert len(result.to_json()) < 8_000
        assert (await kept_request.with_request(store, result)).request == Frozen.of(sent)


async def test_a_result_cannot_name_an_object_elsewhere():
    """A forged result must not make a reader fetch another's object."""
    store = MemoryStore()
    await store.create("uploads/secret", b"{}")
    forged = Frozen(text="", cut=True, key="uploads/secret")
    result = Result(id="a", status="failed", fingerprint=layout.fingerprint(b"{}"), request=forged)
    assert (await kept_request.with_request(store, result)).request == forged
