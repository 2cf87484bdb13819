"""The bucket protocol as a machine of small integers: what a few workers and a bad day can do to one request.

A *state* is the bucket (request, claims, markers, images, result), one write that is still under
way, what every worker is about to do next, and how many faults the day has left. A *step* is one
store call of one worker, or one fault. Leases are unreliable here: anybody may take over anything
at any moment, so a paused worker that wakes up needs no step of its own.

Whose bytes an image holds is told as "the stored ones" or "others": that is all that a result's
hashes depend on. Workers are interchangeable, so states that differ by their order are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What a worker is about to do: its next store call.
IDLE, CREATE, THERE, LOOK, LOOK_TAKEN, UNMAKE, DROP, MINE, WORK = range(9)
UNCLAIM, LIST, TIDY, SETTLE, LAST, SUCCEED, LOOK_AGAIN, GIVE_UP = range(9, 17)
ABANDONS = frozenset(
    {CREATE, THERE, LOOK, LOOK_TAKEN, SETTLE, LAST, SUCCEED, LOOK_AGAIN, GIVE_UP, LIST, TIDY}
)

SUCCEEDED, FAILED, CANCELED = 1, 2, 3  # terminal results
DRAIN, RETRY, OURS = 1, 2, 3  # markers; OURS: a claim of our own that we do not hold
SAME, OTHER = 1, 2  # an image's hash, as a worker knows it: of what is stored, or not
CLAIM, IMAGE, RESULT, MARKER = 1, 2, 3, 4  # what a late write may be
NOTHING = (0, 0, 0)
RESTING = (
    IDLE,
    0,
    0,
    0,
    0,
    0,
)  # next call, epoch, detail, known hashes, claims of its own, made after the end

# Places in a state. A worker is (next call, epoch, detail, known, own, late).
REQ, DUPS, CRASHES, GHOSTS, OUTAGES, DRAINS, CANCELS, RES, IMAGES, CLAIMS, MARKS, GHOST, WORKERS = range(13)

COUNTED = ("workers", "images", "attempts", "crashes", "duplicates", "ghosts", "outages", "drains", "cancels")

State = tuple[Any, ...]
Worker = tuple[int, int, int, int, int, int]
Move = tuple[str, list[Any], str]  # what is done, the state after it, the invariant that it broke or ""


@dataclass(frozen=True, slots=True)
class Day:
    """How many workers and images, and how many of each fault."""

    workers: int = 2
    images: int = 1
    attempts: int = 2
    crashes: int = 0
    duplicates: int = 0  # the request dropped, or its message delivered, once more
    ghosts: int = 0  # creates that fail, and land later
    outages: int = 0  # store calls that raise, with their effect or without
    drains: int = 0
    cancels: int = 0
    retries: bool = False
    queue: bool = False  # the request is a message, which goes only after the result exists
    broken: str = ""  # which rule is broken on purpose: see `variants.py`

    @property
    def epochs(self) -> int:
        """Every epoch has one attempt more than the one before, or a drain."""
        return self.attempts + self.drains

    def __str__(self) -> str:
        """What differs from no day at all, such as `2 workers, 1 images, 2 attempts, 1 crashes`."""
        counts = [f"{getattr(self, name)} {name}" for name in COUNTED if getattr(self, name)]
        rest = ["retries" * self.retries, "queue" * self.queue, self.broken]
        return ", ".join([*counts, *filter(None, rest)])

    def start(self) -> State:
        faults = (self.duplicates, self.crashes, self.ghosts, self.outages, self.drains, self.cancels)
        none = (0,) * self.epochs
        return (1, *faults, 0, 0, none, none, NOTHING, (RESTING,) * self.workers)


def pack(s: State) -> bytes:
    """One string for all states that differ only by the workers' order or by what nobody will look at."""
    live, ghost = not s[RES], s[GHOST]
    top = top_of(s)
    kept = 1 << top if live and top and not s[MARKS][top - 1] else 0
    kept |= ghost[0] == CLAIM and live
    flat = [*s[:CLAIMS], *s[CLAIMS], *s[MARKS], *ghost]
    for pc, epoch, detail, known, own, late in sorted(
        (*w[:4], w[4] & kept & ~(w[0] == WORK and 1 << w[1]), w[5]) for w in s[WORKERS]
    ):
        flat += (pc, epoch, detail, known, own, late)
    return bytes(flat)


def unpack(day: Day, packed: bytes) -> State:
    b, e = tuple(packed), day.epochs
    marks, ghost, first = CLAIMS + e, CLAIMS + 2 * e, CLAIMS + 2 * e + 3
    workers = tuple(b[i : i + 6] for i in range(first, len(b), 6))
    return (*b[:CLAIMS], b[CLAIMS:marks], b[marks:ghost], b[ghost:first], workers)


def top_of(s: State) -> int:
    """The highest epoch that has a claim; 0 when there is none."""
    return max((e for e, claim in enumerate(s[CLAIMS], 1) if claim), default=0)


# Creates: what each does to the bucket ------------------------------------------------------


def replaced(values: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*values[:at], value, *values[at + 1 :])


def put_claim(n: list[Any], epoch: int, value: int) -> bool:
    if n[CLAIMS][epoch - 1]:
        return False
    n[CLAIMS] = replaced(n[CLAIMS], epoch - 1, value)
    return True


def put_marker(n: list[Any], epoch: int, reason: int) -> bool:
    if n[MARKS][epoch - 1]:
        return False
    n[MARKS] = replaced(n[MARKS], epoch - 1, reason)
    return True


def put_image(day: Day, n: list[Any], index: int, w: int) -> tuple[bool, str]:
    """Create an image, of worker `w`'s bytes (-1: nobody's who is still there)."""
    there = n[IMAGES] >> index & 1
    if there and day.broken != "image put":
        return False, ""
    n[IMAGES] |= 1 << index
    if there:  # overwritten: what the others know is wrong now
        n[WORKERS] = tuple(
            v if i == w or hash_of(v[3], index) != SAME else (*v[:3], knowing(v[3], index, OTHER), *v[4:])
            for i, v in enumerate(n[WORKERS])
        )
        if n[GHOST][0] == RESULT and hash_of(n[GHOST][2], index) == SAME:
            n[GHOST] = (*n[GHOST][:2], knowing(n[GHOST][2], index, OTHER))
        if n[RES] == SUCCEEDED:
            return True, "I2"
    return True, ""


def put_result(day: Day, n: list[Any], result: int, known: int) -> str:
    """Create the result; which invariant that breaks."""
    if n[RES]:
        if day.broken != "result put":
            return ""
        n[RES] = result
        return "I1"
    n[RES] = result
    torn = result == SUCCEEDED and not all(
        hash_of(known, i) == SAME and n[IMAGES] >> i & 1 for i in range(day.images)
    )
    return "I2" if torn else ""


def hash_of(known: int, index: int) -> int:
    return known >> 2 * index & 3


def knowing(known: int, index: int, what: int) -> int:
    return known & ~(3 << 2 * index) | what << 2 * index


def claim_value(attempt: int, solo: int) -> int:
    return 2 * attempt + solo


def with_worker(s: State, w: int, worker: Worker) -> list[Any]:
    """The state with worker `w` about to do something else; not yet a tuple, so that more can be changed."""
    n = list(s)
    n[WORKERS] = replaced(s[WORKERS], w, worker)
    return n
