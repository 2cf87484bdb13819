"""Where a chaos run takes place: a directory, a bucket behind a failing network, or that and a queue.

Each place takes what a client drops, says which requests have ended, and can be judged.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from tests.chaos import weather
from tests.chaos.history import Verdict, Wish, WitnessedStore, files, judge
from tests.servers.fault_proxy import FaultProxy, Rule, failing
from tests.servers.s3_front import S3Front, running
from tests.servers.sqs_front import Habits, SqsFront, answering
from tests.worker_process import files as files_in

BUCKET = "bucket"
QUEUE = "work"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Place(Protocol):
    """What a run asks of the place that it happens in."""

    options: list[str]
    environment: dict[str, str]
    figures: Counter[str]

    def drop(self, wish: Wish) -> None: ...
    def open_wishes(self) -> int: ...
    def is_tidy(self) -> bool: ...
    def judge(self) -> Verdict: ...


@dataclass
class Folder:
    """A directory."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    figures: Counter[str] = field(default_factory=Counter)
    wishes: list[Wish] = field(default_factory=list)
    _open: dict[str, Wish] = field(default_factory=dict)
    _seen: dict[str, bytes] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        return ["--store", str(self.root)]

    def drop(self, wish: Wish) -> None:
        path = self.root / wish.key
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(path.name + ".tmp")
        half.write_bytes(wish.body)
        half.rename(path)
        self.wishes.append(wish)
        self._open[wish.id] = wish

    def open_wishes(self) -> int:
        for id in list(self._open):
            with contextlib.suppress(FileNotFoundError):
                self._seen[id] = (self.root / "results" / id / "result.json").read_bytes()
                del self._open[id]
        return len(self._open)

    def is_tidy(self) -> bool:
        return not (files_in(self.root / "claims", "0*") or files_in(self.root / "requests", "*.json"))

    def judge(self) -> Verdict:
        found = files(self.root)
        self.figures["half-written files"] += sum(key.startswith(".staging/") for key in found)
        return judge(found, self.wishes, self._seen)


@dataclass
class Bucket:
    """A bucket in memory, behind a proxy that fails; with a queue when there is one."""

    store: WitnessedStore
    front: S3Front
    network: list[FaultProxy]
    queue: SqsFront | None = None
    figures: Counter[str] = field(default_factory=Counter)
    wishes: list[Wish] = field(default_factory=list)

    @property
    def options(self) -> list[str]:
        if self.queue is None:
            return ["--store", f"s3://{BUCKET}"]
        url = f"{self.network[1].url}/000000000000/{QUEUE}"
        return ["--store", f"s3://{BUCKET}", "--queue", url, "--reconcile", "3"]

    @property
    def environment(self) -> dict[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": self.network[0].url}

    def drop(self, wish: Wish) -> None:
        """As a client does, whose own way to the bucket is good; every fifth goes straight to the queue."""
        self.wishes.append(wish)
        if self.queue is not None and len(self.wishes) % 5 == 0:
            letter = {"QueueUrl": QUEUE, "MessageBody": wish.body.decode()}
            _send(self.queue.url, "POST", "/", json.dumps(letter).encode(), "AmazonSQS.SendMessage")
        else:
            _send(self.front.url, "PUT", f"/{BUCKET}/{wish.key}", wish.body)

    def open_wishes(self) -> int:
        return len(self.wishes) - len(self.store.ended)

    def is_tidy(self) -> bool:
        if self.network[0].underway:  # what the dead sent to the bucket may come yet, for the next sweep
            return False
        if self.queue is not None and self.queue.waiting(QUEUE):
            return False
        return not any(key.startswith(("claims/", "requests/")) for key in list(self.store.inside(BUCKET)))

    def judge(self) -> Verdict:
        for proxy in self.network:
            self.figures["calls"] += proxy.calls.total()
            self.figures.update({kind.replace("_", " "): n for kind, n in proxy.injected.items()})
        if self.queue is not None:
            names = ("delivered", "delivered again", "twice", "short", "undeleted", "failed", "redriven")
            self.figures.update({name: self.queue.counts[name] for name in names})
            self.figures["notifications lost"] += self.queue.counts["lost"]
        return self.store.verdict + judge(self.store.inside(BUCKET), self.wishes, {})


def _send(url: str, method: str, path: str, body: bytes, target: str = "") -> None:
    parts = urlsplit(url)
    line = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    with contextlib.closing(line):
        line.request(method, path, body, {"X-Amz-Target": target} if target else {})
        answer = line.getresponse()
        answer.read()
        assert answer.status == 200, (method, path, answer.status)


@contextlib.contextmanager
def place(
    tier: str, folder: Path, seed: int, *, kind: bool = False, rules: list[Rule] | None = None
) -> Iterator[Place]:
    """A fresh place of a tier: directory, s3 or queue; a kind one has a good network and queue.

    Args:
        rules: of the network to the bucket, if not the usual ones.
    """
    if tier == "directory":
        yield Folder(folder / "store")
        return
    with contextlib.ExitStack() as stack:
        queue: SqsFront | None = None
        if tier == "queue":
            queue = stack.enter_context(
                answering(SqsFront(Habits() if kind else weather.of_the_queue(), seed))
            )
            queue.add(QUEUE)
        store = WitnessedStore(on_request=lambda key: queue and queue.announce(QUEUE, BUCKET, key))
        front = stack.enter_context(running(S3Front(store, {BUCKET})))
        usual = rules if rules is not None else [] if kind else weather.on_the_way_to_the_bucket()
        network = [FaultProxy(front.url, usual, seed)]
        if queue is not None:
            others = [] if kind else weather.on_the_way_to_the_queue()
            network.append(FaultProxy(queue.url, others, seed + 1))
        for proxy in network:
            stack.enter_context(failing(proxy))
        yield Bucket(store, front, network, queue)
