"""What an S3 store owes beyond the common promises: lost answers, storms, and errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from infra.stores.s3 import S3Store
from infra.stores.store import InvalidKey
from schemas.errors import StoreUnavailable, TooLarge, Unsupported
from tests.servers.s3_front import Fault, S3Front

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.anyio


def puts(front: S3Front) -> int:
    return sum(1 for method, _ in front.requests if method == "PUT")


# Creates whose answer is lost ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["broken_after", "cut_after"])
async def test_a_lost_answer_is_read_back_as_ours(bucket: S3Store, s3_front: S3Front, kind: str):
    """The write was done and the answer was not: the nonce tells that it is ours."""
    s3_front.faults.append(Fault(kind, times=1))
    assert await bucket.create("results/a/result.json", b"{}", metadata={"plan": "p"})

    assert puts(s3_front) <= 2, "the HTTP library repeats by itself on a connection that had been idle"
    found = await bucket.get("results/a/result.json")
    assert (found.body, dict(found.info.metadata)) == (b"{}", {"plan": "p"})


@pytest.mark.parametrize("kind", ["broken", "cut", "slow_down", "conflict"])
async def test_a_write_that_was_not_done_is_repeated(bucket: S3Store, s3_front: S3Front, kind: str):
    """Nothing was written three times; the fourth try is ours."""
    s3_front.faults.append(Fault(kind, times=3))
    assert await bucket.create("claims/a/000001", b"mine")
    assert puts(s3_front) == 4
    assert (await bucket.get("claims/a/000001")).body == b"mine"


async def test_our_own_late_write_is_no_rival(bucket: S3Store, s3_front: S3Front):
    """A write that takes effect after we gave up on it meets its own nonce."""
    s3_front.faults.append(Fault("late", times=4, seconds=0.05))
    assert await bucket.create("claims/a/000001", b"mine")
    assert (await bucket.get("claims/a/000001")).body == b"mine"


async def test_a_write_that_outlasts_the_time_out_is_ours(bucket: S3Store, s3_front: S3Front):
    """Silence for longer than the read time-out is a lost answer like any other."""
    s3_front.faults.append(Fault("delay", times=1, seconds=0.9))
    assert await bucket.create("claims/a/000001", b"mine")
    assert (await bucket.get("claims/a/000001")).body == b"mine"


@pytest.mark.parametrize("kind", ["broken", "broken_after", "cut", "cut_after", "slow_down", "conflict"])
async def test_a_lost_answer_never_hides_who_was_first(bucket: S3Store, s3_front: S3Front, kind: str):
    """When somebody else's object is there, no fault makes us believe that we won."""
    assert await bucket.create("claims/a/000001", b"theirs")
    s3_front.faults.append(Fault(kind, times=2))
    assert not await bucket.create("claims/a/000001", b"mine")
    assert (await bucket.get("claims/a/000001")).body == b"theirs"


async def test_a_storm_of_faults_has_one_winner_each(bucket: S3Store, s3_front: S3Front):
    """Sixteen creators under random faults: never two winners, and the winner's body is there."""
    chance = random.Random(11)
    kinds = ["broken", "broken_after", "cut", "cut_after", "slow_down", "conflict", "late"]
    for n in range(6):
        key = f"claims/storm-{n}/000001"
        s3_front.faults[:] = [
            Fault(chance.choice(kinds), prefix=key, times=chance.randint(1, 3), seconds=0.02)
            for _ in range(6)
        ]
        won = await asyncio.gather(*(bucket.create(key, b"%d" % task) for task in range(16)))
        assert won.count(True) == 1
        assert (await bucket.get(key)).body == b"%d" % won.index(True)


async def test_a_create_that_cannot_be_known_says_so(s3_front: S3Front):
    """A store that only fails is given up after the patience, and nothing is claimed about the object."""
    s3_front.faults.append(Fault("broken"))
    async with S3Store("s3://bucket", patience=0.3) as impatient:
        with pytest.raises(StoreUnavailable, match=r"cannot create 'claims/a/000001' in s3://bucket.*500"):
            await impatient.create("claims/a/000001", b"mine")


async def test_a_store_without_conditions_is_refused(bucket: S3Store, s3_front: S3Front):
    """501 to the condition is final: the message names the condition and what to use instead."""
    s3_front.faults.append(Fault("unsupported"))
    with pytest.raises(Unsupported, match=r"refused a conditional write.*NotImplemented"):
        await bucket.create("claims/a/000001", b"mine")
    assert puts(s3_front) == 1


