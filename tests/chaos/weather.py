"""What the long and the short chaos run do to the network and to the queue, and how often.

The shares are those of the promises in docs/reliability.md: one answer in ten lost after the write
took effect, one notification in ten dropped, one message in twenty delivered twice.
"""

from __future__ import annotations

from tests.servers.fault_proxy import Rule
from tests.servers.sqs_front import Habits


def on_the_way_to_the_bucket() -> list[Rule]:
    """The first rule that strikes decides, so the shares are nearly those written here."""
    return [
        Rule("lost", 0.10, verb="PUT"),
        Rule("lost", 0.10, verb="DELETE"),
        Rule("late", 0.01, verb="PUT", seconds=1.0),
        Rule("cut_request", 0.01, verb="PUT"),
        Rule("conflict", 0.02, verb="PUT"),
        Rule("broken_after", 0.01, verb="PUT"),
        Rule("truncated", 0.03, verb="GET"),
        Rule("slow_down", 0.03),
        Rule("broken", 0.02),
        Rule("reset", 0.01),
        Rule("hang", 0.002, seconds=3.0),
        Rule("hang_after", 0.002, seconds=3.0),
        Rule("latency", 0.05, seconds=0.1),
    ]


def promised() -> list[Rule]:
    """The weather in which throughput is promised to stay above a half."""
    return [Rule("lost", 0.10), Rule("slow_down", 0.03), Rule("broken", 0.02), Rule("conflict", 0.02)]


def on_the_way_to_the_queue() -> list[Rule]:
    """A lost answer to a receive leaves its messages invisible to everybody."""
    return [
        Rule("lost", 0.10),
        Rule("truncated", 0.02),
        Rule("broken", 0.05),
        Rule("reset", 0.02),
        Rule("hang", 0.005, seconds=3.0),
        Rule("latency", 0.05, seconds=0.1),
    ]


def of_the_queue() -> Habits:
    """A minute's visibility takes six seconds here, so that a run is not all waiting."""
    return Habits(twice=0.05, lost=0.10, short=0.05, undeleted=0.02, failed=0.02, hours=0.1)
