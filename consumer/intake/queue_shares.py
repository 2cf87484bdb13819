"""How the room of one worker is shared out among its queues.

While several queues have work the first, for express, gets three quarters of the room and the
others a quarter; a queue that is empty lends its part. Room is gathered until it is worth a call,
and no message is taken only to wait here while another worker is idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.queues.message import BATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.queues.leases import MessageLeases


class QueueShares:
    """One worker's queues, express first."""

    def __init__(self, bells: Sequence[MessageLeases], ahead: int) -> None:
        """
        Args:
            ahead: images that the worker holds when it is full.
        """
        self.dry = [True for _ in bells]  # whether its last receive found nothing
        self.asked = [0 for _ in bells]  # messages asked for, or being looked at
        self._bells = bells
        self._ahead = ahead

    @property
    def idle(self) -> bool:
        """Whether no message is in hand, and every queue was empty when last asked."""
        return all(self.dry) and not any(bell.in_hand for bell in self._bells)

    def share(self, lane: int, room: int, *, full: bool) -> int:
        """How many messages a lane may ask for now; 0 or less: wait.

        Args:
            room: how many more images the worker would take on.
            full: whether it has work, so that a call for few messages may wait.
        """
        part = self._ahead // 4
        busy = [other for other, dry in enumerate(self.dry) if other != lane and not dry]
        quota = self._ahead if not busy else self._ahead - part if lane == 0 else max(1, part)
        free = min(room - sum(self.asked[other] for other in busy), quota - len(self._bells[lane].in_hand))
        worth = min(BATCH, max(1, self._ahead // 2), quota)
        return min(free, worth) if free >= worth or not full else 0
