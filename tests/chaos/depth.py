"""How deep the proof goes: seconds by default, `--hypothesis-profile=long` for a night."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

QUICK = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long", QUICK, max_examples=3000, stateful_step_count=120, derandomize=False, print_blob=True
)


def is_long() -> bool:
    """Whether somebody asked for the night."""
    return settings().max_examples >= 3000
