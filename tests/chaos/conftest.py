"""How deep the proof goes: quick by default, `--hypothesis-profile=long` for a night."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "long", max_examples=3000, stateful_step_count=200, deadline=None, suppress_health_check=list(HealthCheck)
)
