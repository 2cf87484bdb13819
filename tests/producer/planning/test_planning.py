"""Work, waiting work and measured times, put together as `dreamdrop estimate` does."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

import pytest
from PIL import Image

from consumer.renderer.protocol import DeviceCall
from consumer.speeds import Speeds as Measuring
from infra.claims.claims import Claims
from infra.models.cards import Cards
from infra.stores.memory import MemoryStore
from producer.input_files import Item
from producer.planning import pending
from producer.planning.estimate import Costing, estimate
from producer.planning.planner import Planner
from producer.planning.speeds import Speeds
from producer.planning.work import Piece, Work
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.models import Move, PublishedCard, card_key, current_key
from schemas.result import Progress, Result, utc_now

pytestmark = pytest.mark.anyio


def beat(**facts: Any) -> dict[str, Any]:
    """A heartbeat of a worker that serves the built-in models."""
    cards = Cards.of()
    return {"models": cards.known(), "defaults": cards.defaults(), "default_model": "doodle", **facts}


def planner(store: MemoryStore | None = None, *beats: dict[str, Any], model: str | None = None) -> Planner:
    return Planner(store or MemoryStore(), beats, model, Limits())


def body(**fields: Any) -> bytes:
    return json.dumps({"prompt": "a red circle", **fields}).encode()


async def planned(one: Planner, **fields: Any) -> Piece:
    return await one.body(body(**fields))


async def test_what_a_request_leaves_open_is_filled_in_as_workers_say():
    """Steps, guidance and size come from the heartbeat; the documented numbers hold for other models."""
    mine = {
        "steps": 9,
        "cfg_scale": 0.0,
        "scheduler": "Euler",
        "width": 256,
        "height": 320,
        "size_multiple": 8,
    }
    known = beat(models=["mine", "doodle"], default_model="mine")
    known["defaults"] = known["defaults"] | {"mine": mine}
    one = planner(None, known)
    assert await planned(one, number_of_images=3) == Piece("mine", 256 * 320, 3, 9, 1)
    assert await planned(one, model="doodle") == Piece("doodle", 128 * 128, 1, 20, 2)
    assert await planned(one, model="sd15", width=512, height=256) == Piece("sd15", 512 * 256, 1, 31, 2)
    assert await planned(one, model="doodle", steps=4, cfg_scale=1) == Piece("doodle", 128 * 128, 1, 4, 1)


async def test_both_passes_are_counted():
    """An enlarged picture at its own size; a refiner with the steps that it draws. A picture is one image still."""
    one = planner(None, beat())
    larger = Piece("doodle", 256 * 256, 2, 10, 2)
    found = await planned(one, model="doodle", number_of_images=2, upscale={"scale": 2, "strength": 0.5})
    assert found == Piece("doodle", 128 * 128, 2, 20, 2, larger)
    refined = await planned(one, model="doodle", steps=10, refiner={"model": "sd15", "at": 0.8})
    assert refined == Piece("doodle", 128 * 128, 1, 8, 2, Piece("sd15", 128 * 128, 1, 2, 2))
    work = Work()
    work.add(found)
    assert (work.images(), work.row_steps()) == (2, 2 * 2 * 30)
    assert {kind: of_kind.row_steps() for kind, of_kind in work.kinds()} == {
        ("doodle", 128 * 128): 80,
        ("doodle", 256 * 256): 40,
    }
    for wrong, field in (
        ({"upscale": {"scale": 1.3}}, "upscale.scale"),
        ({"refiner": {"model": "x"}}, "refiner.model"),
    ):
        with pytest.raises(Rejected) as refused:
            await planned(one, model="doodle", **wrong)
        assert refused.value.field == field


async def test_a_picture_says_its_own_size():
    """Its header is read; what lies in the bucket counts at the model's own size, and is told."""
    one = planner(None, beat())
    assert await planned(one, image=picture(101, 203), strength=0.5) == Piece("doodle", 96 * 200, 1, 10, 2)
    assert one.unknown_sizes == 0
    assert (await planned(one, image="uploads/a.png")).pixels == 128 * 128
    assert one.unknown_sizes == 1


async def test_an_edit_draws_all_of_its_steps():
    """It has no strength, whose default would leave a fifth of them out."""
    one = planner(None, beat())
    edit = await planned(one, model="flux-kontext", image=picture(64, 64), steps=10)
    redrawn = await planned(one, model="doodle", image=picture(64, 64), steps=10)
    assert (edit.calls, redrawn.calls) == (10, 8)


async def publish(store: MemoryStore, name: str, **facts: Any) -> None:
    await store.put(card_key(name, 1), PublishedCard(name=name, version=1, **facts).to_json())
    await store.put(current_key(name, 1), Move(version=1, at=utc_now()).model_dump_json().encode())


