"""The invariants, checked after every change of the bucket, from its bytes alone.

1 write once; 2 commit last; 3 never forgotten; 4 no work after the end; 5 every attempt works on
the same request and plan; 6 one result for each request. It knows the keys and the JSON, and
nothing of the code that it judges.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.stores.store import Stored


class Broken(AssertionError):
    """An invariant does not hold; the message has its number and the last events."""


@dataclass
class Law:
    """What must never happen, and what was promised to whom."""

    promised: dict[tuple[str, str], bytes] = field(default_factory=dict)  # (id, fingerprint) to request
    late_claims: set[str] = field(default_factory=set)  # nonces of claims made after their request's end
    early_claims: set[str] = field(default_factory=set)  # of all others; one may come again, late
    is_carried: Callable[[str, str], bool] = lambda _id, _fingerprint: False  # whether a message brings it

    def dropped(self, id: str, body: bytes, objects: Mapping[str, Stored]) -> None:
        """A client wrote a request; a body that it replaced before a worker had it is withdrawn.

        A claim made after the id's result only passes by: its worker looks for another id next, and until that
        one is claimed the request object is what counts.
        """
        self.promised[id, sha(body)] = body
        end = objects.get(f"results/{id}/result.json")
        for fingerprint in [fingerprint for other, fingerprint in self.promised if other == id]:
            over = end is not None and _parsed(end.body)["fingerprint"] != fingerprint
            lasting = {k: o for k, o in objects.items() if not (over and k.startswith(f"claims/{id}/"))}
            if not self._is_safe(id, fingerprint, lasting):
                del self.promised[id, fingerprint]

    def check(self, before: Mapping[str, Stored], after: Mapping[str, Stored], log: list[str]) -> None:
        changed = [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)]
        for key in sorted(changed):
            if key.startswith(("results/", "claims/")) and key in before:
                if key in after:
                    raise _broken(1, f"{key} was overwritten", log)
                if key.startswith("results/"):
                    raise _broken(1, f"{key} was deleted", log)
            if key.startswith("claims/") and key in after and not key.endswith(".released"):
                self._check_claim(key, before, after, log)
            if key.endswith("/result.json") and key in after:
                self._check_result(key, after, log)
        for id, fingerprint in self.promised:
            if not self._is_safe(id, fingerprint, after):
                raise _broken(3, f"{id} ({fingerprint[:8]}) is forgotten", log)

    def _is_safe(self, id: str, fingerprint: str, objects: Mapping[str, Stored]) -> bool:
        return is_kept(id, fingerprint, objects) or self.is_carried(id, fingerprint)

    def working(self, nonce: str, log: list[str]) -> None:
        """A worker begins to render under the claim with this nonce."""
        if nonce in self.late_claims:
            raise _broken(4, "work began under a claim that was made after the result", log)

    def _check_claim(
        self, key: str, before: Mapping[str, Stored], after: Mapping[str, Stored], log: list[str]
    ) -> None:
        claim = _parsed(after[key].body)
        if sha(claim["frozen"]["text"].encode()) != claim["fingerprint"]:
            raise _broken(5, f"{key} does not carry the request that it names", log)
        end = before.get(f"results/{claim['id']}/result.json")
        if end is not None and _parsed(end.body)["fingerprint"] == claim["fingerprint"]:
            self.late_claims |= {claim["nonce"]} - self.early_claims
            return
        self.early_claims.add(claim["nonce"])
        earlier = before.get(f"claims/{claim['id']}/{claim['epoch'] - 1:06d}")
        if earlier is not None:
            last = _parsed(earlier.body)
            if any(last[what] != claim[what] for what in ("frozen", "plan", "fingerprint")):
                raise _broken(5, f"{key} has another request or plan than the attempt before", log)

    def _check_result(self, key: str, after: Mapping[str, Stored], log: list[str]) -> None:
        result = _parsed(after[key].body)
        for image in result["images"]:
            stored = after.get(image["key"])
            if stored is None:
                raise _broken(2, f"{key} names {image['key']}, which is not stored", log)
            if sha(stored.body) != image["sha256"]:
                raise _broken(2, f"{key} gives {image['key']} another hash than it has", log)
        fingerprint = result["fingerprint"]
        twins = results_for(result["id"].removesuffix(f"~{fingerprint[:8]}"), fingerprint, after)
        if len(twins) > 1:
            raise _broken(6, f"one request has the results {twins}", log)


def results_for(id: str, fingerprint: str, objects: Mapping[str, Stored]) -> list[str]:
    """Keys of the results that answer a request, under its id or one of its own."""
    keys = (f"results/{id}/result.json", f"results/{id}~{fingerprint[:8]}/result.json")
    return [k for k in keys if k in objects and _parsed(objects[k].body)["fingerprint"] == fingerprint]


def is_kept(id: str, fingerprint: str, objects: Mapping[str, Stored]) -> bool:
    """Whether the bucket still has the request itself, a claim that carries it, or its result."""
    request = objects.get(f"requests/{id}.json")
    if request is not None and sha(request.body) == fingerprint:
        return True
    if results_for(id, fingerprint, objects):
        return True
    folders = (f"claims/{id}/", f"claims/{id}~{fingerprint[:8]}/")
    return any(
        key.startswith(folders)
        and not key.endswith(".released")
        and _parsed(o.body)["fingerprint"] == fingerprint
        for key, o in objects.items()
    )


@functools.lru_cache(maxsize=4096)
def _parsed(body: bytes) -> Any:
    return json.loads(body)


@functools.lru_cache(maxsize=4096)
def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _broken(number: int, what: str, log: list[str]) -> Broken:
    history = "\n".join(log[-60:])
    return Broken(f"invariant {number}: {what}\n{history}")
