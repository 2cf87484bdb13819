"""What requests within all limits may cost a worker's memory, and a guilty picture its neighbours."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consumer.jobs.memory import Budget
from infra.stores.open import open_store
from schemas.limits import Limits
from tests.decoding import decoder_children, killed_decoders, many_scans
from tests.worker_inside import make_worker, running, until
from tests.worker_process import drop, files, result, worker

pytestmark = pytest.mark.anyio

MIB = 1 << 20
LARGE = ("--max-native-areas", "256")  # doodle at 2048 x 2048
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def file(mode: str, side: int, kind: str) -> str:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), 1 if mode == "1" else "red").save(buffer, kind)
    return text(buffer.getvalue())


def peak(pid: int) -> int:
    """The most bytes of real memory that a process had so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


# The budget ----------------------------------------------------------------------------------


async def test_shares_wait_for_room_and_a_large_one_goes_alone():
    """In the order in which they came; nothing small overtakes the large one for ever."""
    budget, order = Budget(100), []

    async def use(name: str, size: int) -> None:
        share = await budget.take(size, express=False)
        order.append((name, budget.held))
        await asyncio.sleep(0)
        share.release()
        share.release()

    first = await budget.take(50, express=False)
    tasks = [asyncio.create_task(use(*one)) for one in (("large", 1000), ("a", 30), ("b", 30), ("c", 30))]
    await asyncio.sleep(0.01)
    assert order == []
    first.release()
    await asyncio.gather(*tasks)
    assert order == [("large", 1000), ("a", 60), ("b", 60), ("c", 30)]
    assert budget.held == 0


async def test_the_express_lane_goes_first_and_has_a_reserve():
    """Three quarters are everybody's."""
    budget = Budget(100)
    slow = await budget.take(70, express=False)
    waits = asyncio.create_task(budget.take(10, express=False))
    express = await budget.take(25, express=True)
    also = asyncio.create_task(budget.take(60, express=True))
    await asyncio.sleep(0)
    assert not waits.done()
    slow.shrink(20)
    await asyncio.sleep(0.01)
    assert (waits.done(), also.done()) == (False, False), "the slow one stands behind the express one"
    express.release()
    await asyncio.sleep(0.01)
    assert (waits.done(), also.done(), budget.held) == (False, True, 80)
    waits.cancel()
    also.result().release()
    slow.release()
    assert budget.held == 0


