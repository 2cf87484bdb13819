"""The life of a request, and every place where it can break.

Read the first test for the life; the others are the rows of the crash table in docs/design.md.
"""

from __future__ import annotations

import hashlib

import pytest

from infra.stores.store import Store
from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.result import Failure, Frozen, Result
from tests.infra.claims_bench import BODY, LEASE, PLAN, Bench, Dies, Mortal, live, paint, success, work

pytestmark = pytest.mark.anyio
OTHER = b'{"prompt": "a blue square"}'


async def test_a_request_becomes_a_claim_and_then_a_result(store: Store) -> None:
    """Of request, claim, images and result, only images and result stay; the result repeats the request."""
    bench = Bench(store)
    claims = bench.session("w")
    held = await bench.must_take(claims)
    assert await bench.keys() == ["claims/cat/000001"]

    assert await work(claims, held)
    assert await bench.keys() == ["results/cat/0.png", "results/cat/1.png", "results/cat/result.json"]
    result = await bench.result()
    assert result.request.body() == BODY
    for image in result.images:
        assert hashlib.sha256((await store.get(image.key)).body).hexdigest() == image.sha256


async def test_a_dead_workers_claim_is_taken_over_whole(store: Store) -> None:
    """After a lease the next epoch has request and plan unchanged, runs alone, and adopts what is stored."""
    bench = Bench(store)
    dead, alive = bench.session("dead"), bench.session("alive")
    await dead.beat()
    old = await bench.must_take(dead)
    painted = await paint(dead, old, 0)

    [new] = await bench.sweep_after_lease(alive)
    assert (new.claim.frozen, new.claim.plan) == (old.claim.frozen, old.claim.plan)
    assert (new.claim.epoch, new.claim.attempt, new.claim.solo) == (2, 2, True)
    assert await alive.stored_image(new, 0, "png") == painted
    assert await work(alive, new)
    assert await bench.keys("claims/") == []


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_death_at_any_call_is_survived(how: str) -> None:
    """Whatever call a worker dies at, before or after its effect, one other worker ends the request."""
    deaths = 0
    for fatal in range(1, 40):
        bench = Bench()
        await bench.drop()
        try:
            await live(bench, bench.session("mortal", Mortal(bench.store, fatal, how)))
        except Dies:
            deaths += 1
        await live(bench, bench.session("heir"))
        await _assert_all_is_well(bench)
    assert deaths >= 10


@pytest.mark.parametrize("how", ["lost", "refused"])
async def test_a_store_that_fails_once_is_asked_again(how: str) -> None:
    """Whatever call gets no answer, the same worker goes on and ends the request, claim and all."""
    for fatal in range(1, 40):
        bench = Bench()
        await bench.drop()
        await live(bench, bench.session("w", Mortal(bench.store, fatal, how)))
        await _assert_all_is_well(bench)


async def test_a_commit_whose_answer_was_lost_is_still_ours() -> None:
    """Called again after StoreUnavailable, `commit` finds its own result and says True."""
    bench = Bench()
    held = await bench.must_take(bench.session("w"))
    claims = bench.session("w", Mortal(bench.store, 1, "lost"))
    with pytest.raises(StoreUnavailable):
        await claims.commit(held, success(held, []))
    assert await claims.commit(held, success(held, []))


async def test_a_zombie_loses_or_helps() -> None:
    """A worker that wakes up after its lease was taken: its images are adopted, one result stands."""
    bench = Bench()
    zombie, heir = bench.session("zombie"), bench.session("heir")
    old = await bench.must_take(zombie)
    [new] = await bench.sweep_after_lease(heir)
    images = [await paint(zombie, old, 0), await paint(heir, new, 1)]
    assert [await paint(heir, new, 0), await paint(zombie, old, 1)] == images

    assert await heir.commit(new, success(new, images))
    assert not await zombie.commit(old, success(old, images))
    assert (await bench.result()).worker == "heir"
    assert await bench.keys("claims/") == []


