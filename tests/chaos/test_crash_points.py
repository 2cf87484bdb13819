"""A kill at every call of one request's life: whatever the moment, another worker ends it, once.

On a directory that is every call that changes the file system; on a bucket with a queue, every
call about the request, before it reaches the server and after it took effect. Chance would meet
some of these moments only once in a million.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from time import monotonic, sleep

import pytest

from tests.chaos.history import IMAGES, Wish, WitnessedStore, judge
from tests.chaos.nursery import Child, Nursery, nursery
from tests.chaos.places import CREDENTIALS, Folder
from tests.servers.fault_proxy import Call, Cut, FaultProxy, When, failing
from tests.servers.s3_front import S3Front, running
from tests.servers.sqs_front import Habits, SqsFront, answering

ABREAST = 12  # points at a time: most of one is waiting for a lease
TAG = {"content-md5": "first"}  # the etag of what the client wrote
WHENS: tuple[When, When] = ("before", "after")
BODY = json.dumps({"prompt": "x", "steps": 1, "number_of_images": IMAGES, "width": 64, "height": 64}).encode()
WISH = Wish("cat", BODY)
PATIENT = ["--lease", "600"]  # no heartbeat of the victim falls among the calls
HABITS = Habits(hours=0.03)  # a minute's visibility lasts 1.8 seconds
HEIR = ["--lease", "0.5"]  # seconds; it is the observer's lease that counts


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where the workers come from."""
    with nursery(tmp_path_factory.mktemp("logs")) as cradle:
        yield cradle


def until(condition: Callable[[], object], what: str, seconds: float = 240.0) -> None:
    ends = monotonic() + seconds
    while not condition():
        assert monotonic() < ends, what
        sleep(0.02)


def stopped(child: Child) -> None:
    child.send(SIGTERM)
    assert child.wait(120), "it does not stop"
    child.close()


# On a directory --------------------------------------------------------------------------------


def die_on_a_directory(home: Nursery, folder: Path, at: int) -> list[str]:
    """Let a worker die at its n-th call, another end the request; the calls that were noted."""
    folder.mkdir()
    here, trace = Folder(folder / "store"), folder / "trace"
    here.drop(WISH)
    options = [*here.options, "--renderer", "null"]
    facts = {"request": "cat.json", "at": at, "trace": str(trace)}
    victim = home.start(*options, *PATIENT, spoil="tests.chaos.dies", **facts)
    if at:
        assert victim.wait(240), f"call {at} did not come"
        victim.close()
        heir = home.start(*options, *HEIR)
        until(lambda: here.open_wishes() == 0 and here.is_tidy(), f"nobody ends what died at call {at}")
        stopped(heir)
    else:
        until(lambda: here.open_wishes() == 0 and here.is_tidy(), "a healthy worker does not end it")
        noted = trace.read_text().splitlines()
        stopped(victim)
        return noted
    verdict = here.judge()
    assert verdict.is_good, f"after call {at}: {verdict}"
    return trace.read_text().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_file_system_call_costs_nothing(home: Nursery, tmp_path: Path):
    """Each call of a whole life is met, and after each the request ends once, with whole images."""
    life = die_on_a_directory(home, tmp_path / "whole", 0)
    points = range(1, len(life) + 1)
    with ThreadPoolExecutor(ABREAST) as pool:
        traces = list(pool.map(lambda at: die_on_a_directory(home, tmp_path / str(at), at), points))
    assert [len(trace) for trace in traces] == list(points)
    kinds = Counter(line.split()[0] for line in life)
    print(f"{len(life)} points: {dict(kinds)}")
    assert len(life) >= 40
    assert kinds["link"] == 2 + IMAGES  # the claim, the images, the result


# On a bucket with a queue ----------------------------------------------------------------------


