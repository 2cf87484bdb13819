"""Queue messages as they stand in the world: each vendor's and version's, and what it means.

Add files; never change one.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote_plus

import pytest

from schemas.events import Created, Direct, Ignored, Item, Reference, Unknown, decode

WIRE = Path(__file__).parent
KEY = "requests/a b+c%d=é.json"  # what every fixture's object is called
MANIFEST = b'{"prompt": "a red circle on a blue background", "steps": 5}'


def created(sequencer: str = "0055AED6DCD90281E5", key: str = KEY) -> tuple[str, str, str]:
    return ("pictures", key, sequencer)


#: What each fixture says. A creation is told by its bucket, its likeliest key and its sequencer.
MEANINGS: dict[str, list[object]] = {
    "aws-s3-2.0": [created()],
    "aws-s3-2.1": [created()],
    "aws-s3-2.5-versioned": [created()],
    "aws-s3-2.6-copy": [created()],
    "aws-s3-2.2-removed": [Ignored("removed", "ObjectRemoved:DeleteMarkerCreated")],
    "aws-s3-2.3-restored": [Ignored("restored", "ObjectRestore:Completed")],
    "aws-s3-2.3-tagged": [Ignored("tagging", "ObjectTagging:Put")],
    "aws-s3-several": [
        created(),
        Ignored("removed", "ObjectRemoved:Delete"),
        Unknown("an S3 event whose eventVersion is not 2.x; only those are known"),
        created(key="requests/b.json"),
    ],
    "aws-s3-test-event": [Ignored("test_event", "pictures")],
    "sns-s3": [created()],
    "sns-s3-test-event": [Ignored("test_event", "pictures")],
    "sns-manifest": [Direct(MANIFEST)],
    "sns-confirmation": [Ignored("confirmation", "arn:aws:sns:eu-central-1:123456789012:dropped")],
    "lambda-sns-s3": [created()],
    "lambda-sqs": [created(), Direct(MANIFEST), created()],
    "eventbridge-created": [created()],
    "eventbridge-created-encoded": [created(key=quote_plus(KEY, safe="/"))],
    "eventbridge-created-1.0": [created()],
    "eventbridge-deleted": [Ignored("removed", "Object Deleted")],
    "eventbridge-tags": [Ignored("tagging", "Object Tags Added")],
    "eventbridge-tier": [Ignored("other_event", "Object Access Tier Changed")],
    "minio-webhook": [created("17B6EDC3FA1D0CF0")],
    "minio-listen": [created("17B6EDC3FA1D0CF0")],
    "minio-short": [created("")],
    "minio-redis-access": [created("17B6EDC3FA1D0CF0")],
    "minio-tagged": [Ignored("tagging", "s3:ObjectCreated:PutTagging")],
    "minio-removed": [Ignored("removed", "s3:ObjectRemoved:Delete")],
    "rustfs-webhook": [created("189F3B1C3A1F0E66")],
    "rustfs-tagged-no-key": [Ignored("tagging", "s3:ObjectCreated:PutTagging")],
    "rustfs-multipart-no-key": [Unknown("an event of a created object names no key")],
    "rustfs-old-snake-case": [created("187F3B1C3A1F0E66")],
    "ceph-rgw-2.1-prefixed": [created("F7E6D75DC742D108")],
    "ceph-rgw-2.2": [created("F7E6D75DC742D108")],
    "ceph-rgw-synced": [created("F7E6D75DC742D108")],
    "ceph-rgw-expired": [Ignored("removed", "ObjectLifecycle:Expiration:Current")],
    "announcement": [Ignored("announcement", "cats/a")],
    "sns-announcement": [Ignored("announcement", "cats/a")],
    "manifest": [Direct(MANIFEST + b"\n")],
    "manifest-misspelt": [Direct(b'{"promt": "a red circle", "stepps": 5}\n')],
    "manifest-field-twice": [Direct(b'{"prompt": "a cat", "prompt": "a dog", "cfg_scale": NaN}\n')],
    "manifest-broken": [Direct(b'{"prompt": "a cat", "steps": 5,}\n')],
    "reference": [Reference("requests/big.json")],
    "reference-of-amazons-libraries": [Reference("s3://pictures/requests/big.json")],
}


def meaning(item: Item) -> object:
    return (item.bucket, item.keys[0], item.sequencer) if isinstance(item, Created) else item


def test_every_fixture_has_a_meaning_and_every_meaning_a_fixture():
    """A dialect that is added to the world is added to the table."""
    assert {path.stem for path in (WIRE / "events").iterdir()} == set(MEANINGS)


@pytest.mark.parametrize("name", sorted(MEANINGS))
def test_a_message_as_it_stands_in_the_world_is_read(name: str):
    """As text, as bytes, and behind a byte order mark."""
    body = (WIRE / "events" / f"{name}.json").read_bytes()
    assert [meaning(item) for item in decode(body)] == MEANINGS[name]
    assert decode(body.decode()) == decode(body)
    if not isinstance(MEANINGS[name][0], Direct):
        assert decode(b"\xef\xbb\xbf" + body) == decode("\ufeff" + body.decode()) == decode(body)


@pytest.mark.parametrize("path", sorted((WIRE / "documented").iterdir()), ids=lambda path: path.stem)
def test_the_documented_bodies_are_messages_too(path: Path):
    """Whoever sends one straight to the queue has sent a request."""
    assert decode(path.read_bytes()) == [Direct(path.read_bytes())]
