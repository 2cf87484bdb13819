"""Store calls of real workers in virtual time: what docs/scale.md says of their growth is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.benchmarks.scale import PURPOSES, Counts, Load, count

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
HAND = 2  # images in the hands of each worker


@pytest.fixture(scope="module")
def fleets() -> dict[int, Counts]:
    return {workers: count(Load(workers, ahead=HAND, warm=20, window=60)) for workers in (1, 6)}


def test_every_call_has_its_purpose(fleets: dict[int, Counts]):
    """The purposes add up to all calls, so nothing is left out of the page."""
    for found in fleets.values():
        assert sum(map(found.rate, PURPOSES)) == pytest.approx(found.total)
        assert found.ended > 0


def test_what_one_worker_does_for_itself_grows_with_the_fleet_only(fleets: dict[int, Counts]):
    """Heartbeats, looks at the inbox, at cancellations and status objects: six workers, six times the calls."""
    one, six = fleets[1], fleets[6]
    assert one.rate("heartbeats") == pytest.approx(0.1)
    for purpose in ("heartbeats", "inbox: pages of requests/", "status objects written"):
        assert six.rate(purpose) == pytest.approx(6 * one.rate(purpose), rel=0.15), purpose
    looks = six.rate("cancelled? (a look at the result of what is in hand)") / 6
    assert looks == pytest.approx(HAND / 2, rel=0.15)  # every two seconds, for each request in hand


def reads(found: Counts) -> float:
    """Claims that sweeps read for each request."""
    return found.rate("sweeps: claims read") * found.load.window / found.ended


def test_in_a_small_fleet_every_worker_reads_the_claims_of_all_others(fleets: dict[int, Counts]):
    """Which would grow with the square of the fleet."""
    for workers, found in fleets.items():
        assert reads(found) == pytest.approx(workers - 1, rel=0.25, abs=0.05), workers


def test_in_a_large_fleet_claims_are_not_read_while_all_workers_live():
    """But for one that was just being deleted by its own worker."""
    assert reads(count(Load(6, ahead=HAND, warm=20, window=60, few=0))) < 0.1


def test_a_request_costs_what_the_page_says(fleets: dict[int, Counts]):
    """Calls of a request with one image, whoever else works."""
    said = re.search(r"\*\*(\d+) calls\*\* for a request with one image", PAGE.read_text())
    assert said is not None
    for found in fleets.values():
        calls = found.rate("requests: read, claimed, committed, tidied") * found.load.window / found.ended
        assert calls == pytest.approx(int(said[1]), rel=0.05)
