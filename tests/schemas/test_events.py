"""Every dialect of a queue message is read as what it means, and none of them raises."""

from __future__ import annotations

import json

from schemas.events import Direct, Ignored, Reference, Unknown, decode, reference


def test_a_manifest_is_handed_on_byte_for_byte():
    """What is doubtful in it (a field twice, NaN, blanks) is for the manifest's own reader to name."""
    for body in (b'{"prompt": "a cat"}', b' {"prompt": "a", "prompt": "b", "steps": NaN}\n', b'{"prompt": 1e999}'):
        assert decode(body) == [Direct(body)]
        assert decode(body.decode()) == [Direct(body)]


def test_a_reference_is_read_as_it_was_written():
    """The claim check's body says the key and nothing else, in plain ASCII."""
    for key in ("requests/big.json", "s3://bucket/requests/big.json", 'requests/ä + "%2F".json'):
        assert reference(key).isascii()
        assert decode(reference(key)) == [Reference(key)]


def test_the_event_that_s3_sends_when_it_is_first_wired_is_dropped():
    """It has no records, and is no request."""
    assert decode(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"})) == [
        Ignored("test_event", "b")
    ]


def test_what_nobody_knows_says_so():
    """An unknown shape is one sentence, not an exception."""
    for message in ("", "hello", "5", "null", '"text"', '{"a": 1}', "{", b"\xff\xfe"):
        (item,) = decode(message)
        assert isinstance(item, Unknown)
        assert item.reason
