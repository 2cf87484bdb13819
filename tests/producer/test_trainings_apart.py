"""An ordinary worker on a store with trainings in every state neither takes nor ends one."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from infra.stores.open import open_store
from tests.producer.training_store import FakeTrainer, every_state
from tests.worker_process import drop, files, result, worker

LEASES = 3.0  # seconds; the worker's lease is 2 s, so it has swept and taken over what looks abandoned


def test_a_worker_leaves_trainings_alone(tmp_path: Path):
    """It draws its requests, before and after it has swept; every object of a training stays as it was.

    Also a training whose trainer is dead, one that was given back, and one whose id a request has.
    """

    async def prepare() -> None:
        await every_state(tmp_path)
        async with open_store(str(tmp_path)) as opened:
            for id in ("given-back", "twin"):
                (tmp_path / "trainings" / f"{id}.json").write_bytes(
                    (tmp_path / "trainings" / "waiting.json").read_bytes()
                )
            trainer = FakeTrainer(opened, "trainer-2")
            await trainer.claims.release(await trainer.take("given-back"), "drain")
            await trainer.take("twin")

    asyncio.run(prepare())
    before = objects(tmp_path)
    with worker(tmp_path):
        drop(tmp_path, "first.json", {"prompt": "a red circle", "steps": 1})
        drop(tmp_path, "twin.json", {"prompt": "a red circle", "steps": 1})
        assert [result(tmp_path, id)["status"] for id in ("first", "twin")] == ["succeeded"] * 2
        time.sleep(LEASES)
        drop(tmp_path, "second.json", {"prompt": "a red circle", "steps": 1})
        assert result(tmp_path, "second")["status"] == "succeeded"
    assert objects(tmp_path) == before
    assert {json.loads(p.read_bytes())["id"] for p in files(tmp_path / "results", "result.json")} == {
        "first", "twin", "second",
    }  # fmt: skip


def objects(store: Path) -> dict[str, tuple[bytes, int]]:
    """All objects of trainings: their bytes and when they were written."""
    found = [
        path
        for top in ("trainings", "training-claims", "training-results", "training-status", "trainers")
        for path in files(store / top)
    ]
    return {
        path.relative_to(store).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in found
    }