async def test_a_zombie_that_commits_first_is_right() -> None:
    """Then the heir's commit says False, and its claim goes as well."""
    bench = Bench()
    zombie, heir = bench.session("zombie"), bench.session("heir")
    old = await bench.must_take(zombie)
    [new] = await bench.sweep_after_lease(heir)
    assert await work(zombie, old)
    assert await heir.is_over("cat")
    assert not heir.holds("cat")
    assert not await heir.commit(new, success(new, []))
    assert await bench.keys("claims/") == []


async def test_a_zombie_learns_that_its_claim_is_lost() -> None:
    """Its own sweep sees the later epoch and lets go, so that it can be the heir of its heir."""
    bench = Bench()
    zombie, heir = bench.session("zombie"), bench.session("heir")
    old = await bench.must_take(zombie)
    await bench.sweep_after_lease(heir)
    assert await zombie.sweep() == []
    assert old.taken_over
    assert not zombie.holds("cat")
    [again] = await bench.sweep_after_lease(zombie)
    assert again.claim.epoch == 3


async def test_a_claim_that_lands_late_is_tidied() -> None:
    """A claim of a dead worker, written after the request had ended, goes after a lease."""
    bench = Bench()
    claims = bench.session("w")
    held = await bench.must_take(claims)
    ghost = held.claim.model_copy(update={"session": "gone"})
    await work(claims, held)
    await bench.store.create("claims/cat/000001", ghost.body())
    assert await bench.sweep_after_lease(claims) == []
    assert await bench.keys("claims/") == []


async def test_an_own_claim_that_nobody_holds_is_found_again() -> None:
    """A first claim whose answer was lost, landing late, is worked on without waiting for a lease."""
    bench = Bench()
    claims = bench.session("w")
    held = await bench.must_take(claims)
    again = bench.session("w")  # the same session, which never heard that it has the claim
    [found] = await again.sweep()
    assert found.claim == held.claim


async def test_a_beating_heart_keeps_its_claims() -> None:
    """However long the work takes, a heartbeat that changes within a lease keeps the claim."""
    bench = Bench()
    slow, other = bench.session("slow"), bench.session("other")
    await bench.must_take(slow)
    for _ in range(20):
        await slow.beat()
        assert await other.sweep() == []
        bench.now += LEASE - 1


@pytest.mark.parametrize("beats", [True, False])
async def test_death_is_judged_by_the_observers_own_clock(beats: bool) -> None:
    """A heartbeat, unchanged or missing, counts only from when this observer first saw it so."""
    bench = Bench()
    dead, late = bench.session("dead"), bench.session("late")
    if beats:
        await dead.beat()
    await bench.must_take(dead)
    bench.now += 10 * LEASE
    assert await late.sweep() == []
    bench.now += LEASE - 1
    assert await late.sweep() == []
    bench.now += 1
    assert len(await late.sweep()) == 1


async def test_a_drained_claim_is_taken_at_once_and_costs_no_attempt() -> None:
    """A worker that stops in order gives its work back: same attempt, no isolation."""
    bench = Bench()
    leaver, other = bench.session("leaver"), bench.session("other")
    held = await bench.must_take(leaver)
    await leaver.release(held, "drain")
    assert not leaver.holds("cat")
    [new] = await other.sweep()
    assert (new.claim.epoch, new.claim.attempt, new.claim.solo) == (2, 1, False)


async def test_a_retry_waits_and_counts() -> None:
    """After a retryable failure the next attempt waits from when the observer saw the marker."""
    bench = Bench()
    first, other = bench.session("first"), bench.session("other")
    await first.release(await bench.must_take(first), "retry")
    bench.now += 100
    assert await other.sweep() == []
    bench.now += 4.9  # seconds; the first wait is 5 and up to a quarter more
    assert await other.sweep() == []
    bench.now += 1.4
    [new] = await other.sweep()
    assert (new.claim.attempt, new.claim.solo) == (2, False)


async def test_isolation_outlives_a_drain() -> None:
    """A request that once took a worker with it stays alone, whoever gives it back in order later."""
    bench = Bench()
    await bench.must_take(bench.session("dead"))
    second = bench.session("second")
    [held] = await bench.sweep_after_lease(second)
    await second.release(held, "drain")
    [third] = await bench.session("third").sweep()
    assert third.claim.solo


