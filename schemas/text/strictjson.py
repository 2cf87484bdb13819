"""Parses one JSON object strictly, and says where a broken one breaks.

Python's parser accepts NaN, repeated keys and any depth; a manifest must not have them.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from schemas.errors import Rejected

DEEPEST = 64  # nested objects and lists; pydantic, which writes the results, stops at 255
_TOO_DEEP = "nested too deeply; a request needs three levels"
#: What may stand at the break of a JSON text that ends too early: nothing, or a piece of a word or number.
_CUT_OFF = re.compile(r"\s*|-|[.eE][+-]?|[eE][+-]?|t|tr|tru|f|fa|fal|fals|n|nu|nul")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that is valid in a pair only


def load_object(body: bytes, *, what: str = "a request") -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        Rejected: `invalid_json`, with line and column (from 1) where the text is broken; or the value is
            not an object, or has NaN, Infinity, a repeated key, an unpaired surrogate or too many levels.
    """
    if not body.strip():
        raise Rejected(
            "invalid_json", f"it is empty; {what} is a JSON object", line=1, column=1, unfinished=True
        )
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = body[: error.start]
        raise Rejected(
            "invalid_json",
            f"byte {error.start} is not UTF-8; save the file as UTF-8",
            line=before.count(b"\n") + 1,
            column=error.start - (before.rfind(b"\n") + 1) + 1,
            unfinished=error.reason == "unexpected end of data",
        ) from error
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        fault = (
            f"there is more text after the object; {what} is one object"
            if error.msg == "Extra data"
            else error.msg
        )
        message = f"not valid JSON at line {error.lineno}, column {error.colno}: {fault}"
        early = _ends_too_early(text, error)
        raise Rejected(
            "invalid_json", message, line=error.lineno, column=error.colno, unfinished=early
        ) from error
    except RecursionError as error:
        raise Rejected("invalid_json", _TOO_DEEP) from error
    except Rejected:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise Rejected("invalid_json", "a number has too many digits") from error
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(
            type(value), "a number"
        )
        raise Rejected("invalid_json", f"{what} is a JSON object {{...}}, not {kind}", line=1, column=1)
    if _is_too_deep(value):
        raise Rejected("invalid_json", _TOO_DEEP)
    if _SURROGATE.search(text):
        _no_unpaired_surrogates(value)
    return value


def _ends_too_early(text: str, error: json.JSONDecodeError) -> bool:
    """Whether more text could make this valid JSON, as in a file that is still being copied."""
    rest = text[error.pos :]
    if error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\"):  # an escape that is cut off, or wrong
        return re.fullmatch(r"\\?u?[0-9a-fA-F]{0,4}", rest) is not None
    return _CUT_OFF.fullmatch(rest) is not None


def path_of_infinity(value: Any) -> str | None:
    """The dotted path to a number that is larger than JSON's readers can hold, such as 1e999; None without one.

    Python reads such a number as infinite, and would write it as null.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else ""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in parts:
        if (path := path_of_infinity(inner)) is not None:
            return f"{name}.{path}".removesuffix(".")
    return None


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _no_unpaired_surrogates(value: Any) -> None:
    """Python accepts an unpaired surrogate, but it cannot be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        surrogate = f"\\u{ord(error.object[error.start]):04x}"
        raise Rejected(
            "invalid_json",
            f"{surrogate} is an unpaired surrogate; write both escapes of the pair, or the character itself",
        ) from error


def _no_constant(name: str) -> NoReturn:
    raise Rejected("invalid_json", f"{name} is neither JSON nor a usable number; give a finite number")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            field = key[:60] if key.isprintable() else None  # a surrogate could not be written in a result
            raise Rejected("invalid_json", f"the field {key[:60]!r} is given twice; keep one", field=field)
        document[key] = value
    return document