async def test_what_a_published_card_leaves_open_is_its_bases():
    """As a worker fills it: a trained model has the steps, guidance and sampler of its base, if that is known."""
    store = MemoryStore()
    await publish(store, "dog", kind="full", base="doodle", native_width=256, native_height=128)
    await publish(
        store, "fast", kind="full", base="doodle", steps=4, cfg_scale=0, native_width=64, native_height=64
    )
    await publish(store, "stranger", kind="full", base="nosuch", native_width=64, native_height=64)
    await publish(store, "ink", kind="lora", base="dog")
    one = planner(store, beat())
    assert await planned(one, model="dog") == Piece("dog@1", 256 * 128, 1, 20, 2)
    assert await planned(one, model="fast") == Piece("fast@1", 64 * 64, 1, 4, 1)
    assert await planned(one, model="stranger") == Piece("stranger@1", 64 * 64, 1, 30, 2)
    assert await planned(one, model="ink") == Piece("dog@1", 256 * 128, 1, 20, 2)


async def test_a_lora_of_a_lora_is_refused():
    """As a worker does, also where two have each other as their base."""
    store = MemoryStore()
    await publish(store, "a", kind="lora", base="b")
    await publish(store, "b", kind="lora", base="a")
    with pytest.raises(Rejected, match="a@1, a LoRA whose base 'b' is a LoRA itself"):
        await planned(planner(store, beat()), model="a")


def picture(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"image": picture(4, 40)}, "image", "is 4 x 40; at least 8 x 8 pixels"),
        ({"model": "nosuch"}, "model", "no model named 'nosuch'; known are doodle, flux-dev, "),
        ({"width": 2048, "height": 2048}, "width", "2048"),
        ({"image": "uploads/a.png", "strength": 0.01}, "strength", "leaves none of 20 steps"),
        ({"scheduler": "LCM", "steps": 51}, "steps", "at most 50"),
    ],
)
async def test_what_no_worker_can_draw_is_refused_with_its_row(fields, field, words):
    """With the field, as a worker refuses it; of a batch with the line."""
    rows = body() + b"\n\n" + body(**fields) + b"\n"
    with pytest.raises(Rejected, match=r"^line 3: ") as refused:
        await planner(None, beat()).item(Item("a.jsonl", True, rows, None))
    assert words in str(refused.value)
    assert (refused.value.field, refused.value.line) == (field, 3)


async def test_without_a_worker_the_model_must_be_named():
    """Which model draws what names none is the workers' to say."""
    with pytest.raises(Rejected, match="--model"):
        await planned(planner())
    assert (await planned(planner(model="sd21"))).pixels == 768 * 768


@pytest.mark.parametrize("models", [None, 3, "doodle", {"doodle": 1}, [3, None, ["doodle"]]])
async def test_a_strange_heartbeat_announces_no_model(models):
    """Whatever stands in the place of its models, the built-in ones are known."""
    one = planner(None, beat(models=models, default_model=["doodle"]), beat())
    assert (await planned(one)).model == "doodle"
    with pytest.raises(Rejected, match="no model named"):
        await planned(one, model="nosuch")


async def test_what_waits_is_counted_by_lane():
    """Requests, rows of batches, and what is left of claims; not what has ended, nor what cannot be drawn."""
    store = MemoryStore()
    claims = Claims(store, session="w", clock=lambda: 0.0, rng=random.Random(1))
    one = planner(store, beat())
    await store.put("requests/a.json", body(steps=10))
    await store.put("requests/express/b.json", body(steps=10, number_of_images=2))
    await store.put("requests/c.jsonl", body(steps=5) + b"\n" + body(steps=5) + b"\nnot JSON\n")
    await store.put("requests/broken.json", b"{")
    plan = {
        "task": "text2img",
        "prompt": "x",
        "negative_prompt": None,
        "model": "doodle",
        "model_revision": "3",
    }
    plan |= {
        "width": 128,
        "height": 128,
        "steps": 40,
        "cfg_scale": 1.0,
        "scheduler": "DDIM",
        "strength": None,
    }
    plan |= {"clip_skip": None, "loras": [], "seeds": [1], "output": {"format": "png"}}
    for id in ("half", "ended"):
        await store.put(f"requests/{id}.json", body(steps=40))
        info = await store.head(f"requests/{id}.json")
        assert await claims.take(info, body(steps=40), id=id, plan=plan) is not None
    progress = Progress(id="half", steps_done=30, steps_total=40)
    await store.put("status/half.json", progress.model_dump_json().encode())
    held = claims._ledger.held["ended"].claim
    result = Result(id="ended", status="failed", fingerprint=held.fingerprint, request=held.frozen)
    await store.create("results/ended/result.json", result.to_json())

    found = await pending.pending(store, one)
    assert found.lanes[True].row_steps() == 2 * 10 * 2
    assert found.lanes[False].row_steps() == 10 * 2 + 2 * 5 * 2 + 10
    assert (found.listed, found.read) == (6, 6)


