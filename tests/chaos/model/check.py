"""Breadth-first search through everything that can happen: the first broken invariant is met by a shortest path.

I1 at most one terminal result, never changed. I2 a result names only images that are stored, with the
hashes that it names. I3 until the result there is the request, its message or a claim. I4 from every
state the workers can still reach a result. E1 nothing is drawn under a claim that was made after the result.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

from tests.chaos.model.model import steps
from tests.chaos.model.state import DUPS, GHOST, RES, Day, pack, unpack


@dataclass
class Finding:
    """What a search came to."""

    states: int = 0
    transitions: int = 0
    seconds: float = 0.0
    broken: str = ""  # the invariant; "" when all hold
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = (
            f"{self.states} states, {self.transitions} transitions: {self.broken or 'every invariant holds'}"
        )
        return "\n".join([text, *(f"{n:3}. {step}" for n, step in enumerate(self.trace, 1))])


def explore(day: Day, most: int = 50_000_000) -> Finding:
    """Visit every state, or stop at the first broken invariant.

    Args:
        most: states; a day with more is refused, before the machine's memory is full.
    """
    found, began = Finding(), time.perf_counter()
    first = pack(day.start())
    numbers = {first: 0}
    queue = [first]  # in the order of discovery: at its number
    parents = array("I", [0])
    edges, ends = array("I"), array("I")  # between states without a result, for I4
    ended = bytearray()  # whether a result is one step away, or there
    for at, packed in enumerate(queue):
        s = unpack(day, packed)
        near = bool(s[RES])
        for _, n, wrong in steps(day, s):
            found.transitions += 1
            if wrong:
                found.broken = wrong
                found.trace = _trace(day, queue, parents, at, wrong)
                return _closed(found, numbers, began)
            key = pack(n)
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = len(queue)
                queue.append(key)
                parents.append(at)
            if near or n[DUPS:RES] != s[DUPS:RES] or n[GHOST] != s[GHOST]:
                continue  # I4 is for the workers to keep: without luck, and without a client who cancels
            if n[RES]:
                near = True
            else:
                edges.append(number)
        ended.append(near)
        ends.append(len(edges))
        if len(queue) > most:
            raise MemoryError(f"more than {most} states; choose a smaller day than {day}")
    stuck = _stuck(edges, ends, ended)
    if stuck is not None:
        found.broken, found.trace = "I4", _trace(day, queue, parents, stuck)
    return _closed(found, numbers, began)


def _closed(found: Finding, numbers: dict[bytes, int], began: float) -> Finding:
    found.states, found.seconds = len(numbers), time.perf_counter() - began
    return found


def _stuck(edges: array[int], ends: array[int], ended: bytearray) -> int | None:
    """The first state from which no path leads to a result; passes from the back until nothing changes."""
    changed = True
    while changed:
        changed = False
        for at in range(len(ended) - 1, -1, -1):
            if not ended[at] and any(ended[to] for to in edges[ends[at - 1] if at else 0 : ends[at]]):
                ended[at] = changed = True
    at = ended.find(0)
    return None if at < 0 else at


def _trace(day: Day, queue: list[bytes], parents: array[int], at: int, wrong: str = "") -> list[str]:
    """What happened on the way to a state, and there broke `wrong`; a worker keeps its number throughout."""
    path = [at]
    while path[-1]:
        path.append(parents[path[-1]])
    s, labels = day.start(), []
    for number in reversed(path[:-1]):
        label, s, _ = next(step for step in steps(day, s) if pack(step[1]) == queue[number])
        labels.append(label)
    if wrong:
        labels.append(next(label for label, _, broken in steps(day, s) if broken == wrong))
    return labels