async def test_a_cancelled_wait_leaves_nothing_behind():
    """Neither before it is admitted nor in the moment after."""
    budget = Budget(10)
    first = await budget.take(10, express=True)
    waiting = [asyncio.create_task(budget.take(10, express=True)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    first.release()  # admits the second, which is cancelled before it runs
    waiting[1].cancel()
    share = await waiting[2]
    assert budget.held == 10
    share.release()
    assert budget.held == 0


# Whole workers -------------------------------------------------------------------------------


@linux
@pytest.mark.slow
def test_large_inputs_do_not_fill_the_parent(tmp_path: Path):
    """64 files of 150 KB, each a picture and a mask of 4096 x 4096: a worker that dies, and one that takes over.

    Each would need 16 MiB of decoded pixels at the size to draw, and 12 MiB for the image: 1.8 GiB in all.
    """
    body = {
        "prompt": "x",
        "steps": 1,
        "image": file("RGB", 4096, "JPEG"),
        "mask_image": file("1", 4096, "PNG"),
    }
    for i in range(64):
        drop(tmp_path, f"r{i}.json", body)
    with worker(tmp_path, *LARGE, null={"seconds_per_step": 3600.0}) as first:
        ends = time.monotonic() + 600
        while len(files(tmp_path / "claims", "000001")) < 20 and time.monotonic() < ends:
            time.sleep(0.1)
        time.sleep(2.0)
        peaks = [peak(first.pid)]
        first.kill()
    with worker(tmp_path, *LARGE) as second:
        answers = [result(tmp_path, f"r{i}", timeout=800) for i in range(64)]
        peaks.append(peak(second.pid))
    assert {answer["status"] for answer in answers} == {"succeeded"}
    assert {(image["width"], image["height"]) for a in answers for image in a["images"]} == {(2048, 2048)}
    codes = {tuple(warning["code"] for warning in answer["warnings"]) for answer in answers}
    assert codes == {("image_resized",)}
    assert max(answer["attempts"] for answer in answers) == 2, "the second worker took over from the first"
    assert max(peaks) < 400 * MIB, [size // MIB for size in peaks]


async def test_images_on_their_way_are_bounded_in_bytes(tmp_path: Path):
    """Images of 12 MiB are handed out two at a time where 16 MiB are allowed, and all of them are stored."""
    async with open_store(str(tmp_path)) as store:
        limits = Limits(max_native_areas=256)
        made = make_worker(store, ahead=16, picture_memory=32 * MIB, limits=limits)
        drop(
            tmp_path,
            "a.json",
            {"prompt": "x", "steps": 1, "width": 2048, "height": 2048, "number_of_images": 6},
        )
        most = 0
        async with running(made):
            dispatch = made.jobs._outcomes.dispatch

            def done() -> bool:
                nonlocal most
                most = max(most, made.renderers[0].pending_bytes + dispatch.unstored_bytes)
                return (tmp_path / "results/a/result.json").exists()

            await until(done, 600)
    assert len(result(tmp_path, "a")["images"]) == 6
    assert 12 * MIB <= most <= 24 * MIB


@linux
async def test_a_picture_that_costs_its_decoder_costs_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One clear refusal for it; its neighbours are drawn, and the decoder knows no credentials."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a secret")
    small = file("RGB", 64, "PNG")
    earlier = set(decoder_children(os.getpid()))  # of other tests in this process
    async with open_store(str(tmp_path)) as store:
        made = make_worker(store, ahead=16, decode_seconds=1.0)
        good: dict[str, Any] = {"prompt": "x", "steps": 1, "image": small}
        drop(tmp_path, "guilty.json", good | {"image": text(many_scans())})
        drop(tmp_path, "other.json", good | {"mask_image": text(many_scans())})
        for i in range(6):
            drop(tmp_path, f"good{i}.json", good)
        async with running(made):
            ids = [f"good{i}" for i in range(6)] + ["guilty", "other"]
            await until(lambda: all((tmp_path / f"results/{id}/result.json").exists() for id in ids), 600)
            drop(tmp_path, "good6.json", good)  # by a new decoder
            await until((tmp_path / "results/good6/result.json").exists)
            assert made.jobs._preparation.room.held == 0
            decoders = set(decoder_children(os.getpid())) - earlier
            assert decoders
            for child in decoders:
                assert b"AWS_" not in (child / "environ").read_bytes()
        assert not set(decoder_children(os.getpid())) - earlier, "they end with their worker"
    for i in range(7):
        answer = result(tmp_path, f"good{i}")
        assert (answer["status"], answer["attempts"]) == ("succeeded", 1)
    for id, field in (("guilty", "image"), ("other", "mask_image")):
        answer = result(tmp_path, id)
        assert (answer["status"], answer["attempts"]) == ("failed", 1)
        assert (answer["failure"]["code"], answer["failure"]["field"]) == ("invalid_image", field)
        assert answer["failure"]["message"].startswith(f"{field} takes too long to decode")


@linux
async def test_a_decoder_that_is_killed_again_and_again_blames_no_picture(tmp_path: Path):
    """Its request is tried three times, as after any crash of a worker; the next one finds a new decoder."""
    body = {"prompt": "x", "steps": 1, "image": file("RGB", 64, "PNG")}
    async with open_store(str(tmp_path)) as store, running(make_worker(store)):
        with killed_decoders():
            drop(tmp_path, "a.json", body)
            await until((tmp_path / "results/a/result.json").exists, 600)
        drop(tmp_path, "b.json", body)
        await until((tmp_path / "results/b/result.json").exists, 600)
    answer = result(tmp_path, "a")
    assert (answer["failure"]["code"], answer["attempts"]) == ("worker_crashed", 3)
    assert (result(tmp_path, "b")["status"], result(tmp_path, "b")["attempts"]) == ("succeeded", 1)
