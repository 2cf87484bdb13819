"""How one worker divides its free room among its queues.

While several queues have messages, the first one, for express requests, gets three quarters of
the room and the others get a quarter; an empty queue lends out its part. Receives are batched (not
those of the express queue, where somebody waits), and a worker never receives a message that it cannot
start soon: another worker may be idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.queues.message import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infra.queues.leases import MessageLeases


class QueueShares:
    """One worker's queues, express first."""

    def __init__(self, queues: Sequence[MessageLeases], ahead: int) -> None:
        """
        Args:
            ahead: images that the worker holds when it is full.
        """
        self.empty = [True for _ in queues]  # whether the last receive brought no message
        self.requested = [0 for _ in queues]  # messages in a receive under way, or being claimed
        self._queues = queues
        self._ahead = ahead

    @property
    def idle(self) -> bool:
        """Whether no message is in hand, and the last receive of every queue brought none."""
        return all(self.empty) and not any(queue.in_hand for queue in self._queues)

    def share(self, number: int, room: Callable[[bool], int], *, full: bool) -> int:
        """How many messages to receive from a queue now; 0 or less: wait.

        Args:
            number: which queue, from 0.
            room: how many more images the worker would take on, of the express lane (True) or the other.
            full: whether it has work, so that a receive of only a few messages can wait.
        """
        part = self._ahead // 4
        busy = [other for other, empty in enumerate(self.empty) if other != number and not empty]
        quota = self._ahead if not busy else self._ahead - part if number == 0 else max(1, part)
        express = self.is_express(number)
        others = 0 if express else sum(self.requested[other] for other in busy)
        free = min(room(express) - others, quota - len(self._queues[number].in_hand))
        worth = min(BATCH, max(1, self._ahead // 2), quota)
        return min(free, worth) if free >= worth or express or not full else 0

    def is_express(self, number: int) -> bool:
        """Whether a queue, by its number from 0, is the express lane."""
        return number == 0 and len(self._queues) > 1
