"""Claims and release markers: the objects under `claims/`, and the result of a claim that is given up.

A claim is immutable and holds everything that another worker needs to continue: the request byte
for byte, the plan, and how many attempts have counted so far. The next *epoch* copies request
and plan unchanged, so all attempts draw the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas import layout
from schemas.result import Failure, Frozen, ImageResult, Result, Status, digest

Reason = Literal["drain", "retry"]


@dataclass(frozen=True, slots=True)
class Timing:
    """The protocol's times, in seconds of the observer's own clock; two machines' clocks are never compared."""

    beat: float = 10.0  # between two heartbeats
    lease: float = 30.0  # a worker is presumed dead when its heartbeat has not changed for this long
    sweep: tuple[float, float] = (10.0, 20.0)  # between two sweeps, drawn at random
    max_attempts: int = 3  # crashes and retries count; a drain does not
    retry_after: tuple[float, ...] = (5.0, 30.0, 120.0)  # after the first, second, ... attempt
    forget: float = 3600.0  # a dead worker's heartbeat is removed after this long
    few: int = 8  # workers up to which each one reads every claim that it lists, whether or not one has died


class Claim(BaseModel):
    """The body of `claims/<id>/<epoch>`."""

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    id: str
    fingerprint: str  # SHA-256 of the request's bytes
    frozen: Frozen
    plan: dict[str, Any] | None
    session: str  # the worker session that owns it
    nonce: str  # distinguishes two claims of one session
    epoch: int  # from 1
    attempt: int  # attempts that count, this one included
    solo: bool = False  # a worker died with it: share no device call with other requests
    batch: bool = False
    source: str | None = None  # the request's key
    express: bool = False  # it came by the express queue

    @property
    def in_express_lane(self) -> bool:
        """Whether it came by the express lane: its author waits for it."""
        return self.express or (self.source or "").startswith(layout.EXPRESS)

    def body(self) -> bytes:
        return self.model_dump_json().encode()

    def plan_hash(self) -> str:
        """Equal for two attempts that draw the same images, so one may adopt the other's.

        The request's bytes are part of it: an input picture is not in the plan.
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
    """The body of `claims/<id>/<epoch>.released`: why the owner gave the request back."""

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    reason: Reason
    failure: Failure | None = None  # what went wrong; it goes into the result if no attempt is left


@dataclass(slots=True)
class Held:
    """A claim that this session owns, until it commits or releases it."""

    claim: Claim
    taken_over: bool = False  # another worker has a later epoch: stop; going on is harmless, but a waste
    has_status: bool = False  # there may be a status object, perhaps of an earlier owner
    result_id: str = ""  # the id of the result that ended it, once it is known
    images: dict[int, ImageResult] = field(default_factory=dict)  # by index; known to be stored
    sent: list[bytes] = field(default_factory=list)  # results that were sent; the outcome may be unknown


def answers(result_fingerprint: str, fingerprint: str) -> bool:
    """Whether a result with this fingerprint ends a request with that one.

    An empty one ends every request: a client canceled the id without knowing the body.
    """
    return result_fingerprint in (fingerprint, "")


def given_up(claim: Claim, release: Release | None, *, session: str, finished_at: str) -> Result:
    """The `failed` result of a request that has used up its attempts."""
    times = f"{claim.attempt} attempts" if claim.attempt > 1 else "one attempt"
    if release is not None and release.failure is not None:
        failure = release.failure.model_copy(
            update={"message": f"{release.failure.message} (given up after {times})"}
        )
    elif release is not None:
        message = f"given up after {times}: each worker gave the request back; see the workers' log"
        failure = Failure(code="worker_crashed", message=message)
    else:
        message = (
            f"given up after {times}: the worker that drew this request stopped without a message, "
            "so the request itself may be the cause; try a smaller size or fewer images, and see the "
            "workers' log"
        )
        failure = Failure(code="worker_crashed", message=message)
    plan = claim.plan or {}
    return claim.ended(
        "failed", failure, worker=session, finished_at=finished_at, task=plan.get("task"), parameters=plan
    )
