"""The running system under faults: real workers, killed, frozen and stopped, behind a failing network.

    python -m tests.chaos.run --requests 100000 --harms 10000 --state chaos.jsonl

runs in rounds, each in a fresh place, and prints a line for each. What is in the state file counts:
a run that was cut off goes on where it stopped. `make chaos` does this and the other long proofs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.history import IMAGES, Verdict, Wish, charged, renderings, takeovers
from tests.chaos.nursery import Child, Nursery, nursery
from tests.chaos.places import Place, place

TIERS = ("directory", "s3", "queue")
LEASE = 2.0  # seconds
BACKLOG = 40  # requests that wait, at most
HARMS = {"kill": 6, "pause": 2, "drain": 2}  # how often each is drawn
STUCK = 90.0  # seconds without any progress, after which what is open counts as lost


@dataclass(frozen=True)
class Round:
    """One stretch of chaos, drawn from a seed."""

    tier: str
    seed: int
    requests: int
    harms: int
    workers: int = 3
    only: str = ""  # one kind of harm, "" for all


@dataclass
class Fleet:
    """The workers that are alive, and what is done to them."""

    home: Nursery
    place: Place
    diary: Path
    rng: random.Random
    only: str = ""
    workers: list[Child] = field(default_factory=list)
    frozen: list[tuple[float, Child]] = field(default_factory=list)  # until when, by the monotonic clock
    ending: list[tuple[float, Child]] = field(default_factory=list)  # since when
    longest_end: float = 0.0  # seconds from a signal to the end
    counts: Counter[str] = field(default_factory=Counter)

    def start(self) -> Child:
        null = {"diary": str(self.diary), "seconds_per_step": 0.005, "crash_on": "poison"}
        fixed = ["--renderer", "null", "--lease", str(LEASE), "--grace", "1", "--max-attempts", "6"]
        options = [*self.place.options, *fixed, "--null", json.dumps(null)]
        return self.home.start(*options, environment=self.place.environment)

    def harm(self) -> None:
        """Do something to one of them; who is gone is replaced."""
        which = self.rng.randrange(len(self.workers))
        victim = self.workers[which]
        what = self.only or self.rng.choices(list(HARMS), list(HARMS.values()))[0]
        if what == "pause":
            victim.send(signal.SIGSTOP)
            self.frozen.append((time.monotonic() + LEASE * self.rng.uniform(1.2, 2.5), victim))
        else:
            victim.send(signal.SIGKILL if what == "kill" else signal.SIGTERM)
            victim.send(signal.SIGCONT)
            self.ending.append((time.monotonic(), victim))
            self.workers[which] = self.start()
        self.counts[what] += 1

    def tend(self) -> None:
        """Wake those whose time has come; replace those that ended by themselves."""
        now = time.monotonic()
        for _, child in [entry for entry in self.frozen if entry[0] <= now]:
            child.send(signal.SIGCONT)
        self.frozen = [entry for entry in self.frozen if entry[0] > now]
        for which, child in enumerate(self.workers):
            if not child.alive:
                self.counts["ended by itself"] += 1
                self.workers[which] = self.start()
        for since, child in [entry for entry in self.ending if not entry[1].alive]:
            self.longest_end = max(self.longest_end, now - since)
            self.ending.remove((since, child))
            child.close()


def live(plan: Round, folder: Path) -> tuple[Verdict, dict[str, Any]]:
    """Live through a round; the verdict, and the figures."""
    rng = random.Random(f"{plan.tier}/{plan.seed}")
    began = time.monotonic()
    with place(plan.tier, folder, plan.seed) as here, nursery(folder / "logs") as home:
        fleet = Fleet(home, here, folder / "diary", rng, plan.only)
        fleet.workers = [fleet.start() for _ in range(plan.workers)]
        dropped = 0
        for event in range(1, plan.harms + 1):
            while dropped < plan.requests * event // plan.harms:
                here.drop(_wish(dropped, rng))
                dropped += 1
            _until(lambda: here.open_wishes() <= BACKLOG, fleet)
            _rest(rng.uniform(0.05, 0.4), fleet)
            fleet.harm()
        ended = _until(lambda: here.open_wishes() == 0, fleet) and _until(lambda: _is_calm(fleet), fleet)
        seconds = time.monotonic() - began
        for child in fleet.workers:
            child.send(signal.SIGCONT)
            child.send(signal.SIGTERM)
        stopped = all([child.wait(120) for child in fleet.workers])
    verdict = here.judge()
    if not (ended and stopped):
        verdict.left.append("it did not end" if not ended else "a worker did not stop when told to")
    verdict.doubled += _overdrawn(folder)
    return verdict, _figures(plan, fleet, here, folder, seconds, verdict)


def _wish(number: int, rng: random.Random) -> Wish:
    """One in forty is invalid, one in two hundred kills whoever draws it."""
    id = f"r{number}"
    body: dict[str, Any] = {"id": id, "prompt": f"p{number}", "steps": 2, "number_of_images": IMAGES}
    body |= {"width": 64, "height": 64}
    fate = rng.random()
    if fate < 0.025:
        return Wish(id, json.dumps({**body, "stepps": 5}).encode(), "failed")
    if fate < 0.030:
        return Wish(id, json.dumps({**body, "prompt": "poison"}).encode(), "failed")
    return Wish(id, json.dumps(body).encode())


def _until(condition: Any, fleet: Fleet) -> bool:
    """Wait while anything goes on; False when nothing has happened for long."""
    quiet = time.monotonic()
    last = -1
    while not condition():
        fleet.tend()
        now = fleet.place.open_wishes()
        if now != last:
            last, quiet = now, time.monotonic()
        if time.monotonic() - quiet > STUCK:
            return False
        time.sleep(0.03)
    return True


def _is_calm(fleet: Fleet) -> bool:
    """Whether nothing is left, and nobody who could still leave something: what an end leaves, others sweep up."""
    return not fleet.ending and not fleet.frozen and fleet.place.is_tidy()


def _rest(seconds: float, fleet: Fleet) -> None:
    fleet.tend()
    time.sleep(seconds)


def _overdrawn(folder: Path) -> list[str]:
    """Images that were drawn more often than takeovers and lost renderers explain."""
    allowed = takeovers(folder / "logs")
    losses = sum(
        log.read_text(errors="replace").count("renderer lost") for log in (folder / "logs").iterdir()
    )
    return [
        f"{id}/{index} was drawn {times} times after {allowed[id]} takeovers"
        for (id, index), times in renderings(folder / "diary").items()
        if times > 1 + allowed[id] + losses
    ]


def _figures(
    plan: Round, fleet: Fleet, here: Place, folder: Path, seconds: float, verdict: Verdict
) -> dict[str, Any]:
    drawn = renderings(folder / "diary")
    faults = Counter({name: number for name, number in here.figures.items() if number})
    return {
        "tier": plan.tier,
        "seed": plan.seed,
        "requests": plan.requests,
        "images": len(drawn),
        "drawn again": drawn.total() - len(drawn),
        **{what: fleet.counts[what] for what in HARMS},
        "lost": len(verdict.lost),
        "doubled": len(verdict.doubled),
        "torn": len(verdict.torn),
        "left": len(verdict.left),
        "seconds": round(seconds, 1),
        "attempts charged": charged(folder / "logs"),
        "longest end": round(fleet.longest_end, 1),
        "faults": dict(faults),
    }


COLUMNS = (
    *("tier", "rounds", "requests", "images", "kill", "pause", "drain", "faults", "lost", "doubled", "torn"),
    *("left", "drawn again %", "requests/s"),
)
_NO_FAULTS = ("calls", "delivered", "half-written files")


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One line for each tier, all rounds together."""
    lines = []
    for tier in TIERS:
        own = [row for row in rows if row["tier"] == tier]
        if not own:
            continue
        total = {
            name: sum(row[name] for row in own) for name in own[0] if isinstance(own[0][name], (int, float))
        }
        faults = sum(n for row in own for name, n in row["faults"].items() if name not in _NO_FAULTS)
        facts = {**total, "tier": tier, "rounds": len(own), "faults": faults}
        facts["drawn again %"] = f"{100 * total['drawn again'] / max(1, total['images']):.2f}"
        facts["requests/s"] = f"{total['requests'] / total['seconds']:.1f}"
        lines.append([str(facts[name]) for name in COLUMNS])
    return lines


