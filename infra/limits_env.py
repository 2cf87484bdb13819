"""Limits from environment variables: workers, clients and the facade read the same ones."""

from __future__ import annotations

import os
from collections.abc import Mapping

from schemas.errors import DreamError
from schemas.limits import Limits

_VARIABLES = {
    "DREAMDROP_MAX_STEPS": ("max_steps", 1),
    "DREAMDROP_MAX_SIDE": ("max_side", 1),
    "DREAMDROP_MAX_NATIVE_AREAS": ("max_native_areas", 1),
    "DREAMDROP_MAX_IMAGES": ("max_images", 1),
    "DREAMDROP_MAX_BODY_MB": ("max_body_bytes", 1 << 20),
}


def limits_from(environment: Mapping[str, str] = os.environ) -> Limits:
    """The limits that this environment sets.

    Raises:
        DreamError: a variable is not a positive whole number.
    """
    values = {}
    for name, (field, unit) in _VARIABLES.items():
        text = environment.get(name, "").strip()
        if text and not (text.isdecimal() and int(text) > 0):
            raise DreamError(f"{name} is {text!r}: set it to a whole number above 0, or leave it out")
        if text:
            values[field] = int(text) * unit
    return Limits(**values)
