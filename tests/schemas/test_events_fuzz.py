"""No message, however strange, stops the reader; and no key is lost in any vendor's encoding."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas.events import (
    MAX_RECORDS,
    Created,
    Direct,
    Ignored,
    Item,
    Reference,
    Unknown,
    decode,
    reference,
)

FIXTURES = sorted((Path(__file__).parent.parent / "wire" / "events").glob("*.json"))
MESSAGES = [json.loads(path.read_bytes()) for path in FIXTURES if path.stem != "manifest-broken"]
SECRET = "hunter2"  # stands in every text of a message that must not be quoted

steady = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def words_of(value: Any) -> set[str]:
    """The field names and short texts of a message: what the reader looks for."""
    inner = [*value.values(), *value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return set().union(
        {value} if isinstance(value, str) and len(value) < 30 else set(), *map(words_of, inner)
    )


words = st.sampled_from(sorted(words_of(MESSAGES)))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | words
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=25,
)
letters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(" +%=/&?#é日\u200b\t%2B")
object_keys = st.text(letters, min_size=1, max_size=120).filter(lambda key: len(key.encode()) <= 1024)


def check(items: list[Item]) -> None:
    """What holds of every answer."""
    assert 1 <= len(items) <= MAX_RECORDS + 1
    for item in items:
        match item:
            case Created(bucket, keys, sequencer):
                assert bucket
                assert keys
                assert len(keys) == len(set(keys)) <= 3
                assert all(0 < len(key.encode()) <= 1024 for key in keys)
                assert len(sequencer) <= 64
            case Direct(body):
                assert body
            case Reference(key):
                assert 0 < len(key) <= 2048
            case Ignored(reason, detail):
                assert re.fullmatch(r"[a-z_]+", reason)
                assert len(detail) <= 80
                assert detail.isprintable()
            case Unknown(reason):
                assert 0 < len(reason) <= 300
                assert reason.isprintable()


@steady
@given(st.binary(max_size=400) | st.text(max_size=400))
def test_any_bytes_and_any_text_are_answered(message: bytes | str):
    """Most of it is no JSON at all."""
    check(decode(message))


@steady
@given(trees)
def test_any_json_is_answered_the_same_as_text_and_as_bytes(tree: Any):
    """Words of the envelopes stand in the wrong places, with the wrong types."""
    text = json.dumps(tree)
    check(decode(text))
    assert decode(text) == decode(text.encode())


@steady
@given(st.sampled_from(MESSAGES), st.data())
def test_a_real_message_with_one_thing_changed_is_answered(message: Any, data: st.DataObject):
    """Any value anywhere in it is replaced, left out, doubled or wrapped."""
    changed = json.loads(json.dumps(message))
    place, parent, step = changed, None, None
    while isinstance(place, dict | list) and place and (parent is None or data.draw(st.integers(0, 4))):
        parent, step = (
            place,
            data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))),
        )
        place = parent[step]
    match data.draw(st.sampled_from(["replace", "drop", "wrap", "double"])):
        case "replace":
            parent[step] = data.draw(trees)
        case "drop":
            del parent[step]
        case "wrap":
            parent[step] = data.draw(
                st.sampled_from([[place], {"Message": json.dumps(place)}, json.dumps(place)])
            )
        case "double" if isinstance(parent, list):
            parent.append(place)
    check(decode(json.dumps(changed)))


@steady
@given(st.sampled_from(FIXTURES), st.data())
def test_a_real_message_that_was_cut_or_garbled_is_answered(path: Path, data: st.DataObject):
    """As a broken transport would hand it on."""
    body = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    check(decode(bytes(body[: data.draw(st.integers(0, len(body)))])))


@steady
@given(trees)
def test_a_sentence_for_the_log_quotes_no_text(tree: Any):
    """Neither prompts nor credentials reach a log: RustFS puts a request's signature into its events."""

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fill(inner) for name, inner in value.items()} | {f"{SECRET} !": 1}
        return [fill(inner) for inner in value] if isinstance(value, list) else SECRET

    for message in (json.dumps(fill(tree)), json.dumps(fill(tree))[:-1], json.dumps([fill(tree)])):
        assert not [item for item in decode(message) if isinstance(item, Unknown) and SECRET in item.reason]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_no_place_of_a_real_message_reaches_the_log(path: Path):
    """Each value in turn is a secret, alone or inside a list: no sentence about the message repeats it."""
    text = path.read_text()
    texts = re.finditer(r'"(?:[^"\\]|\\.)*"(\s*:)?', text)
    for value in [found for found in texts if not found[1]]:
        for secret in (f'"{SECRET}"', f'["{SECRET}"]', f'{{"{SECRET}!": "{SECRET}"}}'):
            items = decode(text[: value.start()] + secret + text[value.end() :])
            assert not [item for item in items if isinstance(item, Unknown) and SECRET in item.reason]


