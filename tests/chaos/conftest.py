"""Registers the profile of the long proof before hypothesis looks for it."""

from __future__ import annotations

import tests.chaos.depth  # noqa: F401
