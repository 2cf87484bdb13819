"""What a sweep takes, tidies and leaves alone, and what it costs."""

from __future__ import annotations

import pytest

from schemas import layout
from schemas.result import Frozen
from tests.infra.claims_bench import LEASE, Bench, Dies, Mortal, success, work

pytestmark = pytest.mark.anyio
OTHER = b'{"prompt": "a blue square"}'


async def test_a_sweep_takes_no_more_than_it_may() -> None:
    """The limit keeps one worker from grabbing a whole fleet's work; the rest waits for others."""
    bench = Bench()
    dead, one, two = bench.session("dead"), bench.session("one"), bench.session("two")
    for number in range(20):
        await bench.must_take(dead, f"r{number}")
    await one.sweep(limit=0)
    await two.sweep(limit=0)
    bench.now += LEASE
    taken = [*await one.sweep(limit=3), *await two.sweep(limit=9)]
    assert len({held.claim.id for held in taken}) == len(taken) == 12


async def test_a_worker_without_room_still_tidies() -> None:
    """A sweep that may take nothing removes the claims of ended requests all the same."""
    bench = Bench()
    dead = bench.session("dead")
    held = await bench.must_take(dead)
    await bench.store.create("results/cat/result.json", success(held, []).to_json())
    other = bench.session("other")
    await other.sweep(limit=0)
    bench.now += LEASE
    await other.sweep(limit=0)
    assert await bench.keys("claims/") == []


async def test_a_row_is_not_taken_for_an_attempt_of_its_batch() -> None:
    """The claims of `cat/row` lie below those of `cat`, and stay when `cat` ends."""
    bench = Bench()
    claims = bench.session("w")
    batch = await bench.must_take(claims, "cat")
    await bench.must_take(claims, "cat/row")
    await claims.release(batch, "drain")
    [again] = await claims.sweep()
    assert await work(claims, again)
    assert await bench.keys("claims/") == ["claims/cat/row/000001"]


async def test_tidying_leaves_the_claim_of_another_body() -> None:
    """Whoever deletes the claims of an ended request asks each for its body first."""
    bench = Bench()
    await bench.must_take(bench.session("dead"))
    heir = bench.session("heir")
    [second] = await bench.sweep_after_lease(heir)
    await bench.store.delete("claims/cat/000001")  # another tidier was here, and then another body came
    newer = second.claim.model_copy(
        update={"epoch": 1, "frozen": Frozen.of(OTHER), "fingerprint": layout.fingerprint(OTHER)}
    )
    await bench.store.create("claims/cat/000001", newer.body())
    assert await work(heir, second)
    assert await bench.keys("claims/") == ["claims/cat/000001"]


async def test_a_quiet_sweep_costs_two_listings() -> None:
    """Claims never change, so each is read once; afterwards a pass with nothing to do only lists."""
    bench = Bench()
    owner = bench.session("owner")
    for number in range(30):
        await bench.must_take(owner, f"r{number}")
    counted = Mortal(bench.store, 0, "")
    watcher = bench.session("watcher", counted)
    await watcher.sweep()
    before = counted.calls
    await watcher.sweep()
    assert counted.calls - before == 2


async def test_the_next_sweep_comes_when_a_lease_runs_out() -> None:
    """Sweeps are far apart for the store's sake, but one comes just in time for a heartbeat that stands still."""
    bench = Bench()
    watcher = bench.session("watcher")
    shortest, longest = watcher.timing.sweep
    await bench.must_take(bench.session("dead"))
    await watcher.sweep()
    assert shortest <= watcher.until_sweep() <= longest
    bench.now += LEASE - 1
    assert await watcher.sweep() == []
    assert watcher.until_sweep() < 1.1
    bench.now += watcher.until_sweep()
    assert len(await watcher.sweep()) == 1


async def test_what_is_no_claim_is_left_alone() -> None:
    """Foreign bytes under `claims/` stop no sweep."""
    bench = Bench()
    claims = bench.session("w")
    await bench.store.create("claims/odd/000001", b"not JSON")
    await bench.store.create("claims/odd/notes.txt", b"hello")
    await bench.must_take(bench.session("dead"))
    assert [held.claim.id for held in await bench.sweep_after_lease(claims)] == ["cat"]


async def test_heartbeats_of_the_long_dead_are_removed() -> None:
    """An hour after its last change a heartbeat goes; a living one and our own stay."""
    bench = Bench()
    dead, living, claims = bench.session("dead"), bench.session("living"), bench.session("w")
    await dead.beat()
    await claims.beat()
    for _ in range(4):
        await living.beat()
        await claims.sweep()
        bench.now += 1300
    assert await bench.keys() == ["workers/living", "workers/w"]
    await claims.retire()
    assert await bench.keys() == ["workers/living"]


@pytest.mark.parametrize("end", ["given up", "canceled"])
async def test_no_status_outlives_a_dead_worker(end: str) -> None:
    """Who tidies up after it removes what it told people, for nobody would look for that later."""
    bench = Bench()
    dead, alive = bench.session("dead"), bench.session("alive")
    held = await bench.must_take(dead)
    await bench.store.put(layout.status_key("cat"), b"step 3 of 20")
    if end == "canceled":
        await bench.store.create(layout.result_key("cat"), success(held, []).to_json())
    for _ in range(8):
        await bench.sweep_after_lease(bench.session(f"{alive.session}{bench.now}"))
    assert await bench.keys("claims/", "status/") == []
    assert await bench.keys("results/") == ["results/cat/result.json"]


@pytest.mark.parametrize("how", ["before", "after"])
async def test_no_status_outlives_a_worker_that_dies_as_it_commits(how: str) -> None:
    """Whatever call of the commit it dies at, a status goes before the last claim does."""
    deaths = 0
    for fatal in range(1, 12):
        bench = Bench()
        held = await bench.must_take(bench.session("w"))
        await bench.store.put(layout.status_key("cat"), b"step 3 of 20")
        mortal = bench.session("w", Mortal(bench.store, fatal, how))
        held.has_status = True
        try:
            await mortal.commit(held, success(held, []))
        except Dies:
            deaths += 1
        await bench.sweep_after_lease(bench.session("other"))
        if await bench.keys("results/"):
            assert await bench.keys("claims/", "status/") == []
    assert deaths


async def test_the_express_lane_is_taken_over_first_and_stays_one() -> None:
    """By a worker that has no other room, too; whether the lane is known by the key or by the queue."""
    bench = Bench()
    dead, heir = bench.session("dead"), bench.session("heir")
    for number in range(9):
        await bench.must_take(dead, f"r{number}")
    held = await dead.take(None, b'{"prompt": "a dot"}', id="queued", plan={"seeds": [1]}, express=True)
    assert held is not None
    await heir.sweep(limit=0)
    bench.now += LEASE
    [taken] = await heir.sweep(limit=0, express_limit=4)
    assert (taken.claim.id, taken.claim.epoch, taken.claim.in_express_lane) == ("queued", 2, True)
    assert len(await heir.sweep(limit=2, express_limit=4)) == 2
    assert taken.claim.model_copy(
        update={"express": False, "source": "requests/express/a.json"}
    ).in_express_lane
