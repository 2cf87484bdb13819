"""How an image in flight looks: recognisable, seldom, and without a trace in the image itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import random
import secrets
import time
from typing import TYPE_CHECKING, Any

import boto3
import numpy as np
import pytest
from PIL import Image

from consumer.engine import preview
from consumer.engine.loading.registry import ModelRegistry
from consumer.jobs.job import Eta
from consumer.renderer import frames
from consumer.renderer.protocol import Complaint, Drawn, RawPicture, RendererSettings, Stepped
from infra.models.cards import Cards
from infra.queues.leases import MessageLeases
from infra.queues.sqs import Queue
from infra.stores.directory.store import DirectoryStore
from infra.stores.memory import MemoryStore
from schemas.errors import StoreUnavailable
from schemas.result import Progress, Result
from tests.worker_inside import make_worker, running, until
from tests.worker_process import files

if TYPE_CHECKING:
    from pathlib import Path


def drawn_with_and_without(registry, studio, tasks) -> tuple[dict[Any, Any], dict[Any, Any], list[Stepped]]:
    """What became of the same tasks with previews and without, and what was said on the way."""
    plain, watched = studio(registry), studio(registry, progress_every=0.0)
    without = plain.draw(*(one(preview=False) for one in tasks))
    with_previews = watched.draw(*(one(preview=True) for one in tasks))
    return without, with_previews, [event for event in watched.events if isinstance(event, Stepped)]


def test_pixels_are_the_same_with_and_without_previews(registry, studio, task, monkeypatch):
    """A mixed batch, with previews at every step: not one byte of any image differs."""
    monkeypatch.setattr(preview, "_EVERY", 0.0)
    kinds = ("text2img", "img2img", "inpainting")
    samplers = ("Euler a", "DDIM", "DPM++ 2M Karras", "UniPC", "Heun")
    tasks = [
        lambda kind=kind, sampler=sampler, i=i, **more: task(
            f"{kind} {sampler}", task=kind, scheduler=sampler, seed=i, cfg_scale=(1.0, 5.0)[i % 2], **more
        )
        for i, (kind, sampler) in enumerate((k, s) for k in kinds for s in samplers)
    ]
    without, with_previews, steps = drawn_with_and_without(registry, studio, tasks)

    assert len(with_previews) == 15
    assert all(isinstance(one, Drawn) for one in with_previews.values())
    assert {name: one.picture.data for name, one in with_previews.items()} == {
        name: one.picture.data for name, one in without.items()
    }
    assert {name for event in steps for name in event.previews} == with_previews.keys()


def test_nobody_is_shown_what_nobody_asked_for(registry, studio, task):
    """In one batch only the image whose task asks for it has previews."""
    room = studio(registry, progress_every=0.0)
    room.draw(task("watched", preview=True), task("quiet"))

    shown = {name for event in room.events if isinstance(event, Stepped) for name in event.previews}
    assert shown == {("watched", 0)}


def test_of_several_images_the_first_unfinished_is_shown_once_a_second(registry, studio, task):
    """A request of three images has one preview in its first second, of its first image."""
    now = [0.0]
    room = studio(registry, progress_every=0.0, clock=lambda: now[0])
    for index in range(3):
        room.engine.submit(task(index=index, steps=12, preview=True))
    shown = []
    while room.engine.step():
        now[0] += 0.25
        shown.append(list(room.events[-1].previews) if isinstance(room.events[-1], Stepped) else [])

    assert {name for names in shown for name in names} == {("r", 0)}
    assert 3 <= sum(map(len, shown)) <= 4  # text, twelve steps and the VAE's call in three and a half seconds


def test_a_preview_that_fails_costs_no_image(make_registry, studio, task, monkeypatch):
    """A model whose palette cannot be learned draws on, without previews; that is said once."""

    def broken(*_: Any) -> None:
        raise ValueError("a prompt, perhaps")

    monkeypatch.setattr(preview.Palette, "__init__", broken)
    room = studio(make_registry(), progress_every=0.0)
    ended = room.draw(task("a", preview=True), task("b", preview=True))

    assert all(isinstance(one, Drawn) for one in ended.values())
    assert not any(event.previews for event in room.events if isinstance(event, Stepped))
    (complaint,) = [event.text for event in room.events if isinstance(event, Complaint)]
    assert "ValueError" in complaint
    assert "prompt" not in complaint


def test_previews_show_what_will_be_drawn(studio, task, monkeypatch):
    """doodle's red circle on blue: in the second half of the steps, before any pixel exists."""
    monkeypatch.setattr(preview, "_EVERY", 0.0)
    monkeypatch.setattr(preview, "_SHARE", 1.0)
    size = {"width": 128, "height": 128, "model": "doodle", "scheduler": "Euler", "seed": 5, "steps": 16}
    room = studio(ModelRegistry(Cards.of([])), progress_every=0.0)
    room.draw(task(prompt="a red circle on a blue background", preview=True, cfg_scale=7.0, **size))
    looks = [p for event in room.events if isinstance(event, Stepped) for p in event.previews.values()]
    late = looks[len(looks) // 2 :]

    assert len(late) >= 4
    for one in late:
        pixels = np.frombuffer(one.data, np.uint8).reshape(one.height, one.width, 3).astype(int)
        middle = pixels[one.height // 2 - 2 : one.height // 2 + 2, one.width // 2 - 2 : one.width // 2 + 2]
        red, blue = middle.mean((0, 1)), pixels[:2, :2].mean((0, 1))
        assert red[0] > red[2] + 60
        assert blue[2] > blue[0] + 60


def test_previews_travel_between_child_and_parent():
    """Two pictures of different sizes arrive as they left."""
    sent = Stepped(
        {("a", 0): (1, 2)},
        {("a", 0): RawPicture(2, 1, 3, b"abcdef"), ("b", 4): RawPicture(1, 1, 3, b"xyz")},
    )

    assert frames.read(io.BytesIO(frames.pack(sent))) == sent


def test_the_time_that_remains_follows_the_pace():
    """Two seconds a step: unknown at the first, then falling, then never below zero; and anew after a loss."""
    eta = Eta()
    eta.saw(10.0, 1)
    assert eta.remains(10.0, 5) is None
    eta.saw(10.0, 2)  # of another image, in the same breath
    assert eta.remains(10.0, 6) is None
    eta.saw(12.0, 3)
    assert eta.remains(12.0, 6) == 6.0
    assert eta.remains(13.0, 6) == 5.0
    assert eta.remains(50.0, 6) == 0.0
    eta.saw(60.0, 1)
    assert eta.remains(60.0, 6) is None


# In a worker --------------------------------------------------------------------------------


class Watched(DirectoryStore):
    """A directory that remembers every status that was written, and may refuse them."""

    def __init__(self, root: Path, *, refuses: bool = False) -> None:
        super().__init__(root)
        self.statuses: list[Progress] = []
        self.refuses = refuses

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        if key.startswith("status/"):
            self.statuses.append(Progress.model_validate_json(body))
            if self.refuses:
                raise StoreUnavailable("no room for a status")
        await super().put(key, body, content_type=content_type)


async def drawn(store: Watched, key: str, body: bytes, **settings: Any) -> Result:
    """Let a worker draw one request."""
    await store.put(key, body)
    async with running(make_worker(store, **settings)):
        results = store.root / "results"
        await until(lambda: files(results, "result.json"), 300)
    (result,) = files(results, "result.json")
    return Result.model_validate_json(result.read_bytes())


def real(tiny_folder: Path) -> RendererSettings:
    return RendererSettings(models=(("tiny", str(tiny_folder)),), preload="tiny", max_rows=4)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("setting", "key", "shown"),
    [
        ("express", "requests/express/a.json", True),
        ("off", "requests/express/a.json", False),
        ("express", "requests/a.json", False),
        ("all", "requests/a.json", True),
    ],
)
async def test_a_status_shows_an_image_while_it_is_drawn(
    tmp_path: Path, tiny_folder: Path, setting: str, key: str, shown: bool
):
    """A real child with work for minutes: steps rise, the picture can be opened; given back, no status stays."""
    size = b'"width": 128, "height": 128, "steps": 100, "number_of_images": 60'
    child = RendererSettings(models=(("tiny", str(tiny_folder)),), preload="tiny", max_rows=4)
    cards = Cards.of([f"tiny={tiny_folder}"])
    async with Watched(tmp_path) as store:
        worker = make_worker(store, previews=setting, children=[child], cards=cards, grace=0.1)
        await store.put(key, b'{"prompt": "a dot", "model": "tiny", ' + size + b"}")
        async with running(worker):
            await until(lambda: len(store.statuses) >= 3, 300)
            await until(lambda: store.statuses[-1].steps_done > store.statuses[0].steps_done, 300)
            await until(lambda: not shown or store.statuses[-1].preview, 300)
            statuses = list(store.statuses)
        assert not list((tmp_path / "status").rglob("*.json"))

    done = [one.steps_done for one in statuses]
    assert done == sorted(done)
    assert done[-1] > done[0]
    assert {one.steps_total for one in statuses} == {6000}
    assert any(one.preview for one in statuses) == shown
    for text in (one.preview for one in statuses if one.preview):
        kind, _, data = text.partition(",")
        assert len(text) <= 6000
        assert kind == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 96


@pytest.mark.anyio
async def test_the_estimate_falls_as_steps_are_done(tmp_path: Path):
    """Forty even steps of the null renderer: unknown at first, then less and less."""
    async with Watched(tmp_path) as store:
        body = b'{"prompt": "a dot", "steps": 40}'
        await drawn(store, "requests/express/a.json", body, null={"seconds_per_step": 0.05})

    etas = [one.eta for one in store.statuses]
    known = [eta for eta in etas if eta is not None]
    assert etas[0] is None
    assert len(known) >= 2
    assert known[-1] < known[0]


@pytest.mark.anyio
async def test_a_status_that_cannot_be_stored_harms_nothing(tmp_path: Path):
    """Every put of a status fails; the request succeeds all the same."""
    async with Watched(tmp_path, refuses=True) as store:
        body = b'{"prompt": "a dot", "steps": 10}'
        result = await drawn(store, "requests/express/a.json", body, null={"seconds_per_step": 0.02})

    assert store.statuses
    assert result.status == "succeeded"


@pytest.mark.anyio
async def test_a_status_on_its_way_does_not_outlive_its_request(tmp_path: Path):
    """A put that takes longer than the drawing: what it leaves is removed again."""

    class Slow(Watched):
        async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
            if key.startswith("status/"):
                await asyncio.sleep(0.4)
            await super().put(key, body, content_type=content_type)

    async with Slow(tmp_path) as store:
        await drawn(
            store,
            "requests/express/a.json",
            b'{"prompt": "a dot", "steps": 4}',
            null={"seconds_per_step": 0.02},
        )

    assert store.statuses
    assert not list((tmp_path / "status").rglob("*.json"))


@pytest.mark.anyio
async def test_the_first_of_two_queues_is_the_express_lane(moto_url: str, monkeypatch: pytest.MonkeyPatch):
    """Somebody waits for what came by the first queue, and nobody for what came by the second or an only one."""
    for name, value in {"ENDPOINT_URL_SQS": moto_url, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("sqs", region_name="us-east-1")

    async def lanes(count: int) -> dict[str, bool]:
        """One request by each of so many queues: its id, and whether it is express."""
        async with contextlib.AsyncExitStack() as stack:
            queues = []
            for number in range(count):
                url = client.create_queue(QueueName=secrets.token_hex(6))["QueueUrl"]
                body = {"prompt": "a dot", "steps": 100, "id": f"queue{number}"}
                client.send_message(QueueUrl=url, MessageBody=json.dumps(body))
                queue = await stack.enter_async_context(Queue(url))
                queues.append(MessageLeases(queue, time.monotonic, random.Random(1)))
            worker = make_worker(MemoryStore(), null={"seconds_per_step": 0.1}, grace=0.1, queues=queues)
            async with running(worker):
                await until(lambda: len(worker.jobs.active) == count)
                return {id: job.express for id, job in worker.jobs.active.items()}

    assert await lanes(2) == {"queue0": True, "queue1": False}
    assert await lanes(1) == {"queue0": False}
