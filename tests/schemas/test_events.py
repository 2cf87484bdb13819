"""Every dialect of a queue message is read as what it means, and no faulty record spoils its neighbours."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import quote, quote_plus

import pytest

from schemas.errors import Rejected
from schemas.events import (
    MAX_RECORDS,
    MAX_WRAPPINGS,
    Created,
    Direct,
    Ignored,
    Reference,
    Unknown,
    decode,
    reference,
)
from schemas.manifest import Img2Img, Inpainting, Text2Img, parse_manifest

KEY = "requests/a b+c%d=é.json"
EVENTBRIDGE = {
    "source": "aws.s3",
    "detail-type": "Object Created",
    "detail": {"bucket": {"name": "pictures"}, "object": {"key": "a+b%2F"}},
}


def s3_record(key: object = "requests/a.json", **changed: object) -> dict[str, object]:
    inside = {"bucket": {"name": "pictures"}, "object": {"key": key}}
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": inside,
    } | changed


def keys(message: object) -> tuple[str, ...]:
    (item,) = decode(json.dumps(message))
    assert isinstance(item, Created), item
    return item.keys


def test_a_manifest_is_handed_on_byte_for_byte():
    """What is doubtful in it (a field twice, NaN, blanks) is for the manifest's own reader to name."""
    for body in (
        b' {"prompt": "a", "prompt": "b", "steps": NaN}\n',
        b'{"prompt": 1e999}',
        b'{"prompt":"\xc3\xa9"}',
    ):
        assert decode(body) == [Direct(body)]
        assert decode(body.decode()) == [Direct(body)]
    marked = b'\xef\xbb\xbf{"prompt": "a"}'
    assert decode(marked) == [Direct(marked)]
    assert parse_manifest(marked).prompt == "a"


@pytest.mark.parametrize(
    "body",
    [
        '{"Prompt": "a cat"}',
        '{"promt": "a cat"}',
        '{"steps": 5, "text": "a cat"}',
        '{"task": "img2img", "image": "aGk="}',
        '{"prompt": 5}',
        '{"prompt": "a cat", "Records": []}',
        '{"prompt": "a cat"',
        '{"prompt": "a cat"}\n{"prompt": "a dog"}',
        '{"prompt": "a cat", "metadata": ' + "[" * 100_000,
        '{"steps": 5, "prompt" : "a cat" "seed": 1}',
        b'{"prompt": "a c\xe4t"}',
        '{"prompt": "half a pair: \ud800"}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_faulty_manifest_is_still_one(body: str | bytes):
    """It reaches the manifest's reader, whose refusal its sender can understand."""
    (item,) = decode(body)
    assert isinstance(item, Direct)
    with pytest.raises(Rejected):
        parse_manifest(item.body)


@pytest.mark.parametrize("model", [Text2Img, Img2Img, Inpainting])
def test_no_field_of_a_manifest_makes_it_something_else(model: type[Text2Img]):
    """Beside a prompt, every field that the schema has or will have leaves a manifest a manifest."""
    body = json.dumps(dict.fromkeys(model.model_fields, "x"))
    assert decode(body) == [Direct(body.encode())]


def test_names_that_anybody_uses_prove_nothing():
    """A stranger's message must not end as a failed picture of ours."""
    for message in (
        {"id": 5, "metadata": {}},
        {"image": "a.png", "width": 5, "height": 5},
        {"task": "resize"},
    ):
        (item,) = decode(json.dumps(message))
        assert isinstance(item, Unknown)
        assert item.reason.endswith(f"its fields begin {', '.join(message)}")


def test_a_reference_is_read_as_it_was_written():
    """The claim check's body says the key and nothing else, in plain ASCII."""
    assert reference("requests/big.json") == '{"reference": "requests/big.json"}'
    for key in ("requests/big.json", "s3://bucket/requests/big.json", 'requests/ä + "%2F".json', KEY):
        assert reference(key).isascii()
        assert decode(reference(key)) == [Reference(key)]


@pytest.mark.parametrize("key", [5, None, "", [], "\ud800", "x" * 3000])
def test_a_reference_to_nothing_is_unknown(key: object):
    """It is ours, and cannot be followed."""
    assert decode(json.dumps({"reference": key})) == [
        Unknown("the field 'reference' is not the key of an object")
    ]


@pytest.mark.parametrize(
    "record",
    [
        5,
        None,
        [],
        {},
        "text",
        {"s3": 5, "eventName": "ObjectCreated:Put"},
        s3_record(eventName=None),
        s3_record(eventName={}),
        s3_record(eventVersion="3.0"),
        s3_record(eventVersion="21"),
        s3_record(s3={}),
        s3_record(s3={"bucket": [], "object": {}}),
        s3_record(s3={"bucket": {"name": 5}, "object": {"key": "a"}}),
        s3_record(key=5),
        s3_record(key=None),
        s3_record(key=""),
        s3_record(key="x" * 2000),
        s3_record(key="\ud800"),
        {"Sns": {"Message": 5}},
        {"Sns": {"Message": "not JSON"}},
        {"eventSource": "aws:sqs", "body": {}},
    ],
    ids=lambda record: json.dumps(record)[:60],
)
def test_a_senseless_record_spoils_none_of_its_neighbours(record: object):
    """It is an Unknown of its own; what stands before and after it counts."""
    before, item, after = decode(json.dumps({"Records": [s3_record("a"), record, s3_record("b")]}))
    assert isinstance(item, Unknown)
    assert item.reason
    assert (before, after) == (Created("pictures", ("a",)), Created("pictures", ("b",)))


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (quote_plus(KEY, safe="/"), [KEY]),
        (quote_plus(KEY), [KEY]),
        (quote(KEY), [KEY]),
        (KEY, [KEY]),  # some imitations do not encode
        ("a+b", ["a b", "a+b"]),
        ("a%2Bb", ["a+b", "a%2Bb"]),
        ("a+b%20c", ["a b c", "a+b%20c", "a+b c"]),  # a path's encoding leaves the plus alone
        ("a=b.json", ["a=b.json"]),
        ("100%.json", ["100%.json"]),
        ("%FF", ["%FF"]),  # not UTF-8 behind the encoding: it is none
    ],
)
def test_an_encoded_key_is_read_as_a_form_first(key: str, read: list[str]):
    """Unless no encoder can have written it; the other readings follow, for when nothing is found."""
    found = keys({"Records": [s3_record(key)]})
    assert list(found[: len(read)]) == read
    assert key in found