@steady
@given(st.sampled_from(MESSAGES), st.integers(0, 2), st.booleans())
def test_wrapping_changes_nothing_but_the_wrapping(message: Any, wrappings: int, in_lambda: bool):
    """SNS, SQS and Lambda carry what they were given."""
    text = json.dumps(message)
    wrapped = text
    for _ in range(wrappings):
        wrapped = json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:r:1:t", "Message": wrapped})
    if in_lambda:
        wrapped = json.dumps({"Records": [{"eventSource": "aws:sqs", "body": wrapped}]})
    assert decode(wrapped) == decode(text)


def s3(key: str, source: str, name: str = "ObjectCreated:Put", **more: Any) -> dict[str, Any]:
    inside = {"bucket": {"name": "b"}, "object": {"key": key}}
    return {
        "Records": [{"eventVersion": "2.1", "eventSource": source, "eventName": name, "s3": inside} | more]
    }


def said(message: Any) -> tuple[str, ...]:
    (item,) = decode(json.dumps(message))
    assert isinstance(item, Created), item
    return item.keys


@steady
@given(object_keys)
@example("requests/a b+c%d=é.json")
@example("a%2Bb+c d/e=f%")
@example("%")
@example("+")
def test_the_documented_encoding_of_any_key_is_read_as_that_key_first(key: str):
    """S3 leaves slashes alone, MinIO and RustFS encode them; EventBridge, Ceph and MinIO's Key do not encode."""
    assert said(s3(quote_plus(key, safe="/"), "aws:s3"))[0] == key
    assert said(s3(quote_plus(key), "minio:s3", "s3:ObjectCreated:Put"))[0] == key
    assert said(s3(quote(key, safe=""), "rustfs:s3", "s3:ObjectCreated:Put"))[0] == key
    assert said(s3(key, "ceph:s3"))[0] == key
    assert said(s3(key, "aws:s3", eventId="", opaqueData=""))[0] == key
    assert said({"EventName": "s3:ObjectCreated:Put", "Key": f"b/{key}"})[0] == key
    detail = {"bucket": {"name": "b"}, "object": {"key": key}}
    assert said({"source": "aws.s3", "detail-type": "Object Created", "detail": detail})[0] == key


@steady
@given(object_keys, st.sampled_from(["aws:s3", "minio:s3", "rustfs:s3", "ceph:s3", "somebody:s3"]))
@example("a+b %2B", "aws:s3")
@example("+ ", "aws:s3")
def test_any_encoding_of_any_key_by_anybody_is_among_its_readings(key: str, source: str):
    """Encoded as a form, as a path, as a path that leaves the plus alone, or not at all."""
    for written in (quote_plus(key, safe="/"), quote_plus(key), quote(key), quote(key, safe="/+"), key):
        assert key in said(s3(written, source))
        detail = {"bucket": {"name": "b"}, "object": {"key": written}}
        assert key in said({"source": "aws.s3", "detail-type": "Object Created", "detail": detail})


@steady
@given(object_keys)
def test_a_reference_to_any_key_comes_back(key: str):
    """Whatever signs it holds: screenshots have narrow blanks in their names, families of emoji have joiners."""
    assert decode(reference(key)) == [Reference(key)]


MIB = 1 << 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "message",
    [
        "[" * MIB,
        '{"a":' * (MIB // 5),
        '{"steps": ' + "9" * MIB + "}",
        '{"prompt": -' + "9" * MIB + "}",
        "[" + "[]," * (MIB // 3) + "[]]",
        '{"Records": [' + "{}," * (MIB // 3) + "{}]}",
        '{"prompt"' * (MIB // 9),
        '{"prompt"' + " " * MIB,
        "{" + ",".join(f'"{i}": 0' for i in range(MIB // 10)) + "}",
        " " * MIB,
        '"' + "\\u0000" * (MIB // 6) + '"',
        json.dumps(s3("%" * MIB, "aws:s3")),
        json.dumps(s3("%41" * (MIB // 3), "aws:s3")),
        json.dumps({"EventName": "s3:" * (MIB // 3), "Key": "/" * MIB}),
        b"\xff" * MIB,
    ],
    ids=lambda message: repr(message[:12]),
)
def test_a_megabyte_of_malice_is_answered(message: str | bytes):
    """The largest message that a queue takes; time that grew with the square of it would take hours."""
    check(decode(message))
