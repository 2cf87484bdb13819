"""A whole history from one number: clients, workers, and everything that can go wrong.

First a stretch of chaos, drawn from the seed; then the faults stop, one fresh worker stays, and
everything that was promised must come to its end within a bounded time.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from infra.claims.claims import Claims
from schemas import layout
from schemas.result import Frozen, Result
from tests.chaos.law import Broken, is_kept, results_for
from tests.chaos.worker import Worker
from tests.chaos.world import Call, Outcome, World, at_once

IDS = ("a", "a/row", "b")
KINDS = ("fair", "fair", "fair", "invalid", "poison")
PATIENCE = 400.0  # virtual seconds after the last fault within which all must be over


@dataclass
class Simulation:
    """One history, step by step; the state machine and the seeded runs share it."""

    seed: int
    make: type[Claims] = Claims
    world: World = field(default_factory=World)
    workers: list[Worker] = field(default_factory=list)
    started: int = 0
    bodies: int = 0
    patience: float = PATIENCE

    # What can happen -----------------------------------------------------------------------

    def start_worker(self) -> None:
        self.started += 1
        session = f"w{self.started}"
        self.world.note(f"{session} starts")
        self.workers.append(self.new_worker(session))

    def new_worker(self, session: str) -> Worker:
        return Worker(self.world, session, self.seed, self.make)

    def kill_worker(self, which: int) -> None:
        self.workers.pop(which % len(self.workers)).kill()

    def drop(self, id: str, kind: str, *, again: bool = False) -> None:
        """A client writes a request; `again` repeats the last body of this id."""
        world, key = self.world, layout.request_key(id)
        bodies = [body for (other, _), body in world.law.promised.items() if other == id]
        if not (again and bodies):
            self.bodies += 1
            bodies.append(f"{kind} request {self.bodies}".encode())
        body = bodies[-1]

        def write() -> None:
            at_once(world.store.put(key, body))
            world.law.dropped(id, body, world.objects)

        world.client(f"drops {body.decode()} as {key}", write)

    def cancel(self, id: str) -> None:
        """A client cancels what is waiting under an id, by winning the race for its result."""
        claim = self.world.objects.get(layout.claim_key(id, 1))
        request = self.world.objects.get(layout.request_key(id))
        if claim is not None:
            body = json.loads(claim.body)["frozen"]["text"].encode()
        elif request is not None:
            body = request.body
        else:
            return
        result = Result(
            id=id,
            status="canceled",
            fingerprint=layout.fingerprint(body),
            request=Frozen.of(body),
            worker="client",
        )
        create = self.world.store.create
        self.world.client(f"cancels {id}", lambda: at_once(create(layout.result_key(id), result.to_json())))

    def step(self, rng: random.Random, *, faults: bool) -> None:
        """One store call happens, or nothing is ready and time passes."""
        world = self.world
        if world.ghosts and rng.random() < 0.05:
            world.land(rng.choice(world.ghosts))
            return
        ready = world.ready()
        if not ready:
            world.skip_to_next()
            return
        call = rng.choice(ready)
        outcome, after = _fate(rng, call) if faults and call.act is not None else ("done", "")
        world.now += rng.expovariate(20)  # seconds
        world.happen(call, outcome)
        if after == "crash":  # after the write, before hearing of it
            for worker in [w for w in self.workers if w.session == call.owner]:
                worker.kill()
        elif after == "pause":
            world.pause(call.owner, rng.uniform(1, 30))

    def trouble(self, rng: random.Random) -> None:
        """Once in a while somebody comes, goes, freezes, or drops something."""
        event = rng.random()
        if event < 0.03 or not self.workers:
            if len(self.workers) < 4:
                self.start_worker()
        elif event < 0.034:
            self.kill_worker(rng.randrange(8))
        elif event < 0.065:
            self.drop(rng.choice(IDS), rng.choice(KINDS), again=rng.random() < 0.5)
        elif event < 0.070:
            self.cancel(rng.choice(IDS))
        elif event < 0.074:
            self.workers[rng.randrange(len(self.workers))].draining = True
        self.bury()

    def bury(self) -> None:
        """Take the dead off the list, and show what a worker should never have raised."""
        for worker in self.workers:
            if worker.failure is not None:
                raise worker.failure
        self.workers = [w for w in self.workers if w.session not in self.world.dead]

    # The end -------------------------------------------------------------------------------

    async def finish(self, rng: random.Random) -> None:
        """No more faults; what was promised must end, and the bucket be tidy."""
        world = self.world
        if rng.random() < 0.5:
            while len(self.workers) > 1:  # one stays to do it all; otherwise the zombies wake and help
                self.kill_worker(rng.randrange(8))
        deadline = world.now + self.patience
        while world.ghosts or not self.is_over():
            self.bury()
            if not any(not w.draining for w in self.workers):
                self.start_worker()
            if world.now > deadline:
                left = sorted(k for k in world.objects if not k.startswith(("results/", "workers/")))
                raise Broken(f"invariant 6: never ends: {left}\n" + "\n".join(world.log[-60:]))
            await world.settle()
            self.step(rng, faults=False)
        self.bury()

    def is_over(self) -> bool:
        """Every promise kept, no claim and no request left."""
        objects = self.world.objects
        left = any(key.startswith(("requests/", "claims/")) for key in objects)
        return not left and all(results_for(id, f, objects) for id, f in self.world.law.promised)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()


def _fate(rng: random.Random, call: Call) -> tuple[Outcome, str]:
    """How a call ends, and what becomes of its caller; writes have the worse luck."""
    if not call.changes:
        outcome: Outcome = "refused" if rng.random() < 0.02 else "done"
        return outcome, "pause" if rng.random() < 0.02 else ""
    outcomes: list[Outcome] = ["done", "answer lost", "refused", "ghost", "echo"]
    outcome = rng.choices(outcomes, [83, 4, 3, 5, 5])[0]
    return outcome, rng.choices(["", "crash", "pause"], [92, 3, 5])[0]


async def run(seed: int, make: type[Claims] = Claims, steps: int = 500) -> list[str]:
    """Live through one history; the events, one a line."""
    return await history(Simulation(seed, make), steps)


async def history(simulation: Simulation, steps: int) -> list[str]:
    """From the first request to the last result."""
    rng = random.Random(simulation.seed)
    try:
        for id in IDS:
            simulation.drop(id, rng.choice(KINDS))
        for _ in range(steps):
            simulation.trouble(rng)
            await simulation.world.settle()
            simulation.step(rng, faults=True)
        await simulation.finish(rng)
    finally:
        simulation.close()
        await simulation.world.settle()
    assert all(is_kept(id, f, simulation.world.objects) for id, f in simulation.world.law.promised)
    return simulation.world.log
