"""What `dreamdrop clean` removes and leaves, a crash at each of its deletes, and requests that come again meanwhile."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from infra.claims import kept_request
from infra.claims.retention import LEAST, remove, survey
from infra.stores.store import Info, Store
from schemas import layout
from schemas.result import Failure, Frozen, Result
from tests.ended_batches import batch_of, end
from tests.infra.claims_bench import BODY, Bench, Dies, work

pytestmark = pytest.mark.anyio

DAY = 86_400.0
LONG = b'{"prompt": "' + b"x" * (kept_request.INLINE + 1) + b'"}'


@dataclass
class Past:
    """A real store whose objects are as old as a test says; it can interfere with deletes."""

    store: Store
    ages: dict[str, float] = field(default_factory=dict)  # seconds, by key
    clock: float = 0.0  # seconds by which the store's clock differs from the machine's
    before_delete: Callable[[str], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def grow(self, age: float, *beginnings: str) -> None:
        """Let what is there be so many seconds old."""
        self.ages |= {i.key: age async for i in self.store.list("") if i.key.startswith(beginnings or "")}

    def _aged(self, info: Info) -> Info:
        return replace(info, modified=info.modified + self.clock - self.ages.get(info.key, 0.0))

    async def list(self, prefix: str, *, start_after: str = "") -> Any:
        async for info in self.store.list(prefix, start_after=start_after):
            yield self._aged(info)

    async def head(self, key: str) -> Info | None:
        info = await self.store.head(key)
        return info and self._aged(info)

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        if self.before_delete is not None and not key.startswith(layout.WORKERS):
            await self.before_delete(key)
        await self.store.delete(key, etag=etag)


async def draw(bench: Bench, id: str, body: bytes = BODY) -> None:
    claims = bench.session("w")
    assert await work(claims, await bench.must_take(claims, id, body))


async def draw_batch(store: Store, **options: Any) -> None:
    """A batch `b` with two rows, as workers leave it, and a status that one of them forgot."""
    held = batch_of(2)
    await end(store, held, **options)
    for name in ("results.jsonl", "errors.jsonl", "gallery.html", "contact-sheet.png", "batch.json"):
        await store.create(f"results/b/{name}", b"{}")
    failure = Failure(code="some_rows_failed", message="x") if options else None
    status: Any = options.get("status", "succeeded")
    result = Result.ended(
        "b", status, failure, request=held.claim.frozen, fingerprint=held.claim.fingerprint, metadata={}
    )
    await store.create(layout.result_key("b"), result.to_json())


async def keys(store: Store) -> set[str]:
    return {info.key async for info in store.list("")}


async def clean(store: Any, older_than: float = 30 * DAY, **options: Any) -> list[str]:
    found = await survey(store, older_than, **options)
    await remove(store, found.going)
    return [ended.id for ended in found.going]


async def test_a_request_goes_with_all_that_lies_beside_it(store: Store) -> None:
    """Results, images, a long request, a forgotten status, a batch's rows and summaries; what is younger stays."""
    past = Past(store)
    bench = Bench(store)
    await draw(bench, "cats/a")
    await draw(bench, "long", LONG)
    await draw_batch(store)
    await store.put(layout.status_key("cats/a"), b"{}")
    await store.put("results/cats/a/notes.txt", b"a person's own file")
    await past.grow(31 * DAY)
    await draw(bench, "young")
    young = {key for key in await keys(store) if "young" in key}

    found = await survey(past, 30 * DAY)
    totals = found.totals()
    gone = (await keys(store)) - young - {"results/cats/a/notes.txt"}
    sizes = [info.size async for info in store.list("results/") if info.key in gone]
    assert totals == {
        "requests": 2, "batches": 1, "rows": 2, "objects": len(sizes), "bytes": sum(sizes)
    }  # fmt: skip
    assert any(key.startswith("results/long/request-") for key in gone)

    await remove(past, found.going)
    assert await keys(store) == young | {"results/cats/a/notes.txt"}


async def test_what_is_not_over_stays(store: Store) -> None:
    """An id with a claim or a request object (by its path, by its body, for another body), and all of its rows."""
    past = Past(store)
    bench = Bench(store)
    for id in ("claimed", "waiting", "chosen", "other~0123abcd"):
        await draw(bench, id)
    await draw_batch(store)
    await past.grow(40 * DAY)
    before = await keys(store)
    await store.create(layout.claim_key("claimed", 1), b"{}")
    await store.put("requests/express/waiting.json", BODY)
    await store.put("requests/any/name.json", json.dumps({"id": "chosen", "prompt": "x"}).encode())
    await store.put("requests/other.json", BODY)
    await store.put("requests/b/row-7.json", BODY)  # a row that is still to be drawn

    found = await survey(past, 30 * DAY)
    assert (found.going, found.in_batch) == ([], 2)
    assert found.open == ["b", "chosen", "claimed", "other~0123abcd", "waiting"]
    await remove(past, found.going)
    assert before <= await keys(store)


