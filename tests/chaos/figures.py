"""Figures for docs/reliability.md that the chaos run does not print: how soon, how often, how much slower.

python -m tests.chaos.figures [recovery] [answers] [speed] [outage] [--number 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGKILL

from infra.stores.s3 import S3Store
from tests.chaos import weather
from tests.chaos.history import IMAGES, Wish
from tests.chaos.nursery import Nursery, nursery
from tests.chaos.places import CREDENTIALS, Bucket, Folder, place
from tests.servers.fault_proxy import FaultProxy, Rule, failing
from tests.servers.s3_front import S3Front, running

ABREAST = 6  # crashes timed at a time: nearly all of one is waiting


def recovery(number: int, lease: float) -> None:
    """From a kill in the middle of a request to the result that another worker makes."""
    with (
        tempfile.TemporaryDirectory(prefix="figures-") as folder,
        nursery(Path(folder) / "logs") as home,
        ThreadPoolExecutor(ABREAST) as pool,
    ):
        root = Path(folder)
        seconds = sorted(pool.map(lambda n: _crash(home, root / str(n), lease), range(number)))
    last = seconds[min(number - 1, int(0.99 * number))]
    print(
        f"recovery, lease {lease:g} s: {number} kills, from the kill to the result "
        f"p50 {statistics.median(seconds):.1f} s, p99 {last:.1f} s, longest {seconds[-1]:.1f} s",
        flush=True,
    )


def _crash(home: Nursery, folder: Path, lease: float) -> float:
    folder.mkdir()
    here = Folder(folder / "store")
    body = {"prompt": "x", "steps": 50, "number_of_images": IMAGES, "width": 64, "height": 64}
    here.drop(Wish("cat", json.dumps(body).encode()))
    options = [*here.options, "--renderer", "null", "--lease", str(lease)]
    slow, fast = json.dumps({"seconds_per_step": 1}), json.dumps({})
    victim = home.start(*options, "--null", slow)
    _until(lambda: (here.root / "claims" / "cat" / "000001").exists())
    heir = home.start(*options, "--null", fast)
    _until(lambda: "ready" in heir.log.read_text() if heir.log.exists() else False)
    time.sleep(0.3 * lease)  # so that the heir knows the victim's heartbeat, as anybody at work does
    victim.send(SIGKILL)
    killed = time.monotonic()
    _until(lambda: here.open_wishes() == 0, 10 * lease + 60)
    seconds = time.monotonic() - killed
    heir.send(SIGKILL)
    for child in (victim, heir):
        child.close()
    return seconds


def answers(number: int) -> None:
    """Creates whose first answer is lost after the write took effect."""

    async def create_all(url: str) -> int:
        os.environ.update({**CREDENTIALS, "AWS_ENDPOINT_URL_S3": url})
        async with S3Store("s3://bucket") as store:
            made = 0
            for n in range(number):
                made += await store.create(f"results/r{n}/result.json", b"%d" % n)
            return made

    with running(S3Front()) as front, failing(FaultProxy(front.url, [Rule("lost", verb="PUT")])) as proxy:
        made = asyncio.run(create_all(proxy.url))
        print(
            f"lost answers: {number} creates, {proxy.injected['lost']} answers lost after the write, "
            f"{made} creates rightly taken for done",
            flush=True,
        )


def speed(number: int) -> None:
    """What a failing network costs: the same requests through a good one and a bad one."""
    weathers = {"good": [], "failing": weather.promised()}
    rates = {name: _rate(number, rules) for name, rules in weathers.items()}
    print(
        f"speed: {rates['good']:.1f} requests/s on a good network, {rates['failing']:.1f} on a failing one: "
        f"{100 * rates['failing'] / rates['good']:.0f} %",
        flush=True,
    )


def _rate(number: int, rules: list[Rule]) -> float:
    body = {"prompt": "x", "steps": 1, "number_of_images": IMAGES, "width": 64, "height": 64}
    with (
        tempfile.TemporaryDirectory(prefix="figures-") as folder,
        place("s3", Path(folder), 1, rules=rules) as here,
        nursery(Path(folder) / "logs") as home,
    ):
        for n in range(number):
            here.drop(Wish(f"r{n}", json.dumps(body).encode()))
        began = time.monotonic()
        options = [*here.options, "--renderer", "null"]
        workers = [home.start(*options, environment=here.environment) for _ in range(3)]
        _until(lambda: here.open_wishes() == 0, 600)
        rate = number / (time.monotonic() - began)
        for worker in workers:
            worker.send(SIGKILL)
            worker.close()
    return rate


def outage(seconds: float) -> None:
    """A bucket that is away in the middle of the work, and comes back."""
    number = 200
    with (
        tempfile.TemporaryDirectory(prefix="figures-") as folder,
        place("s3", Path(folder), 1, kind=True) as here,
        nursery(Path(folder) / "logs") as home,
    ):
        assert isinstance(here, Bucket)
        options = [*here.options, "--renderer", "null", "--null", json.dumps({"seconds_per_step": 0.02})]
        workers = [home.start(*options, environment=here.environment) for _ in range(3)]
        body = {"prompt": "x", "steps": 5, "number_of_images": IMAGES, "width": 64, "height": 64}
        for n in range(number):
            here.drop(Wish(f"r{n}", json.dumps(body).encode()))
        _until(lambda: here.open_wishes() < number - 40)
        here.network[0].rules[:] = [Rule("hang", 0.1, seconds=5), Rule("reset", 0.5), Rule("slow_down")]
        time.sleep(0.5)
        still = here.open_wishes()
        time.sleep(seconds)
        assert here.open_wishes() == still, "something ended while the bucket was away"
        alive = [worker.alive for worker in workers]
        memory = max(_resident(worker.pid) for worker in workers)
        here.network[0].rules.clear()
        back = time.monotonic()
        _until(lambda: here.open_wishes() < still, 300)
        first = time.monotonic() - back
        _until(lambda: here.open_wishes() == 0 and here.is_tidy(), 300)
        last = time.monotonic() - back
        verdict = here.judge()
        print(
            f"outage: away for {seconds:.0f} s with {still} requests open: {verdict}; {sum(alive)} of 3 workers "
            f"alive, {memory:.0f} MiB at most; the first result {first:.1f} s after its return, the last "
            f"{last:.1f} s",
            flush=True,
        )
        for worker in workers:
            worker.send(SIGKILL)
            worker.close()


def _resident(pid: int) -> float:
    """MiB in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("which", nargs="*", default=["recovery", "answers", "speed", "outage"])
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--lease", type=float, default=2.0, help="seconds")
    parser.add_argument("--away", type=float, default=600.0, help="seconds of the outage")
    asked = parser.parse_args()
    for name in asked.which:
        if name == "recovery":
            recovery(asked.number, asked.lease)
        elif name == "outage":
            outage(asked.away)
        else:
            {"answers": answers, "speed": speed}[name](asked.number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
