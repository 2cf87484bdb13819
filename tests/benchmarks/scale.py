"""How many store calls a fleet makes, and which of them grow faster than it: `run.py scale`.

Counts of real workers in virtual time (see `fleet`), so they are the same on every machine. docs/scale.md has them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.claims.claim import Timing
from tests.benchmarks.fleet import CountedStore, live, make_worker
from tests.benchmarks.table import Row

if TYPE_CHECKING:
    from tests.benchmarks.table import Table

WORKERS = (1, 10, 100, 1000)  # the last takes a core for minutes
QUICK = (1, 4)
_BODY = json.dumps({"prompt": "a red circle", "width": 64, "height": 64, "steps": 1, "seed": 1}).encode()

#: What a call is for, by its verb and the top folder of its key, in the words of docs/scale.md.
PURPOSES = {
    "heartbeats": [("put", "workers")],
    "sweeps: pages of workers/": [("list", "workers")],
    "sweeps: pages of claims/": [("list", "claims")],
    "sweeps: claims read": [("get", "claims")],
    "inbox: pages of requests/": [("list", "requests")],
    "cancelled? (a look at the result of what is in hand)": [("head", "results")],
    "status objects written": [("put", "status")],
    "requests: read, claimed, committed, tidied": [
        *(("get", "requests"), ("create", "claims"), ("get", "results"), ("delete", "requests")),
        *(("create", "results"), ("delete", "claims"), ("delete", "status")),
    ],
    "other": [("list", "status"), ("get", "workers"), ("delete", "workers")],
}


@dataclass(frozen=True, slots=True)
class Load:
    """What a fleet does."""

    workers: int
    ahead: int = 2  # images in the hands of each
    seconds: float = 10.0  # virtual, for an image
    waiting: int = 1000  # requests in the inbox beside those that are taken
    idle: bool = False  # there is no request at all
    warm: float = 30.0  # virtual seconds before the count
    window: float = 60.0  # virtual seconds that are counted
    few: int = Timing().few  # workers up to which each one reads every claim


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls of one window."""

    load: Load
    calls: Counter[tuple[str, str]]
    ended: int  # requests

    def rate(self, purpose: str) -> float:
        """Calls a second of the whole fleet."""
        return sum(self.calls[kind] for kind in PURPOSES[purpose]) / self.load.window

    @property
    def total(self) -> float:
        """Calls a second of the whole fleet, for every purpose."""
        return sum(n for (verb, _), n in self.calls.items() if verb != "lost") / self.load.window

    @property
    def lost(self) -> float:
        """Claims that another worker had first, for each request."""
        return self.calls["lost", "claims"] / max(1, self.ended)


def count(load: Load) -> Counts:
    """Let a fleet work for a while, and count a window of it."""
    return live(_count(load))


async def _count(load: Load) -> Counts:
    store = CountedStore()
    taken = load.workers * (load.ahead + 2 + (load.warm + load.window) / load.seconds)
    for number in range(0 if load.idle else int(taken) + load.waiting):
        key = f"requests/{number:07}.json"
        store._write(key, _BODY, {})
    workers = [
        make_worker(store, number, ahead=load.ahead, seconds=load.seconds, few=load.few)
        for number in range(load.workers)
    ]
    running = []
    for worker in workers:
        running.append(asyncio.create_task(worker.run()))
        await asyncio.sleep(min(1.0, 10.0 / load.workers))  # nobody starts a fleet in one moment
    await asyncio.sleep(load.warm)
    before = Counter(store.calls)
    await asyncio.sleep(load.window)
    calls = Counter(store.calls)
    calls.subtract(before)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert not any(worker.failed for worker in workers)
    ended = calls["delete", "requests"]  # in a steady state as many as end
    return Counts(load, calls, ended)


def measure(table: Table, quick: bool, sizes: tuple[int, ...] = ()) -> None:
    """Count fleets of several sizes, then ten workers that are idle, that hold more, and that have a full inbox."""
    logging.disable(logging.CRITICAL)  # a thousand workers have much to say
    for workers in sizes or (QUICK if quick else WORKERS):
        # A thousand read each other's claims a million times, so they are counted while they start: no image ends.
        small = Load(workers, ahead=1, seconds=120.0, warm=15.0, window=20.0)
        _show(table, "", Load(workers) if workers < 1000 else small)
    few = QUICK[-1] if quick else 10
    _show(table, ", idle", Load(few, idle=True, warm=120.0))
    if not quick:
        _show(table, ", 32 images of 1 s in hand", Load(few, ahead=32, seconds=1.0))
        _show(table, ", 20,000 requests wait", Load(few, waiting=20_000))


def _show(table: Table, what: str, load: Load) -> None:
    found = count(load)
    about = (
        f"each has {load.ahead} images of {load.seconds:g} s, {found.ended / load.window:.3g} end a second"
    )
    table.head(f"{load.workers:,} workers{what}: calls a second of the whole fleet", about)
    for purpose in PURPOSES:
        table.add(Row(purpose, [found.rate(purpose)], unit="1/s"))
    table.add(Row("all", [found.total], unit="1/s"))
    table.add(Row("all, for each worker", [found.total / load.workers], unit="1/s"))
    table.add(Row("claims that another had first, for each request", [found.lost], unit=""))