async def test_a_request_that_kills_is_given_up() -> None:
    """After three workers died over it, the request ends as `failed`, in words for its author."""
    bench = Bench()
    await bench.must_take(bench.session("victim 1"))
    for attempt in (2, 3):
        [held] = await bench.sweep_after_lease(bench.session(f"victim {attempt}"))
        assert held.claim.attempt == attempt
    assert await bench.sweep_after_lease(bench.session("judge")) == []
    result = await bench.result()
    assert result.failure is not None
    assert (result.status, result.failure.code, result.attempts) == ("failed", "worker_crashed", 3)
    assert "3 attempts" in result.failure.message
    assert "stopped without a message" in result.failure.message
    assert result.metadata == {"order": 17}
    assert await bench.keys("claims/") == []


async def test_the_last_failure_is_told() -> None:
    """A request given up after retries says what went wrong in the last one, without another wait."""
    bench = Bench()
    claims = bench.session("w")
    held = await bench.must_take(claims)
    for _ in range(2):
        await claims.release(held, "retry", Failure(code="out_of_memory", message="the GPU is too small"))
        await claims.sweep()
        bench.now += 100
        [held] = await claims.sweep()
    await claims.release(held, "retry", Failure(code="out_of_memory", message="the GPU is too small"))
    assert await claims.sweep() == []
    failure = (await bench.result()).failure
    assert failure is not None
    assert (failure.code, failure.message) == (
        "out_of_memory",
        "the GPU is too small (given up after 3 attempts)",
    )


async def test_a_late_duplicate_stops_before_any_work() -> None:
    """The same file dropped after the end is tidied away; the first answer stands."""
    bench = Bench()
    claims, other = bench.session("w"), bench.session("other")
    await work(claims, await bench.must_take(claims))
    assert await bench.take(other) is None
    assert await bench.keys("requests/", "claims/") == []
    assert (await bench.result()).worker == "w"


async def test_a_duplicate_of_running_work_is_tidied() -> None:
    """A request object whose claim carries the same bytes is not needed any more."""
    bench = Bench()
    await bench.must_take(bench.session("w"))
    assert await bench.take(bench.session("other")) is None
    assert await bench.keys() == ["claims/cat/000001"]


@pytest.mark.parametrize("ended", [True, False])
async def test_another_body_under_a_used_name_gets_an_id_of_its_own(ended: bool) -> None:
    """The first body keeps the name, running or ended; the second is answered under name~hash."""
    bench = Bench()
    claims, other = bench.session("w"), bench.session("other")
    first = await bench.must_take(claims)
    if ended:
        await work(claims, first)
    second = await bench.must_take(other, body=OTHER)
    assert second.claim.id == layout.other_body_id("cat", layout.fingerprint(OTHER))
    assert await work(other, second)
    if not ended:
        await work(claims, first)
    assert (await bench.result()).request.body() == BODY
    assert (await bench.result(second.claim.id)).request.body() == OTHER
    assert await bench.keys("claims/", "requests/") == []


async def test_a_request_overwritten_while_it_is_taken_is_not_lost() -> None:
    """Only the version that was read is deleted; the new body is found by the next listing."""
    bench = Bench()
    source = await bench.drop()
    await bench.drop(body=OTHER)
    held = await bench.session("w").take(source, BODY, id="cat", plan=PLAN)
    assert held is not None
    assert (await bench.store.get("requests/cat.json")).body == OTHER


async def test_a_commit_that_meets_another_bodys_answer_goes_under_its_own_id() -> None:
    """A bad file and a good one race for a name; both get their answer, whoever came first."""
    bench = Bench()
    claims = bench.session("w")
    held = await bench.must_take(claims, body=OTHER)
    await bench.store.create("results/cat/result.json", _refusal("cat").to_json())
    assert await claims.is_over("cat") is False
    assert await work(claims, held)
    own = await bench.result(layout.other_body_id("cat", layout.fingerprint(OTHER)))
    assert (own.status, own.request.body()) == ("succeeded", OTHER)
    assert await bench.keys("claims/") == []


