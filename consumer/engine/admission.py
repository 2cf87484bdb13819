"""Who is let in next: tasks that have not begun, oldest first, as long as there is room.

Tasks of equal *batch_key* can share UNet calls. A task begins when its batch_key's calls have a
free row, so that the device is always full and no more images than needed hold memory.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from consumer.renderer.protocol import ImageTask


def batch_key(task: ImageTask) -> Hashable:
    """Tasks with equal batch_key can share UNet calls."""
    return (task.model, task.width, task.height, task.loras, task.request if task.solo else None)


def rows_of(task: ImageTask) -> int:
    """UNet rows at each step: guidance needs a second one."""
    return 2 if task.cfg_scale > 1 else 1


class AdmissionQueue:
    """Tasks that have not begun, by batch_key."""

    def __init__(self, patience: int, most: int) -> None:
        """
        Args:
            patience: how many younger tasks may overtake one whose model is not loaded.
            most: UNet rows in flight at once, of all companies: every image in flight holds memory.
        """
        self._patience = patience
        self._most = most
        self._overtaken = 0
        self._arrivals = 0
        self._queues: dict[Hashable, deque[tuple[int, ImageTask]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, task: ImageTask) -> None:
        self._arrivals += 1
        self._queues.setdefault(batch_key(task), deque()).append((self._arrivals, task))

    def drop(self, request: str) -> None:
        """Forget every task of a request."""
        for key in list(self._queues):
            self._keep(key, deque(entry for entry in self._queues[key] if entry[1].request != request))

    def next(
        self,
        rows: Mapping[Hashable, int],
        room: Callable[[Hashable], int],
        at_hand: Callable[[str], bool],
        loadable: Callable[[str], bool],
    ) -> ImageTask | None:
        """Take the next task to begin, or None when nothing can begin now.

        The oldest goes first, except that models in memory go before models that would push
        another out, so that requests which alternate between models do not load them by turns.
        A task that was overtaken often enough stops all others until its model can be loaded.

        Args:
            rows: UNet rows in flight, by batch_key.
            room: UNet rows that a batch_key may have.
            at_hand: whether a model is in memory, or there is free room for it.
            loadable: whether it can be loaded now, if models that nobody uses leave.
        """
        if sum(rows.values()) >= self._most:
            return None
        open_keys = [key for key in self._queues if rows.get(key, 0) < room(key)]
        by_age = sorted(open_keys, key=lambda key: self._queues[key][0][0])
        if not by_age:
            return None
        if at_hand(self._model(by_age[0])):
            return self._take(by_age[0])
        if self._overtaken < self._patience:
            for key in by_age[1:]:
                if at_hand(self._model(key)):
                    self._overtaken += 1
                    return self._take(key)
        if loadable(self._model(by_age[0])):
            self._overtaken = 0
            return self._take(by_age[0])
        return None

    def _model(self, key: Hashable) -> str:
        return self._queues[key][0][1].model

    def _take(self, key: Hashable) -> ImageTask:
        _, task = self._queues[key].popleft()
        self._keep(key, self._queues[key])
        return task

    def _keep(self, key: Hashable, queue: deque[tuple[int, ImageTask]]) -> None:
        if queue:
            self._queues[key] = queue
        else:
            del self._queues[key]
