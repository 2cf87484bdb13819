"""How much waits in a store's inbox and in its queues, for people and for whatever scales the workers.

The inbox is listed when metrics are read, at most every half minute, and up to a bound: to count millions of
objects would cost thousands of calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.queues.message import QueueFacts
from infra.stores.store import Store
from schemas import layout

_EVERY = 30.0  # seconds between two looks
COUNTED = 10_000  # request objects at most: ten calls in a bucket


class Countable(Protocol):
    """A queue that says how full it is; see `infra.queues.sqs.Queue`."""

    async def facts(self) -> QueueFacts: ...


@dataclass
class _Lane:
    requests: int = 0
    oldest: float | None = None  # seconds since 1970, by the store's clock


@dataclass(eq=False)
class Backlog(Collector):
    """What waits at one store. Figures are those of the last `refresh`."""

    store: Store
    queues: Sequence[Countable] = ()  # express first
    prefix: str = layout.REQUESTS  # of what was dropped
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time  # comparable with the store's clock
    lanes: dict[str, _Lane] = field(default_factory=dict)
    messages: list[tuple[str, QueueFacts]] = field(default_factory=list)  # by lane
    _due: float = float("-inf")

    async def refresh(self) -> None:
        """Look again if the last look was long ago. Raises `StoreUnavailable`, `QueueUnavailable`."""
        if self.clock() < self._due:
            return
        self._due = self.clock() + _EVERY  # first: a store that does not answer is not asked more often
        lanes = {"express": _Lane(), "normal": _Lane()}
        counted = 0
        async for info in self.store.list(self.prefix):
            if not info.key.lower().endswith((layout.SINGLE, layout.BATCH)):
                continue
            lane = lanes["express" if info.key.startswith(layout.EXPRESS) else "normal"]
            lane.requests += 1
            lane.oldest = min(lane.oldest or info.modified, info.modified)
            counted += 1
            if counted >= COUNTED:
                break
        self.lanes = lanes
        names = ["express", "normal"] if len(self.queues) > 1 else ["normal"]
        names += [f"normal-{number}" for number in range(2, len(self.queues))]
        self.messages = [(name, await queue.facts()) for name, queue in zip(names, self.queues, strict=False)]

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests in the inbox, and messages that are visible. With a queue one request may be in both."""
        inbox = sum(lane.requests for lane in self.lanes.values())
        return inbox, sum(facts.visible for _, facts in self.messages)

    def collect(self) -> Iterable[Metric]:
        requests = GaugeMetricFamily(
            "dreamdrop_inbox_requests",
            f"Request objects that nobody has claimed, counted up to {COUNTED:,}; the whole store's.",
            labels=["lane"],
        )
        oldest = GaugeMetricFamily(
            "dreamdrop_inbox_oldest_seconds",
            "Age of the oldest request object that nobody has claimed; 0 when there is none.",
            labels=["lane"],
        )
        for name, lane in self.lanes.items():
            requests.add_metric([name], lane.requests)
            oldest.add_metric([name], max(0.0, self.now() - lane.oldest) if lane.oldest is not None else 0.0)
        messages = GaugeMetricFamily(
            "dreamdrop_queue_messages",
            "Messages in the queue, approximately: visible, or in flight at some worker.",
            labels=["lane", "state"],
        )
        for name, facts in self.messages:
            messages.add_metric([name, "visible"], facts.visible)
            messages.add_metric([name, "in_flight"], facts.in_flight)
        return [requests, oldest, messages] if self.queues else [requests, oldest]