async def test_the_rows_of_an_open_or_younger_batch_stay(store: Store) -> None:
    """A batch may take longer than results are kept: its rows wait for it."""
    past = Past(store)
    held = batch_of(2)
    await end(store, held)
    await past.grow(40 * DAY)
    await store.create(layout.claim_key("b", 1), held.claim.body())
    assert await clean(past) == []

    await draw_batch(store)  # it ended just now
    await store.delete(layout.claim_key("b", 1))
    found = await survey(past, 30 * DAY)
    assert (found.going, found.in_batch) == ([], 2)
    await past.grow(40 * DAY)
    assert await clean(past) == ["b"]
    assert await keys(store) == set()


async def test_failed_takes_only_what_has_no_pictures(store: Store) -> None:
    """Failed, cancelled, expired or unreadable; a failed row goes with its batch only."""
    past = Past(store)
    await draw(Bench(store), "good")
    for status in ("failed", "canceled", "expired"):
        ended = Result.ended(status, status, None, request=Frozen.of(BODY), fingerprint="")
        await store.create(layout.result_key(status), ended.to_json())
    await store.create(layout.result_key("damaged"), b"{")
    await end(store, batch_of(1), status="failed")
    await draw_batch(store)
    await past.grow(40 * DAY)
    kept = {key for key in await keys(store) if key.startswith(("results/good/", "results/b/"))}
    assert await clean(past, failed=True) == ["canceled", "damaged", "expired", "failed"]
    assert await keys(store) == kept


async def test_a_crash_at_any_delete_leaves_nothing_that_counts_as_open(store: Store) -> None:
    """What is left of an id still has its result, what is left of a batch has the batch's; the next run ends it."""
    bench = Bench(store)
    crashes = 0
    while True:
        await draw(bench, "long", LONG)
        await draw_batch(store)
        deletes = 0

        async def die(key: str, fatal: int = crashes) -> None:
            nonlocal deletes
            if deletes == fatal:
                raise Dies
            deletes += 1

        past = Past(store, before_delete=die)
        await past.grow(40 * DAY)
        try:
            await clean(past)
            break
        except Dies:
            crashes += 1
        left = await keys(store)
        for key in left:
            owner = layout.parse_result_file(key)
            assert owner is not None
            assert layout.result_key(owner) in left, key
            assert not owner.startswith("b/") or layout.result_key("b") in left, key
        past.before_delete = None
        await clean(past)
        assert await keys(store) == set()
    assert crashes == deletes >= 18  # each of them was the last once
    assert await keys(store) == set()


async def test_a_request_that_comes_again_meanwhile_is_answered_or_drawn_whole(store: Store) -> None:
    """At each delete a worker takes the same request: it is over, or no image is left that could be adopted."""
    bench = Bench(store)
    await draw(bench, "cat")
    answered = 0

    async def comes_again(_key: str) -> None:
        nonlocal answered
        images = [key for key in await keys(store) if key.startswith("results/") and key.endswith(".png")]
        held = await bench.take(bench.session("again"))
        assert held is None or images == []
        answered += held is None

    past = Past(store, before_delete=comes_again)
    await past.grow(40 * DAY)
    assert await clean(past) == ["cat"]
    assert answered == 4  # at the status, two images and the result: it was over
    assert await bench.take(bench.session("later")) is not None


async def test_what_was_drawn_again_since_the_survey_stays(store: Store) -> None:
    """Two people clean at the same time, and the request comes again in between."""
    bench = Bench(store)
    past = Past(store)
    await draw(bench, "cat")
    await past.grow(40 * DAY)
    slow = await survey(past, 30 * DAY)
    await clean(past)
    bench.now += 1
    claims = bench.session("again")
    held = await bench.must_take(claims)
    result = Result.ended("cat", "failed", None, request=Frozen.of(BODY), fingerprint=held.claim.fingerprint)
    assert await claims.commit(held, result)
    await remove(past, slow.going)
    assert (await bench.result()).status == "failed"


@pytest.mark.parametrize("clock", [-400 * DAY, 400 * DAY])
async def test_ages_are_by_the_stores_own_clock(store: Store, clock: float) -> None:
    """A machine whose clock is a year off removes the same."""
    past = Past(store, clock=clock)
    await draw(Bench(store), "old")
    await past.grow(31 * DAY)
    await draw(Bench(store), "young")
    assert await clean(past) == ["old"]
    assert {key for key in await keys(store) if key.startswith(layout.WORKERS)} == set()


async def test_a_short_age_is_refused(store: Store) -> None:
    """A worker that sleeps for a while may still commit."""
    with pytest.raises(ValueError, match="the least is 3600 s"):
        await survey(store, LEAST - 1)
