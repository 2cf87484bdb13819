"""What a history must look like at its end, and at every write: judged from bytes, not from logs.

`WitnessedStore` is the memory behind an S3 server that sees every write that took effect. `judge`
looks at what is left when all is over; it works on a bucket and on a directory alike.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from infra.stores.memory import MemoryStore

IMAGES = 2  # per request


@dataclass(frozen=True)
class Wish:
    """A request that a client dropped, and how it must end."""

    id: str
    body: bytes
    status: str = "succeeded"

    @property
    def key(self) -> str:
        return f"requests/{self.id}.json"


@dataclass
class Verdict:
    """What was found, in sentences; nothing where all is well."""

    lost: list[str] = field(default_factory=list)  # no result, or not the one that was due
    doubled: list[str] = field(default_factory=list)  # a second result, or an object written twice
    torn: list[str] = field(
        default_factory=list
    )  # a result whose images are missing, incomplete or different
    left: list[str] = field(default_factory=list)  # what the sweep should have removed

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.torn + other.torn,
            self.left + other.left,
        )

    def __str__(self) -> str:
        parts = {"lost": self.lost, "doubled": self.doubled, "torn": self.torn, "left": self.left}
        return "; ".join(f"{name}: {found[:5]}" for name, found in parts.items() if found) or "all is well"

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.torn or self.left)


class WitnessedStore(MemoryStore):
    """A store in memory that judges each write as it happens; keys begin with the bucket's name."""

    def __init__(self, on_request: Callable[[str], None] = lambda _key: None) -> None:
        super().__init__(clock=time.time)
        self.verdict = Verdict()
        self.ended: dict[str, float] = {}  # id to when its result came, by the monotonic clock
        self.claims: Counter[str] = Counter()  # by id
        self._on_request = on_request

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        made = await super().create(key, body, metadata=metadata, content_type=content_type)
        _, _, inside = key.partition("/")
        if made and inside.startswith("requests/"):
            self._on_request(inside)
        if made and inside.startswith("claims/") and not inside.endswith(".released"):
            self.claims[inside.split("/", 1)[1].rpartition("/")[0]] += 1
        if made and inside.endswith("/result.json"):
            self._judge_result(key, body)
        return made

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        there = key in self._objects
        await super().delete(key, etag=etag)
        if there and key not in self._objects:
            self._judge_deletion(key)

    def _judge_result(self, key: str, body: bytes) -> None:
        bucket, _, inside = key.partition("/")
        self.ended[inside.removeprefix("results/").removesuffix("/result.json")] = time.monotonic()
        for image in json.loads(body)["images"]:
            stored = self._objects.get(f"{bucket}/{image['key']}")
            if stored is None or hashlib.sha256(stored.body).hexdigest() != image["sha256"]:
                self.verdict.torn.append(f"{inside} came before {image['key']}, or names another")

    def _judge_deletion(self, key: str) -> None:
        bucket, _, inside = key.partition("/")
        kind, _, rest = inside.partition("/")
        if kind == "results":
            self.verdict.doubled.append(f"{inside} was deleted")
        if kind == "claims" and not inside.endswith(".released"):
            id = rest.rpartition("/")[0]
            others = any(k.startswith(f"{bucket}/claims/{id}/0") for k in self._objects)
            if f"{bucket}/results/{id}/result.json" not in self._objects and not others:
                self.verdict.lost.append(f"the last claim of {id} went before its result came")
        if kind == "requests":
            id = rest.removesuffix(".json")
            claimed = any(k.startswith(f"{bucket}/claims/{id}/0") for k in self._objects)
            if f"{bucket}/results/{id}/result.json" not in self._objects and not claimed:
                self.verdict.lost.append(f"the request {id} went before anything carried it")

    def inside(self, bucket: str) -> dict[str, bytes]:
        """What one bucket holds."""
        start, found = f"{bucket}/", list(self._objects.items())  # at once: another thread writes
        return {key.removeprefix(start): o.body for key, o in found if key.startswith(start)}


def judge(objects: Mapping[str, bytes], wishes: list[Wish], seen: Mapping[str, bytes]) -> Verdict:
    """Judge a bucket at the end.

    Args:
        seen: the results as they were when they were first seen, by id.
    """
    verdict = Verdict()
    expected: set[str] = set()
    for wish in wishes:
        key = f"results/{wish.id}/result.json"
        body = objects.get(key)
        if body is None:
            verdict.lost.append(f"{wish.id} has no result")
            continue
        expected.add(key)
        if seen.get(wish.id, body) != body:
            verdict.doubled.append(f"the result of {wish.id} changed after it was first seen")
        result = json.loads(body)
        expected |= {image["key"] for image in result["images"]}
        if result["status"] != wish.status or result["fingerprint"] != hashlib.sha256(wish.body).hexdigest():
            why = (result.get("failure") or {}).get("message", "")
            verdict.lost.append(f"{wish.id} ended as {result['status']} ({why}), not as {wish.status}")
        elif wish.status == "succeeded":
            verdict.torn += _torn(wish.id, result, objects)
    for key in objects:
        if key.startswith(("claims/", "requests/")):
            verdict.left.append(key)
        elif key.startswith("results/") and key not in expected:
            (verdict.doubled if key.endswith("result.json") else verdict.left).append(key)
    return verdict


def _torn(id: str, result: dict[str, Any], objects: Mapping[str, bytes]) -> list[str]:
    found = []
    if [image["index"] for image in result["images"]] != list(range(IMAGES)):
        found.append(f"{id} names the images {[image['index'] for image in result['images']]}")
    for image in result["images"]:
        body = objects.get(image["key"], b"")
        if hashlib.sha256(body).hexdigest() != image["sha256"]:
            found.append(f"{image['key']} is missing or has other bytes")
            continue
        with Image.open(io.BytesIO(body)) as picture:
            picture.load()
    return found


def files(root: Path) -> dict[str, bytes]:
    """What a directory holds, by key; other names than keys begin with a dot."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def renderings(diary: Path) -> Counter[tuple[str, int]]:
    """How often each image was drawn to its end, by (id, index), from what the renderers noted."""
    if not diary.exists():
        return Counter()
    return Counter(
        (id, int(index)) for id, _, index in (row.rpartition(" ") for row in diary.read_text().splitlines())
    )


def takeovers(logs: Path) -> Counter[str]:
    """How often each id was taken over, from the workers' logs."""
    return Counter(id for id, _ in _taken_over(logs))


def charged(logs: Path) -> int:
    """Takeovers that count as another attempt."""
    return sum(attempt > 1 for _, attempt in _taken_over(logs))


def _taken_over(logs: Path) -> Iterator[tuple[str, int]]:
    for log in logs.glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            _, found, facts = line.partition(" took over id=")
            if found:
                id, _, attempt = facts.partition(" attempt=")
                yield id, int(attempt)
