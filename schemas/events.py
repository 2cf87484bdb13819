"""Decodes queue messages of every dialect.

A message is a *manifest* itself, a *reference* to one in the bucket, or an *event* of an object store,
perhaps inside envelopes (SNS, Lambda, EventBridge). `decode` opens the envelopes and returns what is in
them, item by item; it never raises.

A JSON object counts as a manifest, however faulty, when it has a field `prompt` (or nearly that name), or
a field that only a request for a picture has (`steps`, `cfg_scale`, ...) and none of an envelope's. It then
ends as a `failed` result that names the fault. Text that is cut off or is not valid JSON counts as a manifest
when it begins like an object and contains `"prompt":`. Names that any message may have (`id`, `model`,
`width`, ...) prove nothing.

S3, MinIO and RustFS encode keys as in a form (a space is `+`), EventBridge and Ceph do not encode them, and
there are exceptions: a `Created` has every possible key, the likeliest first.
"""

from __future__ import annotations

import base64
import difflib
import json
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from schemas.completion import TYPE_PREFIX
from schemas.manifest import TASKS, Img2Img, Inpainting, Text2Img
from schemas.object_events import Created, Ignored, Unknown, read_eventbridge, read_record, read_short, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Created", "Direct", "Ignored", "Item", "Reference", "Unknown", "decode", "reference"]

MAX_RECORDS = 1000  # of one message; S3 sends one, a message written by hand perhaps a few
MAX_WRAPPINGS = 5  # envelopes inside envelopes; Lambda around SQS around SNS around S3 is three


@dataclass(frozen=True, slots=True)
class Direct:
    """The message is a manifest itself."""

    body: bytes  # exactly as sent; inside an envelope, exactly the text that it carried


@dataclass(frozen=True, slots=True)
class Reference:
    """A claim check: the manifest is in the bucket, because it is too large for a message."""

    key: str  # "requests/big.json" or "s3://bucket/requests/big.json", as written


Item = Created | Direct | Reference | Ignored | Unknown

_FIELDS = frozenset(name for body in (Text2Img, Img2Img, Inpainting) for name in body.model_fields)
_ANYBODYS = frozenset({"id", "image", "width", "height", "model", "task", "output", "metadata", "strict"})
_TELLING = _FIELDS - _ANYBODYS - {"expires_at"}
_MARKS = (
    "Records",
    "records",
    "EventName",
    "Event",
    "s3",
    "Message",
    "TopicArn",
    "Sns",
    "detail-type",
    "specversion",
)
_PROMPT = re.compile(r'"prompt"\s*:')
_MARK_IN_TEXT = re.compile(rf'"(?:{"|".join(map(re.escape, _MARKS))})"\s*:')
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,23}")
_SURROGATE = re.compile("[\ud800-\udfff]")  # not in any key: it cannot be written as UTF-8
#: Fields of what AWS Lambda and Step Functions put around a message.
_CARRIERS = ("requestContext", "TaskToken", "taskToken")
_CONFIRMATIONS = ("SubscriptionConfirmation", "UnsubscribeConfirmation")
#: First words of the claim check that Amazon's extended client libraries send, new and old.
_POINTERS = (
    "software.amazon.payloadoffloading.PayloadS3Pointer",
    "com.amazon.sqs.javamessaging.MessageS3Pointer",
)


def reference(key: str) -> str:
    """The message that refers to the manifest at `key`; always the same for the same key."""
    return json.dumps({"reference": key})  # ASCII: a queue refuses some characters


def decode(text: str | bytes) -> list[Item]:
    """The items of a message: one for each record, in order; at least one.

    Time and memory grow with the length of the text only. A record that is not understood is an
    `Unknown` of its own beside the others. Everything after `MAX_RECORDS` is one `Unknown`.
    """
    items = list(islice(_read(text, 0), MAX_RECORDS + 1))
    if len(items) > MAX_RECORDS:
        items[MAX_RECORDS] = Unknown(
            f"the message has more than {MAX_RECORDS:,} records; the rest is not read"
        )
    return items


