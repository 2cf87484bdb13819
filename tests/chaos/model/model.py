"""Everything that can happen next to a state: a fault, or one store call of one worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.chaos.model import tidying, worker
from tests.chaos.model.state import (
    ABANDONS,
    CANCELED,
    CANCELS,
    CLAIM,
    CLAIMS,
    CRASHES,
    CREATE,
    DROP,
    DUPS,
    GHOST,
    GIVE_UP,
    IDLE,
    IMAGE,
    IMAGES,
    LAST,
    LIST,
    LOOK,
    LOOK_AGAIN,
    LOOK_TAKEN,
    MINE,
    NOTHING,
    OUTAGES,
    REQ,
    RES,
    RESTING,
    RESULT,
    SETTLE,
    SUCCEED,
    SUCCEEDED,
    THERE,
    TIDY,
    UNCLAIM,
    UNMAKE,
    WORK,
    WORKERS,
    Day,
    Move,
    State,
    Worker,
    put_claim,
    put_image,
    put_marker,
    put_result,
    replaced,
    with_worker,
)

Step = tuple[str, State, str]  # what happened, the state after it, the invariant that it broke or ""

#: By what a worker is about to do.
NEXT: dict[int, Callable[[Day, State, int, Worker], Iterator[Move]]] = {
    IDLE: worker.idle,
    CREATE: worker.create,
    THERE: worker.there,
    LOOK: worker.look,
    LOOK_TAKEN: worker.look_taken,
    UNMAKE: worker.unmake,
    DROP: worker.drop,
    MINE: worker.mine,
    WORK: worker.work,
    UNCLAIM: worker.unclaim,
    LIST: tidying.list_claims,
    TIDY: tidying.tidy,
    SETTLE: tidying.settle,
    LAST: tidying.last,
    SUCCEED: tidying.succeed,
    LOOK_AGAIN: tidying.look_again,
    GIVE_UP: tidying.give_up,
}


def steps(day: Day, s: State) -> Iterator[Step]:
    """Everything that can happen next."""
    yield from _world(day, s)
    before: Worker | None = None
    for w, me in enumerate(s[WORKERS]):
        if me == before:
            continue  # the workers are sorted: this one can do what the last one could
        before = me
        if s[CRASHES] and me[0] != IDLE:
            n = with_worker(s, w, RESTING)
            n[CRASHES] -= 1
            yield _done(day, f"worker {w} crashes", n)
        if s[OUTAGES] and me[0] in ABANDONS:
            n = with_worker(s, w, (IDLE, 0, 0, 0, me[4], 0))
            n[OUTAGES] -= 1
            yield _done(day, f"worker {w}: the store does not answer, it leaves the rest for later", n)
        for label, n, wrong in NEXT[me[0]](day, s, w, me):
            yield _done(day, f"worker {w}: {label}", n, wrong)


def _done(day: Day, label: str, n: list[Any], wrong: str = "") -> Step:
    if not wrong and not n[RES] and not n[REQ] and not any(n[CLAIMS]):
        wrong = "I3"  # no result, and nothing left that carries the request
    if not wrong and n[RES] == SUCCEEDED and n[IMAGES] + 1 != 1 << day.images:
        wrong = "I2"
    return label, tuple(n), wrong


def _world(day: Day, s: State) -> Iterator[Step]:
    """What happens around the workers."""
    if s[DUPS] and not s[REQ]:
        n = list(s)
        n[REQ], n[DUPS] = 1, s[DUPS] - 1
        yield _done(day, "the request is delivered again", n)
    if s[CANCELS]:
        n = list(s)
        n[CANCELS] -= 1
        yield _done(day, "a client cancels: creates the result", n, put_result(day, n, CANCELED, 0))
    if s[GHOST][0]:
        n = list(s)
        what, x, y = s[GHOST]
        n[GHOST] = NOTHING
        wrong = ""
        if what == CLAIM:
            if put_claim(n, x, y):
                n[WORKERS] = tuple((*w[:4], w[4] & ~1 | (w[4] & 1) << x, w[5]) for w in s[WORKERS])
        elif what == IMAGE:
            wrong = put_image(day, n, x, -1)[1]
        elif what == RESULT:
            wrong = put_result(day, n, x, y)
        else:
            put_marker(n, x, y)
        kind = ("", "claim", "image", "result", "marker")[what]
        yield _done(day, f"a {kind} that was given up lands", n, wrong)
    if day.broken == "claims expire" and any(s[CLAIMS]):
        for e, claim in enumerate(s[CLAIMS]):
            if claim:
                n = list(s)
                n[CLAIMS] = replaced(s[CLAIMS], e, 0)
                yield _done(day, f"the store's lifecycle rule removes claim {e + 1}", n)
