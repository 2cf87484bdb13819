"""Real workers behind a failing network, killed, frozen and stopped: nothing is lost, doubled or torn.

The long form is `python -m tests.chaos.run`; this one is small enough for every change.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import TIERS, Round, live, show

REQUESTS, HARMS = 60, 9  # of a tier


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_every_request_has_one_true_result_whatever_breaks(tier: str, tmp_path: Path):
    """One answer in ten is lost after its write, one notification in ten; workers die, freeze and drain."""
    verdict, figures = live(Round(tier, seed=1, requests=REQUESTS, harms=HARMS), tmp_path)
    print(show([figures]))
    assert verdict.is_good, str(verdict)
    assert figures["kill"] > 0
    assert figures["pause"] > 0
    if tier != "directory":
        assert figures["faults"]["lost"] > REQUESTS / 5
    if tier == "queue":
        assert figures["faults"]["notifications lost"] > 0
        assert figures["faults"]["delivered again"] > 0