def _read(message: str | bytes, wrappings: int) -> Iterator[Item]:
    """Yield a message's items. Each generator here yields at least one, so a limit on items limits the work."""
    if wrappings > MAX_WRAPPINGS:
        yield Unknown(f"the message is wrapped more than {MAX_WRAPPINGS} times")
        return
    body = message if isinstance(message, bytes) else message.encode("utf-8", "surrogatepass")
    try:
        text = body.decode("utf-8-sig") if isinstance(message, bytes) else message.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        yield _broken(body, body.decode("utf-8", "replace"), f"not UTF-8 at byte {error.start}")
        return
    try:
        value = json.loads(text, parse_int=_any_number, parse_float=_any_number, parse_constant=_any_number)
    except json.JSONDecodeError as error:
        yield _broken(body, text, f"not JSON at line {error.lineno}, column {error.colno}")
    except RecursionError:
        yield _broken(body, text, "JSON that is nested too deeply")
    else:
        yield from _value(value, body, wrappings)


def _any_number(_: str) -> int:
    return 0  # no number matters here, and to read one of a million digits takes minutes


_DECODER = json.JSONDecoder(parse_int=_any_number, parse_float=_any_number, parse_constant=_any_number)
_BETWEEN = re.compile(r"[ \t\r\n,:]*")


def _broken(body: bytes, text: str, why: str) -> Item:
    """Text that is not valid JSON: a manifest with a fault, whose sender gets a `failed` result, or unknown."""
    ours = text.lstrip("\ufeff \t\r\n").startswith("{") and _PROMPT.search(text)
    if ours and not _MARK_IN_TEXT.search(text):
        return Direct(body)
    return Unknown("the message is empty" if not text.strip() else f"the message is {why}")


def _value(value: Any, body: bytes, wrappings: int) -> Iterator[Item]:
    if isinstance(value, list):
        yield from _list(value, body, wrappings)
    elif not isinstance(value, dict):
        yield Unknown(f"the message is {_kind(value)}, not a JSON object")
    elif "prompt" in value:
        yield Direct(body)
    elif any(mark in value for mark in _MARKS):
        yield from _envelope(value, body, wrappings)
    elif any(mark in value for mark in _CARRIERS):
        yield from _carried(value, body, wrappings)
    elif _is_manifest(value):
        yield Direct(body)
    elif "reference" in value:
        yield _reference(value["reference"])
    else:
        yield from _record(value, wrappings)


def _list(entries: list[Any], body: bytes, wrappings: int) -> Iterator[Item]:
    """Several manifests, or events without their envelope, as MinIO pushes them to Redis; or a pointer."""
    match entries:
        case []:
            yield Ignored("no_records")
        case [str(word), {"s3BucketName": str(bucket), "s3Key": str(key)}] if word in _POINTERS:
            yield _reference(f"s3://{bucket}/{key}" if bucket and key else None)
        case _:
            for entry, text in zip(entries, _parts(body), strict=True):
                if isinstance(entry, dict) and ("prompt" in entry or "detail-type" in entry):
                    yield from _value(entry, text.encode("utf-8", "surrogatepass"), wrappings + 1)
                else:
                    yield from _record(entry, wrappings)


def _carried(value: dict[str, Any], body: bytes, wrappings: int) -> Iterator[Item]:
    """What AWS Lambda and Step Functions put around a manifest."""
    match value:
        case {"requestContext": dict(), "responsePayload": dict()}:  # a function's destination
            yield from _part(body, "responsePayload", wrappings)
        case {"requestContext": dict(), "body": str(text)}:  # what an API handed to a function
            yield from _read(_plain(text, value.get("isBase64Encoded") is True), wrappings + 1)
        case {"TaskToken": str()} | {"taskToken": str()}:
            yield Unknown(
                "a task of Step Functions that waits for its token, which nothing here returns; send the "
                "manifest alone, without .waitForTaskToken"
            )
        case _:
            yield from [Direct(body)] if _is_manifest(value) else _record(value, wrappings)


