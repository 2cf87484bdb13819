"""Duplicates, other bodies under a used name, cancellations and images of another plan."""

from __future__ import annotations

import pytest

from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.result import Failure, Frozen, Result
from tests.infra.claims_bench import BODY, PLAN, Bench, Mortal, paint, success, work

pytestmark = pytest.mark.anyio
OTHER = b'{"prompt": "a blue square"}'


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


def _refusal(id: str) -> Result:
    failure = Failure(code="invalid_json", message="it breaks at line 1")
    return Result(
        id=id, status="failed", failure=failure, fingerprint=layout.fingerprint(BODY), request=Frozen.of(BODY)
    )
