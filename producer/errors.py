"""The client's own errors: about ids, waiting and results, not about manifests or the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.errors import DreamError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Conflict(DreamError):
    """This id cannot be used for this request."""

    def __init__(self, id: str, why: str) -> None:
        super().__init__(f"the id {id!r} cannot be used: {why}; choose another id, or leave it out")
        self.id = id


class UnknownRequest(DreamError):
    """No request, claim or result has this id."""

    what = "request"
    advice = (
        "`dreamdrop status` lists the known requests. A message to a queue is known once a worker has read "
        "it; where the body of a file has an `id`, its result is found by that `id`"
    )

    def __init__(self, id: str, store: str, near: Sequence[str] = ()) -> None:
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else self.advice
        super().__init__(f"there is no {self.what} {id!r} in {store}; {hint}")
        self.id = id
        self.near = tuple(near)


class UnknownTraining(UnknownRequest):
    """No training has this id."""

    what = "training"
    advice = "`dreamdrop status` lists the trainings"


class StillWorking(DreamError, TimeoutError):
    """The request had not finished when the caller stopped waiting; the work goes on."""

    def __init__(self, ids: Sequence[str], seconds: float) -> None:
        named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        when = f"after {seconds:g} s" if seconds else "yet"
        super().__init__(f"not finished {when}: {named}; nothing is lost, wait again later")
        self.ids = tuple(ids)


class Damaged(DreamError):
    """A stored object does not match its result."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{key} {why}: somebody changed it after it was written; request the picture again")
        self.key = key


class NothingToRetry(DreamError):
    """This request needs no retry, or cannot be retried."""

    def __init__(self, id: str, why: str) -> None:
        super().__init__(f"{id} {why}")
        self.id = id