def _plain(text: str, encoded: bool) -> str | bytes:
    try:
        return base64.b64decode(text, validate=True) if encoded else text
    except ValueError:
        return text


def _part(body: bytes, name: str, wrappings: int) -> Iterator[Item]:
    """Read the value of a field as a message of its own, exactly as it is written."""
    parts = list(_parts(body))
    texts = [text for key, text in zip(parts[::2], parts[1::2], strict=True) if json.loads(key) == name]
    yield from _read(texts[-1], wrappings + 1)


def _parts(body: bytes) -> Iterator[str]:
    """The texts of a JSON list's entries, or of an object's names and values in turn, as they are written."""
    text = body.decode("utf-8", "surrogatepass").lstrip("\ufeff \t\r\n")
    place = _BETWEEN.match(text, 1).end()  # type: ignore[union-attr]  # it matches nothing, too
    while text[place] not in "]}":
        end = _DECODER.raw_decode(text, place)[1]
        yield text[place:end]
        place = _BETWEEN.match(text, end).end()  # type: ignore[union-attr]


def _envelope(value: dict[str, Any], body: bytes, wrappings: int) -> Iterator[Item]:
    match value:
        case {"Event": "s3:TestEvent"}:
            yield Ignored("test_event", shown(value.get("Bucket")))
        case {"Type": str(kind)} if kind in _CONFIRMATIONS:
            yield Ignored("confirmation", shown(value.get("TopicArn")))
        case {"specversion": _, "type": str(kind)} if kind.startswith(TYPE_PREFIX):
            yield Ignored(
                "announcement", shown(value.get("subject"))
            )  # our own, by a topic that feeds the queue
        case {"Message": str(text)}:
            yield from _read(text, wrappings + 1)
        case {"detail-type": _, "detail": {"prompt": _} | {"reference": _}} if (
            value.get("source") != "aws.s3"
        ):
            yield from _part(body, "detail", wrappings)
        case {"detail-type": _}:
            yield read_eventbridge(value)
        case {"Records": list(records)} | {"records": list(records)} | {"Event": list(records)}:
            if records:
                for record in records:
                    yield from _record(record, wrappings, value)
            elif isinstance(value.get("EventName"), str):
                yield read_short(value)
            else:
                yield Ignored("no_records")
        case {"EventName": str(), "Key": str()}:
            yield read_short(value)
        case _:
            yield from _record(value, wrappings)


def _record(record: Any, wrappings: int, around: dict[str, Any] | None = None) -> Iterator[Item]:
    """One entry of `Records`: an object's event, or what SNS or SQS gave to Lambda."""
    match record:
        case {"Sns": {"Message": str(text)}} | {"eventSource": "aws:sqs", "body": str(text)}:
            yield from _read(text, wrappings + 1)
        case {"Event": list(events)} if events and around is None:
            for event in events:
                yield from _record(event, wrappings, record)
        case {"s3": dict()}:
            yield read_record(record, around or {})
        case dict():
            yield Unknown(f"a JSON object that is neither a manifest nor an event known here{_names(record)}")
        case _:
            yield Unknown(f"a record is {_kind(record)}, not a JSON object")


def _is_manifest(value: dict[str, Any]) -> bool:
    if not _TELLING.isdisjoint(value) or value.get("task") in TASKS:
        return True
    names = [name.lower() for name in islice(value, 50) if len(name) <= 20]
    return bool(difflib.get_close_matches("prompt", names, 1, 0.8))


def _reference(key: Any) -> Item:
    if not isinstance(key, str) or not key or len(key) > 2048 or _SURROGATE.search(key):
        return Unknown("the field 'reference' is not the key of an object")
    return Reference(key)


def _names(record: dict[str, Any]) -> str:
    """The first field names, which help to find the sender. Only plain ones: others may be content."""
    names = [name for name in islice(record, 6) if _PLAIN_NAME.fullmatch(name)]
    return f"; its fields begin {', '.join(names)}" if names else ""


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
