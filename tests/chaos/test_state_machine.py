"""Hypothesis chooses every event, one by one, and shrinks what breaks to the shortest history.

The seeded runs (test_simulation.py) live long lives; this machine looks for short, nasty ones:
it picks which waiting store call happens next, how, and what befalls its caller.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.chaos.depth import QUICK, is_long
from tests.chaos.simulation import IDS, KINDS, Simulation
from tests.chaos.still import StillLoop

pytestmark = pytest.mark.timeout(0 if is_long() else 900)
ids = st.sampled_from(IDS)
which = st.integers(0, 11)


class Bucket(RuleBasedStateMachine):
    """Several workers on one bucket; the law is checked at every change, the end at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = StillLoop()
        self.live: Simulation

    @initialize(seed=st.integers(0, 3), kind=st.sampled_from(KINDS))
    def begin(self, seed: int, kind: str) -> None:
        async def start() -> None:
            self.live = Simulation(seed)
            self.live.drop("a", kind)
            self.live.start_worker()
            self.live.start_worker()
            await self.live.world.settle()

        self.loop.run_until_complete(start())

    @rule(which=which, outcome=st.sampled_from(["done"] * 5 + ["answer lost", "refused", "ghost", "echo"]))
    def happen(self, which: int, outcome: str) -> None:
        """One waiting store call happens in one of the four ways."""
        ready = self.live.world.ready()
        if not ready:
            self.live.world.skip_to_next()
        else:
            self.live.world.happen(ready[which % len(ready)], outcome)  # type: ignore[arg-type]
        self._settle()

    @rule(which=which, calls=st.integers(3, 25))
    def proceed(self, which: int, calls: int) -> None:
        """One worker runs on undisturbed for a while."""
        for _ in range(calls):
            mine = (
                [w for w in self.live.workers][which % len(self.live.workers) :][:1]
                if self.live.workers
                else []
            )
            ready = [c for c in self.live.world.ready() if mine and c.owner == mine[0].session]
            if ready:
                self.live.world.happen(ready[0])
            else:
                self.live.world.skip_to_next()
            self._settle()

    @precondition(lambda self: self.live.world.ghosts)
    @rule(which=which)
    def land(self, which: int) -> None:
        """A write that was given up arrives."""
        ghosts = self.live.world.ghosts
        self.live.world.land(ghosts[which % len(ghosts)])

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.live.world.now += seconds

    @precondition(lambda self: self.live.workers)
    @rule(which=which, seconds=st.sampled_from([2.0, 8.0, 20.0]))
    def pause(self, which: int, seconds: float) -> None:
        """A worker stands still, perhaps past its lease: a zombie in the making."""
        self.live.world.pause(self.live.workers[which % len(self.live.workers)].session, seconds)

    @precondition(lambda self: self.live.workers)
    @rule(which=which)
    def kill(self, which: int) -> None:
        self.live.kill_worker(which)
        self._settle()

    @precondition(lambda self: len(self.live.workers) < 3)
    @rule()
    def start(self) -> None:
        async def start() -> None:
            self.live.start_worker()

        self.loop.run_until_complete(start())

    @rule(id=ids, kind=st.sampled_from(KINDS), again=st.booleans())
    def drop(self, id: str, kind: str, again: bool) -> None:
        """A client writes a request: new, the same again, or another body under a used name."""

        async def drop() -> None:
            self.live.drop(id, kind, again=again)

        self.loop.run_until_complete(drop())

    @rule(id=ids)
    def cancel(self, id: str) -> None:
        async def cancel() -> None:
            self.live.cancel(id)

        self.loop.run_until_complete(cancel())

    def teardown(self) -> None:
        """With one worker left alive and no more faults, all ends; and the dead stay dead."""

        async def end() -> None:
            try:
                await self.live.finish(random.Random(0))
            finally:
                self.live.close()
                await self.live.world.settle()

        if hasattr(self, "live"):
            self.loop.run_until_complete(end())
        self.loop.close()

    def _settle(self) -> None:
        self.loop.run_until_complete(self.live.world.settle())
        self.live.bury()


TestBucket = Bucket.TestCase
if not is_long():
    TestBucket.settings = QUICK
