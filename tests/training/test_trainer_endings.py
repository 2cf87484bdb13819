"""How attempts at a training end that come to nothing, in this process: stopped, hung, cancelled while publishing."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.claims.trainings import TrainingStore
from infra.models import published
from infra.stores.memory import MemoryStore
from producer.canceling import cancel
from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.limits import Limits
from schemas.training import parse_training
from tests.training.test_trainer_inputs import BODY, trainer_on
from tests.trainings import specks
from training.lease.base_models import FetchedBase
from training.lease.job import STOP, Job, Unwanted

pytestmark = pytest.mark.anyio

STOP_KEY = f"training-results/a/{STOP}"
FETCHED = "training-results/a/frozen.json"  # created when all inputs are there


class Interfering(MemoryStore):
    """A store in which something happens when an object is created, and in which transfers may hang."""

    def __init__(self, at: str = "", hangs: str = "") -> None:
        super().__init__()
        self.at, self.hangs = at, hangs
        self.models: list[str] = []

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        if self.at and key.endswith(self.at):
            self.at = ""
            await super().create(STOP_KEY, b"{}")
        return await super().create(key, body, metadata=metadata, content_type=content_type)

    async def create_file(self, key: str, path: Path, **options: Any) -> bool:
        if self.hangs and key.startswith(self.hangs):
            await asyncio.Event().wait()
        if key.startswith("models/"):
            self.models.append(key)
            if len(self.models) == 1:
                await cancel(TrainingStore(self), "a", Limits())
        return await super().create_file(key, path, **options)

    async def fetch_file(self, key: str, path: Path, **options: Any) -> str:
        if self.hangs and key.startswith(self.hangs):
            await asyncio.Event().wait()
        return await super().fetch_file(key, path, **options)


async def ended(store: MemoryStore, work: Path, patience: float = 60.0) -> dict[str, Any]:
    trainer = trainer_on(store, work, patience)
    async with asyncio.timeout(300):
        await trainer.run()
    assert not trainer.failed
    result: dict[str, Any] = json.loads((await store.get("training-results/a/result.json")).body)
    return result


async def drop(store: MemoryStore, folder: Path, **fields: Any) -> None:
    shown = specks(folder, 3)
    pictures = [
        {"image": base64.b64encode(file.read_bytes()).decode(), "name": file.name}
        for file in sorted(shown.glob("*.png"))
    ]
    body = {**BODY, "pictures": pictures, "resolution": 32, "steps": 100_000, "validate": [], **fields}
    await store.create("trainings/a.json", json.dumps(body).encode())


@pytest.mark.parametrize("at", ["while it waits", "while its process starts"])
async def test_stopping_before_the_first_step_keeps_nothing_and_says_so(at: str, tmp_path: Path):
    """It is what the client asked for, so it is no failure, and no attempt is lost to it."""
    store = Interfering(at=FETCHED if "process" in at else "")
    await drop(store, tmp_path / "shown")
    if at == "while it waits":
        await store.create(STOP_KEY, b"{}")
    result = await ended(store, tmp_path / "work")
    assert (result["status"], result["attempts"]) == ("canceled", 1)
    assert "before its first step" in result["failure"]["message"]
    assert "no model is published" in result["failure"]["message"]
    assert (await store.head(FETCHED) is None) == (at == "while it waits")  # then nothing is fetched either
    assert not [info.key async for info in store.list("training-claims/")]


async def test_a_transfer_that_hangs_is_given_back(tmp_path: Path):
    """The trainer lives on and beats, so nobody else would ever take over what hangs in it."""
    store = Interfering(hangs="uploads/")
    await store.create("uploads/photos.zip", b"never read")
    await drop(store, tmp_path / "shown", pictures=[], archive="uploads/photos.zip")
    result = await ended(store, tmp_path / "work", patience=0.3)
    assert (result["status"], result["failure"]["code"]) == ("failed", "worker_crashed")
    assert "no progress" in result["failure"]["message"]
    assert "phase: fetching" in result["failure"]["message"]


async def held_job(store: MemoryStore, folder: Path) -> Job:
    """A claimed training whose product is ready."""
    await drop(store, folder / "shown")
    trainer, view = trainer_on(store, folder), TrainingStore(store)
    info = await view.head(layout.request_key("a"))
    assert info is not None
    body = (await view.get(info.key)).body
    held = await trainer.claims.take(info, body, id="a", plan={"task": "train"})
    assert held is not None
    work = folder / "work"
    (work / "product").mkdir(parents=True)
    (work / "product" / "weights.safetensors").write_bytes(b"12345678")
    for name in ("loss.jsonl", "report.html"):
        (work / name).write_text("x")
    facts = {"name": "new", "kind": "lora", "base": {"name": "doodle", "config_sha256": "1"}, "family": "doodle",
             "prediction_type": "v_prediction", "resolution": 128, "trigger_words": [], "instance_prompt": "sks",
             "weight": 1.0, "steps": 5, "loss": 0.5, "options": {}, "pictures": [], "versions": {}}  # fmt: skip
    (work / "product.json").write_text(json.dumps(facts))
    job = Job(held, trainer.claims, view, trainer._inputs, work, "me", versions={})
    job._base = FetchedBase(folder, "doodle", "")
    return job


async def test_a_cancellation_while_files_are_published_leaves_no_model(tmp_path: Path):
    """Seconds before the end, too: whether it is still wanted is asked when only the card is missing."""
    store = Interfering()
    job = await held_job(store, tmp_path)
    with pytest.raises(Unwanted):
        await job._publish(parse_training(job.held.claim.frozen.body()))
    assert len(store.models) == 2  # weights and README were on their way
    assert await published.list_models(store) == []
    assert json.loads((await store.get("training-results/a/result.json")).body)["status"] == "canceled"


class AwayAtTheEnd(MemoryStore):
    """A store that is away for three tries when the result is created, for longer than any patience."""

    job: Job
    seen: list[float]  # when there was progress last, at each try

    async def create(self, key: str, body: bytes, **options: Any) -> bool:
        if key == "training-results/a/result.json" and len(self.seen) < 3:
            self.seen.append(self.job.pulse.at)
            raise StoreUnavailable("it is away")
        return await super().create(key, body, **options)


async def test_a_published_model_is_not_given_back_for_a_store_that_is_away(tmp_path: Path):
    """That is waited for, so it is no hang: the last attempt would end as failed beside its model."""
    store = AwayAtTheEnd()
    store.seen = []
    store.job = job = await held_job(store, tmp_path)
    job.pulse.at = float("-inf")
    await job._publish(parse_training(job.held.claim.frozen.body()))
    assert len(store.seen) == 3
    assert float("-inf") not in store.seen
    assert json.loads((await store.get("training-results/a/result.json")).body)["status"] == "succeeded"


async def test_publishing_that_hangs_is_given_back(tmp_path: Path):
    store = Interfering(hangs="models/")
    job = await held_job(store, tmp_path)
    job._run = lambda: job._publish(parse_training(job.held.claim.frozen.body()))  # type: ignore[method-assign]
    attempt = asyncio.create_task(job.run())
    while await store.head("training-results/a/report.html") is None:
        await asyncio.sleep(0.01)
    await job.hang()
    assert await attempt == "released"
    release = json.loads((await store.get("training-claims/a/000001.released")).body)
    assert (release["reason"], release["failure"]["code"]) == ("retry", "worker_crashed")
    assert "phase: publishing" in release["failure"]["message"]


async def test_class_pictures_are_stored_while_they_are_drawn(tmp_path: Path):
    """A trainer that is killed among 300 of them has not drawn its first ones in vain."""
    store = Interfering()
    job = await held_job(store, tmp_path)
    folder = tmp_path / "work" / "class"
    folder.mkdir()
    for name in ("00000.png", "00000.json", "00001.png"):  # the last one is only half there
        (folder / name).write_bytes(name.encode())
    event = {
        "event": "class pictures",
        "done": 1,
        "count": 9,
        "files": ["class/00000.png", "class/00000.json"],
    }
    await job._on_report(event, parse_training(job.held.claim.frozen.body()))
    stored = [info.key async for info in store.list("training-results/a/class/")]
    assert stored == ["training-results/a/class/00000.json", "training-results/a/class/00000.png"]
