"""Which texts are valid keys, key prefixes and metadata: the same for every store.

A valid key can be joined to a directory, signed in a URL and printed in a terminal safely: it has no `..`,
no empty segment, no control character and no unpaired surrogate.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from infra.stores.store import InvalidKey
from schemas.layout import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEY_BYTES = 1024  # S3's limit, for every store
MAX_METADATA_BYTES = 1900  # names and values together; S3's limit of 2,048 less our nonce
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VALUE = re.compile(r"([!-~]([ -~]*[!-~])?)?")


class BucketKey(str):
    """A key as a bucket spells it, such as `requests//a.json`, which is not valid in every store.

    What strangers dropped is taken under any key. Only `get`, `head` and `delete` of a bucket accept this type,
    and only under `requests/`; a listing of a bucket holds it. Nothing is ever written under such a key.
    """

    __slots__ = ()

    @property
    def has_dots(self) -> bool:
        """Whether a segment is "." or "..": some servers resolve it, and then it names another object."""
        return not {".", ".."}.isdisjoint(self.split("/"))


def key_of_bucket(key: str) -> str:
    """The key, as a `BucketKey` where it is not a valid one and lies under `requests/`."""
    return key if is_key(key) or not key.startswith(REQUESTS) else BucketKey(key)


def is_key(key: str) -> bool:
    try:
        check_key(key)
    except InvalidKey:
        return False
    return True


def check_key(key: str) -> None:
    """Raise `InvalidKey`, which says what is wrong, unless the text is a valid key."""
    _check_text(key, "key")
    if not key:
        raise InvalidKey("the key is empty; a key looks like 'requests/cat.json'")
    _check_segments(key, key.split("/"))


def check_prefix(prefix: str) -> None:
    """Raise `InvalidKey` unless a valid key can begin with this; every key begins with ""."""
    _check_text(prefix, "prefix")
    _check_segments(prefix, prefix.split("/")[:-1])


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise `ValueError` unless an HTTP header can carry each entry unchanged."""
    for name, value in metadata.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(
                f"metadata {name!r}: {value!r} is not valid: names are lower-case letters, digits and dashes, "
                "values are printable ASCII without a space at either end"
            )
    size = sum(len(name) + len(value) for name, value in metadata.items())
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"the metadata is {size:,} bytes; the limit is {MAX_METADATA_BYTES:,}")


def _check_text(text: str, what: str) -> None:
    check_size(text, what)
    if control := _CONTROL.search(text):
        raise InvalidKey(f"the {what} {text!r} has the control character {control[0]!r}; rename it")


def check_size(text: str, what: str = "key") -> None:
    """Raise `InvalidKey` for what no store can hold: too long, or not Unicode."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidKey(f"the {what} {text!r} is not valid Unicode: it has an unpaired surrogate") from error
    if size > MAX_KEY_BYTES:
        raise InvalidKey(f"the {what} {text[:60]!r}... is {size:,} bytes; the limit is {MAX_KEY_BYTES:,}")


def _check_segments(text: str, segments: list[str]) -> None:
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidKey(f"the key {text!r} has the segment {segment!r}; none may be empty, '.' or '..'")
