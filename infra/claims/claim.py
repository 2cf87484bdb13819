"""What a claim says, and what is said when one ends: the objects under `claims/`.

A claim is immutable and carries everything that another worker needs to go on: the request byte
for byte, the plan, and how many attempts have counted so far. The next *epoch* copies request
and plan unchanged, so all attempts draw the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas.result import Failure, Frozen, ImageResult, Result, Status, digest

Reason = Literal["drain", "retry"]


@dataclass(frozen=True, slots=True)
class Timing:
    """The protocol's clocks, in seconds of whoever looks; no two machines' clocks are compared."""

    beat: float = 10.0  # between two heartbeats
    lease: float = 30.0  # a heartbeat that is unchanged for so long belongs to a dead worker
    sweep: tuple[float, float] = (10.0, 20.0)  # between two sweeps, drawn at random
    max_attempts: int = 3  # crashes and retries; a drain is not one
    retry_after: tuple[float, ...] = (5.0, 30.0, 120.0)  # after the first, second, ... attempt
    forget: float = 3600.0  # a heartbeat that nobody's claim needs is removed after so long


class Claim(BaseModel):
    """The body of `claims/<id>/<epoch>`."""

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    id: str
    fingerprint: str  # SHA-256 of the request's bytes
    frozen: Frozen
    plan: dict[str, Any] | None
    session: str  # whose claim it is
    nonce: str  # tells two claims of one session apart
    epoch: int  # from 1
    attempt: int  # attempts that count, this one included
    solo: bool = False  # an attempt died without a word: share no device call with other requests
    batch: bool = False
    source: str | None = None  # the request's key

    def body(self) -> bytes:
        return self.model_dump_json().encode()

    def plan_hash(self) -> str:
        """What two attempts compare before one adopts the other's image.

        The request's bytes count too: a picture sent in is not part of the plan.
        """
        return digest({"fingerprint": self.fingerprint, "plan": self.plan})

    def ended(self, status: Status, failure: Failure | None, *, worker: str, **facts: Any) -> Result:
        """The result that ends this claim without pictures; see `Result.ended`."""
        facts = {"metadata": {} if self.batch else None, "attempts": self.attempt, **facts}
        return Result.ended(
            self.id,
            status,
            failure,
            request=self.frozen,
            fingerprint=self.fingerprint,
            worker=worker,
            **facts,
        )


class Release(BaseModel):
    """The body of `claims/<id>/<epoch>.released`: the owner gave the request back, and why."""

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    reason: Reason
    failure: Failure | None = None  # what went wrong, told if no attempt is left


@dataclass(slots=True)
class Held:
    """A claim that this session owns, until it commits or releases it."""

    claim: Claim
    lost: bool = False  # a sweep saw somebody else's later epoch: let go; going on is harmless, and a waste
    express: bool = False  # it came by the express queue: somebody waits for it
    told: bool = (
        False  # people were told in `status/` how far it is, perhaps by the worker that had it before
    )
    over: str = ""  # the id of the result that ended it, once it is known
    images: dict[int, ImageResult] = field(default_factory=dict)  # known to be stored
    sent: list[bytes] = field(default_factory=list)  # results whose outcome may be unknown


def answers(found: str, fingerprint: str) -> bool:
    """Whether a result with the fingerprint `found` ends the request with this fingerprint.

    An empty one ends every body: a client cancelled the id without knowing its bytes.
    """
    return found in (fingerprint, "")


def given_up(claim: Claim, release: Release | None, *, session: str, finished_at: str) -> Result:
    """The `failed` result of a request that has used up its attempts."""
    times = f"{claim.attempt} attempts" if claim.attempt > 1 else "one attempt"
    if release is not None and release.failure is not None:
        failure = release.failure.model_copy(
            update={"message": f"{release.failure.message} (given up after {times})"}
        )
    elif release is not None:
        message = (
            f"given up after {times}: every worker that tried gave the request back; see the workers' log"
        )
        failure = Failure(code="worker_crashed", message=message)
    else:
        message = (
            f"given up after {times}: the worker that was drawing this request stopped without a word, "
            "so the request itself may be what stops it; try a smaller size or fewer images, and see the "
            "workers' log"
        )
        failure = Failure(code="worker_crashed", message=message)
    plan = claim.plan or {}
    return claim.ended(
        "failed", failure, worker=session, finished_at=finished_at, task=plan.get("task"), parameters=plan
    )
