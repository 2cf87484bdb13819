"""Files that are still being written are waited for; files that are wrong are answered at once."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from consumer.intake.claiming import RequestClaimer
from infra.claims.claims import Claims
from infra.models.cards import Cards
from infra.stores.memory import MemoryStore
from infra.stores.open import open_store
from infra.stores.store import Store
from producer import AsyncClient
from schemas.limits import Limits
from tests.worker_inside import make_worker, running
from tests.worker_process import result, worker

pytestmark = pytest.mark.anyio


def claimer(store: Store) -> RequestClaimer:
    rng = random.Random(1)
    claims = Claims(store, session="one", clock=time.monotonic, rng=rng)
    return RequestClaimer(store, claims, Cards.of(), "doodle", Limits(), time.monotonic, rng)


ROW = {"prompt": "a red circle", "steps": 2, "width": 8, "height": 8}


def test_a_batch_that_is_copied_slowly_is_drawn_whole(tmp_path: Path):
    """A program writes row after row, with pauses: every row is drawn, once."""
    (tmp_path / "requests").mkdir()
    with worker(tmp_path), (tmp_path / "requests" / "slow.jsonl").open("w") as file:
        for number in range(6):
            file.write(json.dumps(ROW | {"custom_id": f"r{number}"}) + "\n")
            file.flush()
            time.sleep(0.7)
        file.close()
        ended = result(tmp_path, "slow", timeout=120)

    assert (ended["batch"]["counts"]["total"], ended["batch"]["counts"]["succeeded"]) == (6, 6)
    assert not list((tmp_path / "results").glob("slow~*"))


def test_a_manifest_that_pauses_in_the_middle_becomes_one_result(tmp_path: Path):
    """The first half of a document is not answered while its program still has the file open."""
    body = json.dumps(ROW)
    (tmp_path / "requests").mkdir()
    with worker(tmp_path), (tmp_path / "requests" / "cat.json").open("w") as file:
        for part in (body[:20], body[20:]):
            file.write(part)
            file.flush()
            time.sleep(4)
        file.close()
        ended = result(tmp_path, "cat", timeout=120)

    assert ended["status"] == "succeeded"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["cat"]


@pytest.mark.parametrize("text", ['{"prompt": "a red', '{"prompt": "a red circle"}\n{"prompt'])
async def test_a_file_that_nobody_writes_any_more_is_answered(tmp_path: Path, text: str):
    """A copy that broke off, or an editor that died: after two seconds without a change it is over."""
    (tmp_path / "requests").mkdir()
    name = "cat.jsonl" if "\n" in text else "cat.json"
    (tmp_path / "requests" / name).write_text(text)
    async with open_store(str(tmp_path)) as store, AsyncClient(store) as client, running(make_worker(store)):
        ended = await client.wait("cat", timeout=120)

    assert ended.status in ("failed", "partial")


async def test_wrong_json_in_a_directory_is_answered_at_the_first_look(tmp_path: Path):
    """More text could not mend it."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "cat.json").write_text("{'prompt': 'a red circle'}")
    async with open_store(str(tmp_path)) as store:
        listed = await store.head("requests/cat.json")
        outcome = await claimer(store).claim_object(listed)

    assert not outcome.settling
    assert outcome.held is not None


async def test_half_a_document_in_a_bucket_is_answered_at_the_first_look():
    """An object in a bucket is whole: there will never be more of it."""
    store = MemoryStore()
    await store.create("requests/cat.json", b'{"prompt": "a red')
    outcome = await claimer(store).claim_object(await store.head("requests/cat.json"))

    assert not outcome.settling
    assert outcome.held is not None
