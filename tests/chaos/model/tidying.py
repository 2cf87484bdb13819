"""The model's sweep: S3 tidies what is over, S4 takes over what is dead or given back."""

from __future__ import annotations

from tests.chaos.model.state import (
    CLAIM,
    CLAIMS,
    DRAIN,
    FAILED,
    GIVE_UP,
    IDLE,
    LAST,
    LIST,
    LOOK_AGAIN,
    MARKS,
    OURS,
    RES,
    RESULT,
    SUCCEED,
    TIDY,
    WORK,
    Day,
    State,
    Worker,
    claim_value,
    replaced,
    top_of,
    with_worker,
)
from tests.chaos.model.worker import Moves, creating, go, rest


def settle(day: Day, s: State, w: int, me: Worker) -> Moves:
    _, top, seen, _, own, _ = me
    if s[RES]:
        yield go(s, w, "S3 look for the result: there is one", (TIDY, 1, top or day.epochs, 0, own, 0))
    elif top:
        yield go(s, w, "S3 look for the result: none", (LAST, top, seen, 0, own, 0))
    else:
        yield go(s, w, "S3 look for the result: none, only a late marker", rest(me))


def last(day: Day, s: State, w: int, me: Worker) -> Moves:
    _, top, seen, _, own, _ = me
    value = s[CLAIMS][top - 1]
    if not value:
        yield go(s, w, "S4 read the claim: gone", rest(me))
    elif seen == OURS:
        yield go(s, w, "S4 read the claim: our own", (WORK, top, int(top > 1), 0, own, 0))
    else:
        attempt = value // 2 + (seen != DRAIN)
        if attempt > day.attempts:
            yield go(s, w, "S4 read the claim: no attempt is left", (GIVE_UP, 0, 0, 0, own, 0))
        else:
            solo = value & 1 | (not seen)
            then = (SUCCEED, top + 1, claim_value(attempt, solo), 0, own, 0)
            yield go(s, w, "S4 read the claim: take it over", then)


def succeed(day: Day, s: State, w: int, me: Worker) -> Moves:
    _, epoch, value, _, own, _ = me
    late = int(bool(s[RES]))
    adopting = (WORK, epoch, 1, 0, own, late)

    def then(made: bool) -> Worker:
        if not made:
            return rest(me)
        return adopting if day.broken == "look first" else (LOOK_AGAIN, epoch, 0, 0, own, late)

    label = f"S4 create claim {epoch}"
    yield from creating(day, s, w, label, (CLAIM, epoch, value), then, rest(me))


def look_again(day: Day, s: State, w: int, me: Worker) -> Moves:
    _, epoch, _, _, own, late = me
    if s[RES]:
        yield go(s, w, "B5 look for the result: there is one", (LIST, 0, 0, 0, own, 0))
    else:
        yield go(s, w, "B5 look for the result: none", (WORK, epoch, 1, 0, own, late))


def give_up(day: Day, s: State, w: int, me: Worker) -> Moves:
    then = (LIST, 0, 0, 0, me[4], 0)
    yield from creating(
        day, s, w, "S4 create the failed result", (RESULT, FAILED, 0), lambda _: then, rest(me)
    )


def list_claims(day: Day, s: State, w: int, me: Worker) -> Moves:
    marked = max((e for e, mark in enumerate(s[MARKS], 1) if mark), default=0)
    top = max(top_of(s), marked)
    yield go(s, w, "B9 list the claims", (TIDY, 1, top, 0, me[4], 0) if top else rest(me))


def tidy(day: Day, s: State, w: int, me: Worker) -> Moves:
    """Lower epochs first, each after its marker; `epoch` is where we are, `detail` where the listing ended."""
    _, epoch, end, _, own, _ = me
    while epoch <= end and not (s[MARKS][epoch - 1] or s[CLAIMS][epoch - 1]):
        epoch += 1
    if epoch > end:
        yield go(s, w, "B9 nothing is left", rest(me))
    elif s[MARKS][epoch - 1]:
        then = (TIDY if s[CLAIMS][epoch - 1] or epoch < end else IDLE, epoch, end, 0, own, 0)
        n = with_worker(s, w, then)
        n[MARKS] = replaced(s[MARKS], epoch - 1, 0)
        yield f"B9 delete marker {epoch}", n, ""
    else:
        then = (TIDY, epoch + 1, end, 0, own, 0)
        n = with_worker(s, w, then)
        n[CLAIMS] = replaced(s[CLAIMS], epoch - 1, 0)
        yield f"B9 delete claim {epoch}", n, ""