async def test_many_that_wait_are_counted_by_a_sample(monkeypatch: pytest.MonkeyPatch):
    """A hundred thousand files are not read one by one: some are, spread over all, and the rest count like them."""
    monkeypatch.setattr(pending, "READ", 10)
    store = MemoryStore()
    for number in range(95):
        await store.put(f"requests/{number:03}.json", body(steps=10 + number % 2))
    found = await pending.pending(store, planner(store, beat()))
    assert (found.listed, found.read) == (95, 10)
    assert found.lanes[False].row_steps() == pytest.approx(95 * 21, rel=0.05)


def measured(
    milliseconds: float, *, pixels: int = 128 * 128, rows: int = 2, devices: int = 1
) -> dict[str, Any]:
    """The heartbeat of a worker that has made calls of so many rows, each row in so many milliseconds."""
    speeds = Measuring()
    for _ in range(3):
        speeds.called(DeviceCall("unet", "doodle", pixels, rows, 16, 0.0, milliseconds * rows / 1000))
        speeds.called(DeviceCall("decode", "doodle", pixels, 1, 16, 0.0, 0.05))
    return beat(speeds=speeds.facts(), devices=["cpu"] * devices)


async def work(count: int = 10, **fields: Any) -> Work:
    whole = Work()
    whole.add(await planned(planner(None, beat()), **fields), count)
    return whole


async def test_the_time_of_a_device_is_rows_and_images():
    """10 images of 20 steps with guidance, 3 ms a row, 50 ms an image."""
    costing = Costing(Speeds.read([measured(3)]), devices=1)
    assert costing.seconds(await work()) == pytest.approx(10 * (20 * 2 * 0.003 + 0.05))


async def test_workers_of_different_speed_share_the_work():
    """Rates add up, so the mean time of a row is the harmonic one, by devices; the slow one counts for less."""
    speeds = Speeds.read([measured(1, devices=3), measured(4)])
    assert speeds.devices == 4
    found = speeds.find("doodle", 128 * 128, 2)
    assert found is not None
    assert found.row_ms == pytest.approx(4 / (3 / 1 + 1 / 4))
    assert found.workers == 2


async def test_the_fullest_calls_that_the_work_can_fill_count():
    """A single image is drawn in calls of 2 rows, a hundred in full ones; another size is scaled by its pixels."""
    both = beat(speeds=measured(5, rows=2)["speeds"] + measured(2, rows=16)["speeds"])
    both["speeds"][0]["row_ms"] |= both["speeds"].pop()["row_ms"]
    speeds = Speeds.read([both])

    def row(pixels: int, rows: int) -> float:
        found = speeds.find("doodle", pixels, rows)
        assert found is not None
        return found.row_ms

    assert (row(128 * 128, 2), row(128 * 128, 100)) == (pytest.approx(5), pytest.approx(2))
    assert row(256 * 256, 100) == pytest.approx(8)
    assert speeds.find("sd21", 128 * 128, 2) is None


async def test_the_finish_depends_on_the_lane():
    """Normal requests wait for all; express ones for their lane, at three quarters of the devices."""
    costing = Costing(Speeds.read([measured(1)]), devices=2)
    own = await work(100)
    seconds = costing.seconds(own)
    waiting = {True: await work(10), False: await work(1000)}
    found = estimate(own, waiting, costing)
    assert found.finish[False] == pytest.approx(seconds * (1 + 0.1 + 10) / 2)
    assert found.finish[True] == pytest.approx(seconds * 1.1 / 0.75 / 2)
    alone = estimate(own, {True: Work(), False: Work()}, costing)
    assert alone.finish[True] == alone.finish[False] == pytest.approx(seconds / 2)


async def test_more_devices_do_not_make_one_image_faster():
    """A lone image takes its own steps, however many devices there are."""
    costing = Costing(Speeds.read([measured(1)]), devices=1000)
    found = estimate(await work(1), {True: Work(), False: Work()}, costing)
    assert found.finish[False] == pytest.approx(0.04 + 0.05)


async def test_a_step_that_the_caller_gives_stands_for_a_measurement():
    """Milliseconds of a step with guidance at the model's own size: half for a row, in proportion for another size."""
    costing = Costing(Speeds(), 1, step_ms=100, natives={"doodle": 128 * 128})
    assert costing.seconds(await work(1)) == pytest.approx(20 * 0.1)
    assert costing.seconds(await work(1, width=256, height=128, cfg_scale=1)) == pytest.approx(20 * 0.1)
    assert Costing(Speeds(), 1).unmeasured(await work(1)) == ["doodle"]


@pytest.mark.parametrize(
    "told",
    [None, 3, {}, [None], [{"model": "doodle"}], [{"model": "doodle", "pixels": 0, "row_ms": {"2": 1}}],
     [{"model": "doodle", "pixels": 9, "row_ms": {"2": -1, "x": 1, "0": 1, "4": "fast", "8": True}}]],
)  # fmt: skip
async def test_a_strange_heartbeat_measures_nothing(told):
    """Whatever another version or a stranger wrote is left out."""
    assert Speeds.read([{"speeds": told, "devices": told}]).models == {}