def test_the_longest_key_that_s3_allows_is_read_when_every_byte_is_encoded():
    """1,024 bytes of UTF-8 are 3,072 signs."""
    assert keys({"Records": [s3_record("%C3%A9" * 512)]}) == ("é" * 512,)


def test_a_key_that_is_not_encoded_is_read_as_it_is_first():
    """EventBridge, Ceph and MinIO's short form say it plainly; the form's reading comes second."""
    assert keys(EVENTBRIDGE)[:2] == ("a+b%2F", "a b/")
    assert keys({"Records": [s3_record("a+b", eventSource="ceph:s3")]}) == ("a+b", "a b")
    assert keys({"Records": [s3_record("a+b", eventId="1", opaqueData="")]}) == ("a+b", "a b")
    assert keys({"EventName": "s3:ObjectCreated:Put", "Key": "b/a+b"}) == ("a+b", "a b")


def test_an_inner_key_that_is_missing_is_taken_from_without():
    """MinIO and RustFS name the object twice."""
    message = {"EventName": "s3:ObjectCreated:Put", "Key": "b/x/a+b", "Records": [s3_record("")]}
    assert keys(message) == keys(message | {"Records": []}) == ("x/a+b", "x/a b")


def test_a_sequencer_is_kept_as_it_is_or_not_at_all():
    """It orders the events of a key; what is far too long, or no text, orders nothing."""
    for written, kept in (("0055AED6", "0055AED6"), ("0" * 65, ""), (5, ""), (None, "")):
        inside = {"bucket": {"name": "pictures"}, "object": {"key": "a", "sequencer": written}}
        assert decode(json.dumps({"Records": [s3_record(s3=inside)]})) == [Created("pictures", ("a",), kept)]


def test_one_record_without_its_envelope_is_read():
    """As pipes that cut messages apart hand it on."""
    assert keys(s3_record("a")) == keys([s3_record("a")]) == ("a",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ObjectRemoved:Delete", "removed"),
        ("s3:ObjectRemoved:DeleteMarkerCreated", "removed"),
        ("LifecycleExpiration:Delete", "removed"),
        ("ObjectRestore:Post", "restored"),
        ("ObjectTagging:Delete", "tagging"),
        ("s3:ObjectCreated:PutRetention", "lock"),
        ("s3:ObjectAccessed:Get", "other_event"),
        ("Replication:OperationMissedThreshold", "other_event"),
        ("s3:TestEvent", "test_event"),
        ("ObjectCreat", "other_event"),
    ],
)
def test_what_is_no_creation_is_counted_and_dropped(name: str, reason: str):
    """An event that is known to be of no interest is told from one that is not understood."""
    assert decode(json.dumps({"Records": [s3_record(eventName=name)]})) == [Ignored(reason, name)]


