"""Reads one event of one object, in the dialects of the object stores.

AWS S3, MinIO, RustFS and Ceph have the fields `eventName`, `s3.bucket.name` and `s3.object.key` in common.
They differ in spelling: `s3:` before the name or not, snake_case, an encoded key or not. EventBridge has a
format of its own. Only the creation of an object matters; every other event is `Ignored`, with a reason to
count it by.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, unquote_plus

MAX_KEY_BYTES = 1024  # of UTF-8, as S3 allows
#: An encoded key is ASCII without blanks, with two hex digits after each "%".
_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*")
#: MinIO and RustFS report these as ObjectCreated, but the object existed before.
_NOT_NEW = {
    "puttagging": "tagging",
    "deletetagging": "tagging",
    "putretention": "lock",
    "putlegalhold": "lock",
}
#: By the beginning of an event's name, without colons, blanks and capitals.
_IGNORED = {
    "objectremoved": "removed",
    "objectdeleted": "removed",
    "objectsynceddelet": "removed",
    "lifecycleexpiration": "removed",
    "objectlifecycleexpiration": "removed",  # Ceph's word
    "objecttag": "tagging",
    "objectrestore": "restored",
    "testevent": "test_event",
}


@dataclass(frozen=True, slots=True)
class Created:
    """An object was created, or written again."""

    bucket: str
    keys: tuple[str, ...]  # its possible keys, the likeliest first; not empty, none twice
    sequencer: str = ""  # raw; orders the events of one key only


@dataclass(frozen=True, slots=True)
class Ignored:
    """Recognised, but it asks for nothing."""

    reason: str  # to count by, such as "test_event", "removed", "confirmation"
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Not understood; it must not be lost silently."""

    reason: str  # for the log; it never quotes the message's values


def read_record(record: dict[str, Any], around: dict[str, Any]) -> Created | Ignored | Unknown:
    """Read one `Records` entry; `around` is the message that held it ({} when there was none)."""
    version = _first(record, "eventVersion", "event_version")
    if isinstance(version, str) and not version.startswith("2."):
        return Unknown("an S3 event whose eventVersion is not 2.x; only those are known")
    name = _first(record, "eventName", "event_name") or _first(around, "EventName", "event_name")
    if not isinstance(name, str) or not name:
        return Unknown("an S3 event without an eventName")
    if ignored := _ignored(name):
        return ignored
    s3 = record["s3"]
    bucket, thing = s3.get("bucket"), s3.get("object")
    if not isinstance(bucket, dict) or not isinstance(thing, dict):
        return Unknown("an S3 event whose bucket or object is not a JSON object")
    if not thing.get("key") and isinstance(_first(around, "Key", "key"), str):
        return read_short(around)  # some releases of RustFS leave the inner key out
    return _created(
        bucket.get("name"), thing.get("key"), thing.get("sequencer"), encoded=not _from_ceph(record)
    )


def read_short(message: dict[str, Any]) -> Created | Ignored | Unknown:
    """Read MinIO's short form: `EventName`, and `Key`, which is "bucket/key", not encoded."""
    name, path = _first(message, "EventName", "event_name"), _first(message, "Key", "key")
    if not isinstance(name, str) or not isinstance(path, str):
        return Unknown("an event whose EventName or Key is not a text")
    if ignored := _ignored(name):
        return ignored
    bucket, _, key = path.partition("/")
    return _created(bucket, key, None, encoded=False)


def read_eventbridge(event: dict[str, Any]) -> Created | Ignored | Unknown:
    """Read Amazon EventBridge's envelope. Its keys are not encoded, as far as is known."""
    if event.get("source") != "aws.s3":
        return Unknown("an EventBridge event whose source is not aws.s3")
    name, detail = event["detail-type"], event.get("detail")
    if not isinstance(name, str):
        return Unknown("an EventBridge event whose detail-type is not a text")
    if ignored := _ignored(name):
        return ignored
    match detail:
        case {"bucket": {"name": bucket}, "object": {"key": key, **rest}}:
            return _created(bucket, key, rest.get("sequencer"), encoded=False)
    return Unknown("an EventBridge event 'Object Created' that names no bucket or no key")


def readings(key: str, *, encoded: bool) -> tuple[str, ...]:
    """The keys that a text may stand for, the likeliest first; () when no object can have such a key.

    Args:
        encoded: whether this kind of event should encode its keys as in a form. A text that no encoder
            writes (with a blank, a character beyond ASCII or a lone "%") is taken as it is first.
    """
    if len(key) > 3 * MAX_KEY_BYTES:  # longer than the longest key with every byte encoded
        return ()
    as_form, as_path = _decoded(unquote_plus, key), _decoded(unquote, key)
    by_likelihood = (
        (as_form, key, as_path) if encoded and _ENCODED.fullmatch(key) else (key, as_form, as_path)
    )
    return tuple(dict.fromkeys(k for k in by_likelihood if k and _can_be(k)))


def shown(text: object) -> str:
    """A name from a message, fit for a log: short and printable; "" when it is not a string."""
    return "".join(c if c.isprintable() else "?" for c in text[:80]) if isinstance(text, str) else ""


def _created(bucket: Any, key: Any, sequencer: Any, *, encoded: bool) -> Created | Unknown:
    if not isinstance(bucket, str) or not bucket:
        return Unknown("an event of a created object names no bucket")
    if not isinstance(key, str) or not key:
        return Unknown("an event of a created object names no key")
    keys = readings(key, encoded=encoded)
    if not keys:
        return Unknown(
            f"an event names a key that no object can have: over {MAX_KEY_BYTES} bytes, or not Unicode"
        )
    return Created(bucket, keys, sequencer if isinstance(sequencer, str) and len(sequencer) <= 64 else "")


def _ignored(name: str) -> Ignored | None:
    """None for a creation."""
    word = name.removeprefix("s3:").replace(":", "").replace(" ", "").lower()
    if word.startswith(("objectcreated", "objectsyncedcreate")):
        not_new = _NOT_NEW.get(word.removeprefix("objectcreated"))
        return Ignored(not_new, shown(name)) if not_new else None
    for beginning, reason in _IGNORED.items():
        if word.startswith(beginning):
            return Ignored(reason, shown(name))
    return Ignored("other_event", shown(name))


def _from_ceph(record: dict[str, Any]) -> bool:
    """Whether Ceph sent it: by its name, or by two fields that only Ceph's records have."""
    source = _first(record, "eventSource", "event_source")
    return source == "ceph:s3" or ("opaqueData" in record and "eventId" in record)


def _first(record: dict[str, Any], *names: str) -> Any:
    return next((record[name] for name in names if name in record), None)


def _decoded(how: Any, key: str) -> str | None:
    try:
        return str(how(key, errors="strict"))
    except UnicodeError:
        return None


def _can_be(key: str) -> bool:
    try:
        return len(key.encode()) <= MAX_KEY_BYTES
    except UnicodeEncodeError:  # an unpaired surrogate
        return False