@dataclass(eq=False)
class Point:
    """One moment of one request's life, at which its worker is to die."""

    at: str = ""  # the call, such as "PUT claims/cat/000001"; "" for none
    time: int = 1  # its first, second, ... time
    when: When = "before"
    victim: Child | None = None
    born: threading.Event = field(default_factory=threading.Event)
    seen: list[str] = field(default_factory=list)  # calls about the request or its message
    struck: bool = False
    _known: dict[int, tuple[str, int]] = field(default_factory=dict)  # each call under way, and its time

    def see(self, call: Call, when: When) -> None:
        """Told of each call that passes a proxy; ends the caller when its time has come."""
        if when == "before" and self._is_counted(call):
            self.seen.append(f"{call.verb} {call.key}" if "/" in call.key else call.verb)
            self._known[id(call)] = (self.seen[-1], self.seen.count(self.seen[-1]))
        name = self._known.get(id(call)) if when == "before" else self._known.pop(id(call), None)
        if self.struck or name != (self.at, self.time) or when != self.when:
            return
        assert self.born.wait(60)
        assert self.victim is not None
        self.victim.send(SIGKILL)
        self.struck = True
        raise Cut

    def _is_counted(self, call: Call) -> bool:
        """What is about the request or its message; of the receives, the first."""
        if call.verb == "ReceiveMessage":
            return not any(seen.startswith("ReceiveMessage") for seen in self.seen)
        return "cat" in call.key or call.verb.startswith(("DeleteMessage", "ChangeMessage"))


@dataclass
class World:
    """A bucket server and a queue server, each behind a proxy; every point has a bucket of its own."""

    store: WitnessedStore = field(default_factory=WitnessedStore)
    points: dict[str, Point] = field(default_factory=dict)  # by bucket, which is also the queue's name
    queue: SqsFront = field(default_factory=lambda: SqsFront(HABITS))

    def __post_init__(self) -> None:
        self.front = S3Front(self.store, set())
        self.ways = [FaultProxy("", watch=self._see) for _ in range(2)]

    def _see(self, call: Call, when: When) -> None:
        point = self.points.get(call.path.partition("/")[0] or call.key)
        if point is not None:
            point.see(call, when)

    def live(self, home: Nursery, point: Point) -> Point:
        """Let a worker die at a point, another end the request."""
        name = f"point-{len(self.points)}"
        self.points[name] = point
        self.front.buckets.add(name)
        options = ["--store", f"s3://{name}", "--queue", self.ways[1].url + self.queue.add(name)]
        options += ["--renderer", "null", "--reconcile", "1"]
        environment = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": self.ways[0].url}
        asyncio.run(self.store.create(f"{name}/{WISH.key}", BODY, metadata=TAG))
        self.queue.announce(name, name, WISH.key)
        worker = point.victim = home.start(*options, *PATIENT, environment=environment)
        point.born.set()
        until(lambda: not worker.alive or self.is_over(name), f"nothing happened: {point.seen}")
        if point.struck:
            assert worker.wait(60)
            worker.close()
            worker = home.start(*options, *HEIR, environment=environment)
        until(lambda: self.is_over(name), f"nobody ends what died {point.when} {point.at}")
        worker.send(SIGKILL)  # its work is done; an orderly end would wait for a receive
        worker.close()
        verdict = judge(self.store.inside(name), [WISH], {})
        assert verdict.is_good, f"{point.when} {point.at}: {verdict}"
        return point

    def is_over(self, name: str) -> bool:
        keys = list(self.store.inside(name))
        over = f"results/{WISH.id}/result.json" in keys
        return (
            over
            and not self.queue.waiting(name)
            and not any(k.startswith(("claims", "requests")) for k in keys)
        )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_call_of_the_bucket_or_the_queue_costs_nothing(home: Nursery):
    """Before each call of a whole life, and after it took effect but before the worker hears of it."""
    world = World()
    with ExitStack() as stack:
        urls = [
            stack.enter_context(running(world.front)).url,
            stack.enter_context(answering(world.queue)).url,
        ]
        for way, way.upstream in zip(world.ways, urls, strict=True):
            stack.enter_context(failing(way))
        life = Counter(world.live(home, Point()).seen)
        moments = [(call, n + 1, when) for call in life for n in range(life[call]) for when in WHENS]
        with ThreadPoolExecutor(ABREAST) as pool:
            points = list(pool.map(lambda moment: world.live(home, Point(*moment)), moments))
    assert world.store.verdict.is_good, str(world.store.verdict)
    print(f"{sum(point.struck for point in points)} of {len(points)} points: {list(life)}")
    assert all(point.struck for point in points if point.time == 1)  # how often one looks may differ
    assert len(points) >= 20