RACER = """
import asyncio, sys
from infra.stores.s3 import S3Store

async def main(name, rounds):
    async with S3Store("s3://bucket") as store:
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(rounds):
            won = await asyncio.gather(*(
                store.create(f"claims/race-{n}/000001", f"{name}-{task}".encode()) for task in range(8)
            ))
            for task, mine in enumerate(won):
                if mine:
                    print(n, f"{name}-{task}", flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_creators_in_two_processes_have_one_winner(bucket: S3Store, s3_front: S3Front):
    """Sixteen creators in two processes, through answers lost at random: one winner each."""
    rounds = 20
    for n in range(0, rounds, 2):
        s3_front.faults.append(Fault("cut_after", prefix=f"claims/race-{n}/", times=2))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, f"p{n}", str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for n in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    lines = [line.split() for racer in racers for line in racer.communicate(timeout=300)[0].splitlines()]

    assert sorted(int(number) for number, _ in lines) == list(range(rounds))
    for number, name in lines:
        assert (await bucket.get(f"claims/race-{number}/000001")).body == name.encode()


# The other verbs ----------------------------------------------------------------------------------


async def test_reading_writing_and_listing_outlast_short_faults(bucket: S3Store, s3_front: S3Front):
    """The SDK repeats what may be repeated."""
    s3_front.faults.append(Fault("slow_down", times=1))
    s3_front.faults.append(Fault("broken", method="GET", prefix="workers/", times=1))
    for method in ("HEAD", "DELETE"):
        s3_front.faults.append(Fault("cut", method=method, times=1))
    await bucket.put("workers/w", b"1")
    assert (await bucket.get("workers/w")).body == b"1"
    assert await bucket.head("workers/w") is not None
    s3_front.faults.append(Fault("cut", method="GET", times=1))
    assert [info.key async for info in bucket.list("workers/")] == ["workers/w"]
    await bucket.delete("workers/w")
    assert await bucket.head("workers/w") is None
    assert not any(fault.times for fault in s3_front.faults)


async def test_a_body_that_breaks_off_is_read_again(bucket: S3Store, s3_front: S3Front):
    """Half a body is never handed out as a whole one."""
    await bucket.put("results/a/0.png", b"x" * 300_000)
    s3_front.faults.append(Fault("half", method="GET", times=2))
    assert len((await bucket.get("results/a/0.png")).body) == 300_000

    s3_front.faults.append(Fault("half", method="GET"))
    with pytest.raises(StoreUnavailable, match=r"the connection to .* broke"):
        await bucket.get("results/a/0.png")


async def test_a_too_large_object_leaves_the_store_usable(bucket: S3Store):
    """The connection whose body was not read does not disturb the next requests."""
    await bucket.put("requests/big.json", b"x" * 3_000_000)
    for _ in range(5):
        with pytest.raises(TooLarge):
            await bucket.get("requests/big.json", max_bytes=1000)
    assert len((await bucket.get("requests/big.json")).body) == 3_000_000


async def test_a_listing_goes_on_over_pages(bucket: S3Store, s3_front: S3Front):
    """Keys with every kind of character come once each, in order, whatever the page size."""
    s3_front.page = 3
    keys = sorted([f"requests/{c}.json" for c in "a+%&= é日/x<"] + ["requests/a"], key=str.encode)
    keys = [key for key in keys if "//" not in key]
    for key in keys:
        await bucket.put(key, b"{}")
    assert [info.key async for info in bucket.list("requests/")] == keys
    assert [info.key async for info in bucket.list("", start_after=keys[4])] == keys[5:]


async def test_folder_markers_of_a_console_are_no_objects(bucket: S3Store, s3_front: S3Front):
    """The empty `requests/` that a web console makes is passed over."""
    s3_front.markers.append("requests/")
    await bucket.put("requests/a.json", b"{}")
    assert [info.key async for info in bucket.list("requests/")] == ["requests/a.json"]


async def test_where_deletes_have_no_conditions_we_look_first(bucket: S3Store, s3_front: S3Front):
    """Servers that refuse or ignore If-Match on DELETE still do not cost a newer file its life."""
    await bucket.put("requests/a.json", b"old")
    old = await bucket.head("requests/a.json")
    assert old is not None
    await bucket.put("requests/a.json", b"new")
    for kind in ("ignore_condition", "unsupported"):
        s3_front.faults[:] = [Fault(kind, method="DELETE")]
        await bucket.delete("requests/a.json", etag=old.etag)
        new = await bucket.head("requests/a.json")
        assert new is not None
    await bucket.delete("requests/a.json", etag=new.etag)
    assert await bucket.head("requests/a.json") is None


async def test_a_prefix_is_a_store_of_its_own(bucket: S3Store, s3_front: S3Front):
    """Two prefixes in one bucket do not see each other, and the keys do not show the prefix."""
    async with S3Store("s3://bucket/team a/") as a, S3Store("s3://bucket/team b") as b:
        assert await a.create("requests/x.json", b"a")
        assert await b.create("requests/x.json", b"b")
        assert [info.key async for info in a.list("")] == ["requests/x.json"]
        assert (a.url, b.url) == ("s3://bucket/team a", "s3://bucket/team b")
        with pytest.raises(InvalidKey, match="with the store's prefix"):
            await a.put("k" * 1024, b"")
    assert (await bucket.get("team a/requests/x.json")).body == b"a"
