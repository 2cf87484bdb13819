"""What may be a key, and what may be the beginning of one: the same in every store.

A key that passes here can be joined to a directory, signed in a URL and printed in a terminal
without surprises: no way up, no empty segment, no control character, no half surrogate.
"""

from __future__ import annotations

import unicodedata

from infra.store import InvalidKey

MAX_KEY_BYTES = 1024  # S3's limit, for every store


def check_key(key: str) -> None:
    """Raise `InvalidKey`, saying what is wrong, unless the text can be a key in any store."""
    _check_text(key, "key")
    if not key:
        raise InvalidKey("the key is empty; a key looks like 'requests/cat.json'")
    _check_segments(key, key.split("/"))


def check_prefix(prefix: str) -> None:
    """Raise `InvalidKey` unless a key could begin like this; "" is the beginning of all."""
    _check_text(prefix, "prefix")
    _check_segments(prefix, prefix.split("/")[:-1])


def _check_text(text: str, what: str) -> None:
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidKey(f"the {what} {text!r} is not valid Unicode: it has half a surrogate pair") from error
    if size > MAX_KEY_BYTES:
        raise InvalidKey(f"the {what} {text[:60]!r}... is {size:,} bytes; the limit is {MAX_KEY_BYTES:,}")
    for character in text:
        if unicodedata.category(character) == "Cc":
            raise InvalidKey(f"the {what} {text!r} has the control character {character!r}; rename it")


def _check_segments(text: str, segments: list[str]) -> None:
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidKey(f"the key {text!r} has the segment {segment!r}; none may be empty, '.' or '..'")
