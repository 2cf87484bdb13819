"""A store with trainings in every state, made through the protocol as trainers use it."""

from __future__ import annotations

import io
import json
import random
import time
from pathlib import Path
from typing import Any

from PIL import Image

from infra.claims.claims import Claims, Held
from infra.claims.trainings import TrainingStore
from infra.stores.open import open_store
from infra.stores.store import Store
from producer.canceling import cancel
from schemas.layout import TRAININGS, request_key, result_folder, status_key
from schemas.limits import Limits
from schemas.result import Failure, ModelUsed, Result
from schemas.training import TrainingProgress

MANIFEST = {
    "name": "my-dog",
    "base": "sd21",
    "instance_prompt": "a photo of sks dog",
    "archive": "uploads/a.zip",
}
REPORT = b"<!doctype html><title>my-dog</title><style>h1{color:red}</style><h1>Report of my-dog</h1>"


def drop(store: Path, id: str, /, **fields: Any) -> bytes:
    """Drop a training as people do: by a file."""
    body = json.dumps(MANIFEST | fields).encode()
    path = store / TRAININGS / f"{id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return body


class FakeTrainer:
    """A trainer's part of the protocol, without a model."""

    def __init__(self, store: Store, session: str = "trainer-1") -> None:
        self.view = TrainingStore(store)
        rng = random.Random(1)
        self.claims = Claims(self.view, session=session, clock=time.monotonic, rng=rng)

    async def take(self, id: str) -> Held:
        """Claim a dropped training."""
        stored = await self.view.get(request_key(id))
        held = await self.claims.take(stored.info, stored.body, id=id, plan={"task": "train"})
        assert held is not None
        return held

    async def report(self, id: str, step: int, **facts: Any) -> None:
        """Write the status of a training."""
        known = {"phase": "training", "steps_done": step, "steps_total": 400, "loss": 0.125, "eta": 5400.0}
        progress = TrainingProgress(id=id, worker=self.claims.session, **(known | facts))
        await self.view.put(status_key(id), progress.model_dump_json().encode())

    async def draw(self, id: str, *steps: int) -> None:
        """Store validation pictures, one a step."""
        folder = result_folder(id) + "validation/"
        await self.view.create(folder + "prompts.json", json.dumps(["a photo of <b>sks</b> dog"]).encode())
        for step in steps:
            out = io.BytesIO()
            Image.new("RGB", (64, 64), (step % 256, 80, 200)).save(out, "PNG")
            await self.view.create(f"{folder}{step:06d}/0.png", out.getvalue())

    async def publish(self, held: Held) -> None:
        """End a training well: its report, then its result."""
        await self.view.create(result_folder(held.claim.id) + "report.html", REPORT)
        result = Result.ended(
            held.claim.id, "succeeded", None,
            request=held.claim.frozen, fingerprint=held.claim.fingerprint, task="train",
            parameters={"steps": 400, "rank": 8, "flip": False}, model=ModelUsed(name="my-dog", revision="2"),
            versions={}, worker=self.claims.session, attempts=1, metadata={},
        )  # fmt: skip
        assert await self.claims.commit(held, result)

    async def fail(self, held: Held, message: str) -> None:
        """End a training badly."""
        failure = Failure(code="invalid_manifest", message=message, field="base")
        result = held.claim.ended("failed", failure, worker=self.claims.session, task="train", metadata={})
        assert await self.claims.commit(held, result)


async def every_state(store: Path) -> None:
    """Trainings `waiting`, `running`, `done`, `broken` and `unwanted`, and a trainer that is alive."""
    for id in ("running", "done", "broken", "unwanted", "waiting"):
        drop(store, id)
    async with open_store(str(store)) as opened:
        trainer = FakeTrainer(opened)
        await trainer.claims.beat({"state": "training", "training": "running"})
        await trainer.take("running")
        await trainer.report("running", 40)
        await trainer.draw("running", 0, 40)
        done = await trainer.take("done")
        await trainer.draw("done", 0, 200, 400)
        await trainer.publish(done)
        await trainer.fail(await trainer.take("broken"), "base names 'nothing', which is no model here")
        await cancel(trainer.view, "unwanted", Limits())
