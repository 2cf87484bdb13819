"""In a large fleet a sweep reads others' claims only when it must, and misses none."""

from __future__ import annotations

import pytest

from infra.stores.memory import MemoryStore
from infra.stores.store import Stored
from schemas.errors import StoreUnavailable
from tests.infra.claims_bench import LEASE, Bench

pytestmark = pytest.mark.anyio


class CountingStore(MemoryStore):
    """Counts the claims that are read, and can lose the answer to a create."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        self.loses_answers = False

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        self.read += key.startswith("claims/")
        return await super().get(key, max_bytes=max_bytes)

    async def create(self, key: str, body: bytes, **options: object) -> bool:
        created = await super().create(key, body, **options)  # type: ignore[arg-type]
        if self.loses_answers and key.startswith("claims/"):
            raise StoreUnavailable("no answer")
        return created


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def bench(store: CountingStore) -> Bench:
    return Bench(store, few=0)


async def test_while_its_worker_lives_a_claim_is_not_read(bench: Bench, store: CountingStore) -> None:
    worker, others = bench.session("worker"), [bench.session(f"other{n}") for n in range(3)]
    await worker.beat()
    await bench.must_take(worker)
    read = store.read  # by whoever took it
    for _ in range(6):
        await worker.beat()
        assert [await other.sweep() for other in [worker, *others]] == [[], [], [], []]
        bench.now += LEASE / 2
    assert store.read == read


async def test_after_a_death_the_claims_that_are_there_are_read_once(
    bench: Bench, store: CountingStore
) -> None:
    dead, live, other = bench.session("dead"), bench.session("live"), bench.session("other")
    for worker in (dead, live):
        await worker.beat()
    await bench.must_take(dead, "a")
    await bench.must_take(live, "b")
    assert await other.sweep() == []
    bench.now += LEASE
    await live.beat()
    [taken] = await other.sweep()
    assert (taken.claim.id, taken.claim.epoch) == ("a", 2)
    read = store.read
    await bench.must_take(live, "c")
    again = store.read
    bench.now += LEASE / 2
    await live.beat()
    assert await other.sweep() == []
    assert store.read == again  # the same death is no reason to read what came later
    assert again - read <= 1


async def test_a_second_death_is_searched_like_the_first(bench: Bench) -> None:
    first, second, other = bench.session("first"), bench.session("second"), bench.session("other")
    for worker, id in ((first, "a"), (second, "b")):
        await worker.beat()
        await bench.must_take(worker, id)
    await other.sweep()
    bench.now += LEASE
    await second.beat()
    assert [held.claim.id for held in await other.sweep()] == ["a"]
    await bench.must_take(second, "c")
    bench.now += LEASE
    assert {held.claim.id for held in await other.sweep()} == {"b", "c"}


async def test_few_workers_read_each_claim_after_a_death_and_more_while_it_stays(
    bench: Bench, store: CountingStore
) -> None:
    """Not all at once, as a fleet of hundreds has thousands of claims."""
    names = [f"w{number}" for number in range(100)]
    workers = [bench.session(name) for name in names]
    dead = bench.session("dead")
    for worker in [dead, *workers]:
        await worker.beat()
    for number in range(10):
        await bench.must_take(dead, f"r{number}")
    readers = []
    for leases in (0, 1, 2, 6):
        bench.now = 1000.0 + leases * LEASE
        for worker in workers:
            await worker.beat()
        read = store.read
        for worker in workers:
            await worker.sweep(limit=0)
        readers.append(store.read - read)
    assert readers[0] == 0
    assert 20 < readers[1] < 80  # of a thousand: four of each claim
    assert 20 < readers[2] < 80  # four more
    assert sum(readers) == 1000


async def test_a_claim_whose_worker_has_no_heartbeat_is_found_by_its_age(
    bench: Bench, store: CountingStore
) -> None:
    """Of a hundred workers few read it at first, and in the end all do."""
    for number in range(100):
        await bench.session(f"w{number}").beat()
    await bench.must_take(bench.session("gone"))
    observers = [bench.session(f"w{number}") for number in range(0, 100, 2)]
    readers = []
    for spans in (0, 3.9, 4.1, 12, 40):
        bench.now = 1000.0 + spans * LEASE
        for number in range(100):
            await bench.session(f"w{number}").beat({"spans": spans})
        read = store.read
        for observer in observers:
            await observer.sweep(limit=0)
        readers.append(store.read - read)
    assert readers[:2] == [0, 0]
    assert 0 < readers[2] + readers[3] < 15
    assert sum(readers) == len(observers)
    bench.now += LEASE
    assert [held.claim.id for held in await observers[0].sweep()] == ["cat"]


async def test_an_own_claim_without_an_answer_is_found_at_once(bench: Bench, store: CountingStore) -> None:
    worker = bench.session("worker")
    await worker.beat()
    store.loses_answers = True
    with pytest.raises(StoreUnavailable):
        await bench.take(worker)
    store.loses_answers = False
    [held] = await worker.sweep()
    assert (held.claim.id, held.claim.epoch) == ("cat", 1)


async def test_who_leaves_with_work_in_hand_leaves_the_heartbeat(bench: Bench) -> None:
    """So the others see it die, and look for what it had."""
    leaver, other = bench.session("leaver"), bench.session("other")
    await leaver.beat()
    held = await bench.must_take(leaver)
    await leaver.retire()
    assert await bench.keys("workers/") == ["workers/leaver"]
    assert [held.claim.id for held in await bench.sweep_after_lease(other)] == ["cat"]
    await leaver.release(held, "drain")
    await leaver.retire()
    assert await bench.keys("workers/") == []
