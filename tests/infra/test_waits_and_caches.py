"""What every room shares: waits between tries, bounded gathers, bounded caches."""

from __future__ import annotations

import asyncio
import random
from itertools import islice

import pytest

from infra.backoff import backoff
from infra.gather import gather_bounded
from infra.lru import LruCache

pytestmark = pytest.mark.anyio


def test_waits_grow_up_to_the_longest():
    """Each wait is twice the last, until the longest."""
    assert list(islice(backoff(0.5, 3), 5)) == [0.5, 1, 2, 3, 3]
    assert list(islice(backoff(1, 100, growth=3), 3)) == [1, 3, 9]


def test_jitter_keeps_the_mean_and_spreads_the_waits():
    """With a random number generator the waits lie between 0 and twice their length."""
    waits = list(islice(backoff(2, 2, random.Random(1)), 1000))
    assert 0 <= min(waits) < 0.1
    assert 3.9 < max(waits) <= 4
    assert 1.8 < sum(waits) / 1000 < 2.2


async def test_no_more_than_the_limit_at_a_time():
    """Ten pieces of work, three at a time; the answers come in the order of the items."""
    under_way = most = 0

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return item * item

    assert await gather_bounded(range(10), 3, work) == [n * n for n in range(10)]
    assert most == 3


async def test_an_error_is_raised_and_the_rest_goes_on():
    """As with `asyncio.gather`: one failure is told, and takes nothing else with it."""
    done: list[int] = []

    async def work(item: int) -> None:
        if item == 0:
            raise ValueError("the first one")
        await asyncio.sleep(0)
        done.append(item)

    with pytest.raises(ValueError, match="the first one"):
        await gather_bounded(range(3), 2, work)
    await asyncio.sleep(0.01)
    assert done == [1, 2]


def test_a_full_cache_drops_what_was_used_longest_ago():
    """Reading an entry keeps it; writing one again does, too."""
    cache: LruCache[str, int] = LruCache(3)
    for key in "abc":
        cache[key] = 0
    assert cache["a"] == 0
    cache["b"] = 1
    cache["d"] = 2

    assert sorted(cache) == ["a", "b", "d"]
    assert cache.get("c") is None
    assert cache.setdefault("a", 7) == 0
    assert cache.pop("a", None) == 0
    assert len(cache) == 2