def show(rows: list[dict[str, Any]]) -> str:
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *table(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=600, help="in all tiers together")
    parser.add_argument("--harms", type=int, default=60, help="kills, pauses and drains among them")
    parser.add_argument("--round", type=int, default=200, help="requests of a round")
    parser.add_argument("--tiers", default=",".join(TIERS))
    parser.add_argument("--only", default="", choices=["", *HARMS], help="one kind of harm")
    parser.add_argument("--state", type=Path, help="a file that keeps the rounds that are done")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after these")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    tiers = asked.tiers.split(",")
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    if asked.state and asked.state.exists():
        rows = [json.loads(line) for line in asked.state.read_text().splitlines()]
    good = all(not (row["lost"] or row["doubled"] or row["torn"] or row["left"]) for row in rows)
    while sum(row["requests"] for row in rows) < asked.requests and time.monotonic() - began < asked.seconds:
        number = len(rows)
        harms = max(1, round(asked.round * asked.harms / asked.requests))
        plan = Round(tiers[number % len(tiers)], asked.seed + number, asked.round, harms, only=asked.only)
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        verdict, figures = live(plan, folder)
        rows.append(figures)
        print(json.dumps(figures), flush=True)
        if verdict.is_good:
            shutil.rmtree(folder)
        else:
            print(f"  {verdict}\n  the workers' logs are in {folder}", flush=True)
        good = good and verdict.is_good
        if asked.state:
            with asked.state.open("a") as state:
                state.write(json.dumps(figures) + "\n")
    print(show(rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
