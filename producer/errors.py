"""What a client can be told that is neither a bad manifest nor a sick store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.errors import DreamError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Conflict(DreamError):
    """This id already stands for another request."""

    def __init__(self, id: str, where: str) -> None:
        super().__init__(
            f"the id {id!r} already stands for another request ({where}): choose another id, or leave it out"
        )
        self.id = id


class UnknownRequest(DreamError):
    """No request, claim or result has this id."""

    def __init__(self, id: str, store: str, near: Sequence[str] = ()) -> None:
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else "`dreamdrop status` lists what is known; what was sent to a queue is known when a worker has it, "
            "and the result of a file whose body has an `id` only by that id"
        )
        super().__init__(f"nothing is known of {id!r} in {store}; {hint}")
        self.id = id
        self.near = tuple(near)


class StillWorking(DreamError, TimeoutError):
    """The request was not over when the caller stopped waiting; it goes on."""

    def __init__(self, ids: Sequence[str], seconds: float) -> None:
        named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        super().__init__(f"not over after {seconds:g} s: {named}; nothing is lost, wait again later")
        self.ids = tuple(ids)


class Damaged(DreamError):
    """A stored object is not what its result says."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{key} {why}: somebody changed it after it was written; ask for the picture again")
        self.key = key


class NothingToRetry(DreamError):
    """There is no reason to ask for this again, or no way to."""

    def __init__(self, id: str, why: str) -> None:
        super().__init__(f"{id} {why}")
        self.id = id