def test_an_event_of_nothing_is_dropped():
    """An empty list of records asks for nothing."""
    for message in ("[]", '{"Records": []}', '{"records": []}'):
        assert decode(message) == [Ignored("no_records")]


@pytest.mark.parametrize(
    "message",
    [
        "", "  ", 'a "prompt": 5', "\ud800", "hello", '[{"Event": []}]',
        json.dumps([{"Event": [{"Event": [s3_record()]}]}]), json.dumps(EVENTBRIDGE | {"source": "my.app"}),
        "5", "null", '"text"', "NaN", "{", "[" * 100_000, '{"a": 1}', b"\xff\xfe", b"\x00",
        '{"Records": [{"s3": {"prompt": 5', '{"Type": "Notification"}', '{"Message": "hello"}', '{"Records": 5}',
        '{"source": "aws.s3", "detail-type": "Object Created", "detail": {"bucket": {}}}',
        '{"source": "aws.s3", "detail-type": 5}', '{"EventName": "s3:ObjectCreated:Put", "Key": 5}',
        '{"EventName": "s3:ObjectCreated:Put", "Key": "bucket"}',
        '["software.amazon.payloadoffloading.PayloadS3Pointer"]',
    ],
)  # fmt: skip
def test_what_nobody_knows_says_so(message: str | bytes):
    """An unknown shape is a sentence, not an exception, and never an Ignored that would be dropped."""
    items = decode(message)
    assert items
    assert all(isinstance(item, Unknown) and item.reason for item in items)


def test_envelopes_are_opened_only_so_deep():
    """Up to the bound a manifest comes out whole; beyond it the message is unknown."""
    message = '{"prompt": "a cat"}'
    for _ in range(MAX_WRAPPINGS):
        message = json.dumps({"Type": "Notification", "Message": message})
    assert decode(message) == [Direct(b'{"prompt": "a cat"}')]
    assert decode(json.dumps({"Message": message})) == [Unknown("the message is wrapped more than 5 times")]


def test_more_records_than_anybody_sends_are_not_read():
    """What was read counts; the rest is one Unknown, so that it is not lost silently."""
    records = [s3_record(f"{i}") for i in range(MAX_RECORDS + 5)]
    items = decode(json.dumps({"Records": records}))
    assert [item.keys[0] for item in items if isinstance(item, Created)] == [
        str(i) for i in range(MAX_RECORDS)
    ]
    assert isinstance(items[MAX_RECORDS], Unknown)
    assert len(items) == MAX_RECORDS + 1
    assert not any(
        isinstance(item, Unknown) for item in decode(json.dumps({"Records": records[:MAX_RECORDS]}))
    )


CAT = '{"prompt": "a cat", "cfg_scale": 7.50, "seed": 12345678901234567890}'


@pytest.mark.parametrize(
    "text",
    [
        f"[{CAT}]",
        f'\ufeff [ {CAT} ,\n{{"prompt": "b"}}]',
        f'{{"source": "my.app", "detail-type": "Wanted", "detail": {CAT}}}',
        f'[{{"source": "my.app", "detail-type": "Wanted", "detail": {CAT}}}]',
        f'{{"version": "1.0", "requestContext": {{}}, "requestPayload": {{}}, "responsePayload": {CAT}}}',
        json.dumps({"requestContext": {}, "httpMethod": "POST", "body": CAT}),
        json.dumps({"requestContext": {}, "body": b64encode(CAT.encode()).decode(), "isBase64Encoded": True}),
    ],
)
def test_a_manifest_in_a_list_or_in_a_carriers_wrapper_is_read_as_it_is_written(text: str):
    """Byte for byte, numbers included; a list holds one request an entry."""
    items = decode(text)
    assert items[0] == Direct(CAT.encode())
    assert items[1:] == ([Direct(b'{"prompt": "b"}')] if '"b"' in text else [])


def test_a_detail_may_be_a_claim_check_and_a_task_token_is_named():
    """Nobody here answers a task of Step Functions, so the message says what to send."""
    event = {"source": "x", "detail-type": "y", "detail": {"reference": "requests/a.json"}}
    assert decode(json.dumps(event)) == [Reference("requests/a.json")]
    for task in ({"TaskToken": "t", "Input": json.loads(CAT)}, {"taskToken": "t", "input": {}}):
        [item] = decode(json.dumps(task))
        assert isinstance(item, Unknown)
        assert "waitForTaskToken" in item.reason
