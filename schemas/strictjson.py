"""JSON as a stranger sends it: one value, no surprises, and where it is broken.

Python's parser takes NaN, duplicate keys and any depth; a manifest must not have them.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from schemas.errors import Rejected


def load_object(body: bytes, *, what: str = "a request") -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        Rejected: `invalid_json`, with line and column (from 1) where the text breaks; or the
            value is not an object, holds NaN, Infinity, a repeated key or absurd nesting.
    """
    if not body.strip():
        raise Rejected("invalid_json", f"the file is empty; {what} is a JSON object", line=1, column=1)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = body[: error.start]
        raise Rejected(
            "invalid_json",
            f"byte {error.start} is not UTF-8; save the file as UTF-8",
            line=before.count(b"\n") + 1,
            column=error.start - (before.rfind(b"\n") + 1) + 1,
        ) from error
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        message = f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise Rejected("invalid_json", message, line=error.lineno, column=error.colno) from error
    except RecursionError as error:
        raise Rejected("invalid_json", "nested too deeply; a request needs three levels") from error
    except Rejected:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise Rejected("invalid_json", "a number has too many digits") from error
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(
            type(value), "a number"
        )
        raise Rejected("invalid_json", f"{what} is a JSON object {{...}}, not {kind}", line=1, column=1)
    return value


def _no_constant(name: str) -> NoReturn:
    raise Rejected(
        "invalid_json", f"{name} is not JSON and not a number that can be drawn with; give a finite number"
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Rejected("invalid_json", f"the field {key!r} is given twice; keep one", field=key)
        found[key] = value
    return found
