"""Hundreds of histories, each drawn from one number; and the proof's own proof: mutants.

`pytest tests/chaos --hypothesis-profile=long` lives through many more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable

import pytest

from infra.claims.claims import Claims
from infra.stores.store import Stored
from schemas import layout
from schemas.errors import NotFound
from tests.chaos.depth import is_long
from tests.chaos.law import Broken
from tests.chaos.mutants import MUTANTS, KeepsWhatIsLost, OneIdOneBody, RemembersWhatIsGone
from tests.chaos.simulation import run
from tests.chaos.still import live
from tests.chaos.world import ContentTagged
from tests.infra.claims_bench import BODY, Bench, success

Story = Callable[[type[Claims]], Coroutine[None, None, bool]]
HISTORIES = 4000 if is_long() else 2000
STEPS = 500 if is_long() else 200  # of chaos, before all must come to its end
pytestmark = pytest.mark.timeout(0 if is_long() else 900)


@pytest.mark.parametrize("block", range(8))
def test_no_history_breaks_the_law(block: int) -> None:
    """Crashes, pauses, lost answers, late writes and zombies leave one true result per request."""
    size = HISTORIES // 8
    _live_through(range(block * size, (block + 1) * size), steps=STEPS)


def test_the_same_number_gives_the_same_history() -> None:
    """Nothing but the seed decides: two runs agree line for line, so every failure can be replayed."""
    assert live(run(7)) == live(run(7))


@pytest.mark.parametrize("make", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_broken_rule_is_noticed(make: type[Claims]) -> None:
    """Each rule of the protocol is needed: without it some history breaks the invariant that it serves."""
    invariant = (make.__doc__ or "").split(":")[0].lower()
    with pytest.raises(Broken, match=f"^{invariant}: "):
        _live_through(range(240), make)


async def _two_bodies_race_for_a_name(make: type[Claims]) -> bool:
    """A commit meets another body's result; is the own one answered all the same?"""
    bench = Bench()
    claims = bench.session("w", make=make)
    held = await bench.must_take(claims)
    other = success(held, []).model_copy(update={"fingerprint": "another body's"})
    await bench.store.create("results/cat/result.json", other.to_json())
    await claims.commit(held, success(held, []))
    return layout.result_key(layout.other_body_id("cat", layout.fingerprint(BODY))) in await bench.keys()


async def _a_zombie_outlives_its_heir(make: type[Claims]) -> bool:
    """A worker whose claim was taken over is the last one left; does it take it back?"""
    bench = Bench()
    zombie = bench.session("zombie", make=make)
    await bench.must_take(zombie)
    await bench.sweep_after_lease(bench.session("heir"))
    return bool(await bench.sweep_after_lease(zombie))


class _Flickering(ContentTagged):
    """A bucket whose one claim is gone when it is first read, and made again by a late try of its maker."""

    flickers = True

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        if self.flickers and layout.parse_claim(key):
            self.flickers = False
            raise NotFound(key)
        return await super().get(key, max_bytes=max_bytes)


async def _a_claim_comes_again(make: type[Claims]) -> bool:
    """Whoever met the gap in a dead worker's claim: does it take the claim over all the same?"""
    bench = Bench(_Flickering())
    await bench.must_take(bench.session("dead"))
    heir = bench.session("heir", make=make)
    return bool(await bench.sweep_after_lease(heir) or await bench.sweep_after_lease(heir))


@pytest.mark.parametrize(
    ("story", "mutant"),
    [
        (_two_bodies_race_for_a_name, OneIdOneBody),
        (_a_zombie_outlives_its_heir, KeepsWhatIsLost),
        (_a_claim_comes_again, RemembersWhatIsGone),
    ],
)
def test_a_broken_rule_that_chance_seldom_meets(story: Story, mutant: type[Claims]) -> None:
    """What chance meets once in a thousand histories is told as a story: with the mutant it ends badly."""
    assert asyncio.run(story(Claims))
    assert not asyncio.run(story(mutant))


def _live_through(seeds: Iterable[int], make: type[Claims] = Claims, steps: int = 500) -> None:
    for seed in seeds:
        try:
            live(run(seed, make, steps))
        except BaseException as error:
            error.add_note(f"replay it: live(run({seed}, steps={steps}))")
            raise
