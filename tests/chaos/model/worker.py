"""One worker's part in the model: for each thing that it may be about to do, the store call that does it.

Every label begins with the step's name in the design (B4, S3, ...): `test_names.py` holds them
against the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.chaos.model.state import (
    CLAIM,
    CLAIMS,
    CREATE,
    DRAIN,
    DRAINS,
    DROP,
    GHOST,
    GHOSTS,
    IDLE,
    IMAGE,
    IMAGES,
    LIST,
    LOOK,
    LOOK_TAKEN,
    MARKER,
    MARKS,
    MINE,
    OTHER,
    OURS,
    OUTAGES,
    REQ,
    RES,
    RESULT,
    RETRY,
    SAME,
    SETTLE,
    SUCCEEDED,
    THERE,
    UNCLAIM,
    UNMAKE,
    WORK,
    WORKERS,
    Day,
    Move,
    State,
    Worker,
    claim_value,
    hash_of,
    knowing,
    put_claim,
    put_image,
    put_marker,
    put_result,
    replaced,
    top_of,
    with_worker,
)

Moves = Iterator[Move]


def go(s: State, w: int, label: str, then: Worker) -> Move:
    return label, with_worker(s, w, then), ""


def creating(
    day: Day,
    s: State,
    w: int,
    label: str,
    write: tuple[int, int, int],
    then: Callable[[bool], Worker],
    failed: Worker,
) -> Moves:
    """A create: answered; done, and the answer lost for good; not done yet, and given up."""
    what, x, _ = write
    n = list(s)
    made, wrong = _effect(day, n, w, write)
    own = 1 << x if what == CLAIM and made else 0
    n[WORKERS] = replaced(n[WORKERS], w, _owning(then(made), own))
    yield label + (", made" if made else ", somebody was first"), n, wrong
    if s[OUTAGES]:
        n = list(s)
        n[OUTAGES] -= 1
        made, wrong = _effect(day, n, w, write)
        n[WORKERS] = replaced(n[WORKERS], w, _owning(failed, own))
        if day.broken == "images deleted" and what == RESULT:
            n[IMAGES] = 0
        yield f"{label}, done, but the answer is lost", n, wrong
    if s[GHOSTS] and not s[GHOST][0]:
        n = with_worker(s, w, _owning(failed, int(what == CLAIM)))
        n[GHOSTS] -= 1
        n[GHOST] = write
        yield f"{label}, not done: it may land later", n, ""


def _owning(worker: Worker, own: int) -> Worker:
    return (*worker[:4], worker[4] | own, worker[5])


def _effect(day: Day, n: list[Any], w: int, write: tuple[int, int, int]) -> tuple[bool, str]:
    what, x, y = write
    if what == CLAIM:
        return put_claim(n, x, y), ""
    if what == IMAGE:
        return put_image(day, n, x, w)
    if what == RESULT:
        made = not n[RES] or day.broken == "result put"
        return made, put_result(day, n, x, y)
    return put_marker(n, x, y), ""


def rest(worker: Worker) -> Worker:
    return (IDLE, 0, 0, 0, worker[4], 0)


# Taking -------------------------------------------------------------------------------------


def idle(day: Day, s: State, w: int, me: Worker) -> Moves:
    if s[REQ] and day.queue and s[RES]:
        n = list(s)
        n[REQ] = 0
        yield "Q6 the result exists: delete the message", n, ""
    if s[REQ] and day.broken == "request first":
        n = with_worker(s, w, (CREATE, 0, 0, 0, me[4], 0))
        n[REQ] = 0
        yield "B6 take the request object away, before claiming", n, ""
    elif s[REQ] and day.broken != "look first":
        yield go(s, w, "B3 read the request", (CREATE, 0, 0, 0, me[4], 0))
    elif s[REQ] and not s[RES]:
        yield go(s, w, "B5 look for the result, before claiming", (CREATE, 0, 0, 0, me[4], 0))
    top = top_of(s)
    if (top or any(s[MARKS])) and day.broken != "no sweep":
        ours = OURS if me[4] >> top & 1 and top else 0
        seen = s[MARKS][top - 1] if top else 0
        yield go(s, w, "S2 list the claims", (SETTLE, top, seen or ours, 0, me[4], 0))


def create(day: Day, s: State, w: int, me: Worker) -> Moves:
    late = int(bool(s[RES]))
    looks = day.broken != "look first"

    def then(made: bool) -> Worker:
        if made:
            return (LOOK if looks else MINE, 1, 0, 0, me[4], late)
        return (THERE, 0, 0, 0, me[4], 0)

    yield from creating(day, s, w, "B4 create claim 1", (CLAIM, 1, claim_value(1, 0)), then, rest(me))


def there(day: Day, s: State, w: int, me: Worker) -> Moves:
    found = int(bool(s[CLAIMS][0]))
    yield go(s, w, "B4 read the claim that is there", (LOOK_TAKEN, 0, found, 0, me[4], 0))


def look(day: Day, s: State, w: int, me: Worker) -> Moves:
    if s[RES]:
        yield go(s, w, "B5 look for the result: there is one", (UNMAKE, *me[1:]))
    else:
        yield go(s, w, "B5 look for the result: none", (MINE, *me[1:]))


def look_taken(day: Day, s: State, w: int, me: Worker) -> Moves:
    if s[RES] or me[2]:
        label = "B5 look for the result: " + ("there is one" if s[RES] else "none, somebody has it")
        yield go(s, w, label, (DROP, 0, 0, 0, me[4], 0))
    else:
        yield go(s, w, "B5 look for the result: none, and no claim either", rest(me))


def unmake(day: Day, s: State, w: int, me: Worker) -> Moves:
    yield from deleting(s, w, "B5 delete our late claim", 1, True, (DROP, 0, 0, 0, me[4], 0))


def drop(day: Day, s: State, w: int, me: Worker) -> Moves:
    yield from _drop_request(day, s, w, rest(me))


def mine(day: Day, s: State, w: int, me: Worker) -> Moves:
    yield from _drop_request(day, s, w, (WORK, 1, 0, 0, me[4], me[5]))


def _drop_request(day: Day, s: State, w: int, then: Worker) -> Moves:
    n = with_worker(s, w, then)
    if day.queue:
        yield "B6 a message stays until the result", n, ""
        return
    if s[OUTAGES] and s[REQ]:
        failed = list(n)
        failed[OUTAGES] -= 1
        yield "B6 delete the request object: the store does not answer", failed, ""
    n[REQ] = 0
    yield "B6 delete the request object", n, ""


def deleting(s: State, w: int, label: str, epoch: int, claim: bool, then: Worker) -> Moves:
    place = CLAIMS if claim else MARKS
    n = with_worker(s, w, then)
    if s[OUTAGES] and s[place][epoch - 1]:
        failed = list(n)
        failed[OUTAGES] -= 1
        yield f"{label}: the store does not answer", failed, ""
    n[place] = replaced(s[place], epoch - 1, 0)
    yield label, n, ""


# Working ------------------------------------------------------------------------------------


def work(day: Day, s: State, w: int, me: Worker) -> Moves:
    _, epoch, adopting, known, own, late = me
    missing = [i for i in range(day.images) if not hash_of(known, i)]
    if s[RES]:
        yield go(s, w, "is_over: the result exists, let go", (LIST, 0, 0, 0, own, 0))
    if top_of(s) > epoch:
        yield go(s, w, "S2 a later epoch is somebody else's: let go", rest(me))
    for reason, may in ((DRAIN, s[DRAINS]), (RETRY, day.retries)):
        if may and not s[MARKS][epoch - 1]:
            n = list(s)
            n[DRAINS] -= reason == DRAIN
            label = f"release: create the marker {('drain', 'retry')[reason - 1]}"
            yield from creating(day, tuple(n), w, label, (MARKER, epoch, reason), lambda _: rest(me), me)
    if adopting:
        i = adopting - 1
        there = s[IMAGES] >> i & 1
        known = knowing(known, i, SAME) if there else known
        then = (WORK, epoch, adopting + 1 if adopting < day.images else 0, known, own, late)
        yield go(s, w, f"B7 look for image {i}: {'adopt it' if there else 'none'}", then)
    elif missing and day.broken != "result first":
        yield from _draw(day, s, w, me, missing[0])
    else:
        yield from _commit(day, s, w, me)


def _draw(day: Day, s: State, w: int, me: Worker, i: int) -> Moves:
    _, epoch, _, known, own, late = me
    wrong = "E1" if late else ""

    def then(made: bool) -> Worker:
        sure = SAME if made or day.broken != "own hash" else OTHER
        return (WORK, epoch, 0, knowing(known, i, sure), own, late)

    for label, n, broken in creating(day, s, w, f"B7 draw and create image {i}", (IMAGE, i, 0), then, me):
        yield label, n, wrong or broken


def _commit(day: Day, s: State, w: int, me: Worker) -> Moves:
    _, epoch, _, known, own, _ = me
    then = (UNCLAIM, 1, 0, 0, own, 0) if epoch == 1 else (LIST, 0, 0, 0, own, 0)
    label = "B8 create the result"
    for done, n, wrong in creating(day, s, w, label, (RESULT, SUCCEEDED, known), lambda _: then, me):
        if day.broken == "images deleted" and "somebody" in done:
            n[IMAGES] = 0
        yield done, n, wrong


def unclaim(day: Day, s: State, w: int, me: Worker) -> Moves:
    yield from deleting(s, w, "B9 delete our claim", 1, True, rest(me))