async def test_a_dead_workers_claim_moves_when_its_name_answers_another_body() -> None:
    """The sweep goes on under name~hash, and deletes the old claim only then."""
    bench = Bench()
    await bench.must_take(bench.session("dead"), body=OTHER)
    await bench.store.create("results/cat/result.json", _refusal("cat").to_json())
    heir = bench.session("heir")
    [held] = await bench.sweep_after_lease(heir)
    assert held.claim.id == layout.other_body_id("cat", layout.fingerprint(OTHER))
    assert held.claim.frozen.body() == OTHER
    assert await bench.keys("claims/") == [layout.claim_key(held.claim.id, 1)]


async def test_a_move_that_was_cut_short_costs_no_attempt() -> None:
    """A claim of ours that met another body's result, and got no further, goes on as a first attempt."""
    bench = Bench()
    other = bench.session("other")
    await work(other, await bench.must_take(other))
    source = await bench.drop(body=OTHER)
    cut = bench.session("w", Mortal(bench.store, 3, "refused"))  # the third call claims name~hash
    with pytest.raises(StoreUnavailable):
        await cut.take(source, OTHER, id="cat", plan=PLAN)
    [held] = await cut.sweep()
    assert (held.claim.frozen.body(), held.claim.attempt, held.claim.solo) == (OTHER, 1, False)


async def test_a_cancelled_request_is_let_go() -> None:
    """A client cancels by creating the result; the worker sees it, and its claim goes."""
    bench = Bench()
    claims = bench.session("w")
    await bench.must_take(claims)
    assert await claims.is_over("cat") is False
    canceled = Result(
        id="cat", status="canceled", fingerprint=layout.fingerprint(BODY), request=Frozen.of(BODY)
    )
    await bench.store.create("results/cat/result.json", canceled.to_json())
    assert await claims.is_over("cat")
    assert not claims.holds("cat")
    assert await bench.keys("claims/") == []


async def test_an_image_of_another_plan_is_passed_by() -> None:
    """What a removed request left under a key is neither overwritten nor adopted."""
    bench = Bench()
    claims = bench.session("w")
    await bench.store.create("results/cat/0.png", b"left over", metadata={"plan": "another"})
    held = await bench.must_take(claims)
    assert await claims.stored_image(held, 0, "png") is None
    image = await paint(claims, held, 0, b"ours")
    assert image.key == f"results/cat/0-{held.claim.plan_hash()[:8]}.png"
    assert (await bench.store.get("results/cat/0.png")).body == b"left over"
    assert await claims.stored_image(held, 0, "png") == image


async def test_the_same_plan_for_another_picture_sent_in_is_another_plan() -> None:
    """The plan leaves out the pictures of a request, so the request's bytes count for adoption."""
    bench = Bench()
    claims = bench.session("w")
    one, two = await bench.must_take(claims, "a"), await bench.must_take(claims, "b", OTHER)
    assert one.claim.plan == two.claim.plan
    assert one.claim.plan_hash() != two.claim.plan_hash()


async def test_a_result_cannot_name_an_image_that_is_not_stored() -> None:
    """Commit last: what this claim neither stored nor adopted is refused."""
    bench = Bench()
    claims, other = bench.session("w"), bench.session("other")
    held = await bench.must_take(claims)
    image = await paint(other, await bench.must_take(other, "dog"), 0)
    with pytest.raises(ValueError, match="not known to be stored"):
        await claims.commit(held, success(held, [image]))


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


async def _assert_all_is_well(bench: Bench) -> None:
    assert await bench.keys("claims/", "requests/") == []
    result = await bench.result()
    assert (result.status, len(result.images)) == ("succeeded", 2)
    for image in result.images:
        assert hashlib.sha256((await bench.store.get(image.key)).body).hexdigest() == image.sha256


def _refusal(id: str) -> Result:
    failure = Failure(code="invalid_json", message="it breaks at line 1")
    return Result(
        id=id, status="failed", failure=failure, fingerprint=layout.fingerprint(BODY), request=Frozen.of(BODY)
    )


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
