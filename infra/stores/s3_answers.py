"""What goes to S3 with a write, and what its answers say: facts of objects, entries of listings, versions."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

from infra.aws import FOREIGN, code_of, status_of
from infra.stores.store import Info, Stored, Versions
from schemas.errors import TooLarge

if TYPE_CHECKING:
    from collections.abc import Mapping

NONCE = "dreamdrop-nonce"  # metadata name


def is_surely_unwritten(error: Exception) -> bool:
    """Whether the store said that it did not write; then there is nothing to read back."""
    return status_of(error) in (409, 429) or code_of(error) in (
        "SlowDown",
        "Throttling",
        "RequestLimitExceeded",
    )


def body_fields(body: bytes, content_type: str, *, on_aws: bool) -> dict[str, Any]:
    """The fields of a write that carry its body. Off AWS an MD5 goes with it, which object lock asks for.

    On AWS the SDK adds a checksum itself; not every other server understands that one.
    """
    fields: dict[str, Any] = {"Body": body}
    if content_type:
        fields["ContentType"] = content_type
    if not on_aws:
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        fields["ContentMD5"] = base64.b64encode(digest).decode()
    return fields


def is_folder(entry: Mapping[str, Any]) -> bool:
    """Whether it stands for a folder, as consoles create them."""
    return str(entry["Key"]).endswith("/") and not int(entry["Size"])


def info_of(key: str, answer: Mapping[str, Any]) -> Info:
    metadata = {k: v for k, v in answer.get("Metadata", {}).items() if k != NONCE}
    modified = answer["LastModified"].timestamp()
    return Info(key, int(answer["ContentLength"]), answer["ETag"].strip('"'), modified, metadata)


def listed_info(key: str, entry: Mapping[str, Any]) -> Info:
    return Info(key, int(entry["Size"]), entry["ETag"].strip('"'), entry["LastModified"].timestamp())


async def read(client: Any, bucket: str, full: str, key: str, max_bytes: int | None) -> Stored:
    """An object with its body. Raises `TooLarge`, and the errors of `infra.aws.FOREIGN`."""
    answer = await client.get_object(Bucket=bucket, Key=full)
    async with answer["Body"] as stream:
        size = int(answer["ContentLength"])
        if max_bytes is not None and size > max_bytes:
            raise TooLarge(key, size, max_bytes)
        body = await stream.read()
    return Stored(info_of(key, answer), body)


async def is_ours(client: Any, place: Mapping[str, str], nonce: str) -> bool | None:
    """Read a create back: ours, another's, or None when that is not known yet.

    Args:
        place: Bucket and Key.
    """
    try:
        answer = await client.head_object(**place)
    except FOREIGN:
        return None
    return bool(answer.get("Metadata", {}).get(NONCE) == nonce)


async def versions_of(client: Any, bucket: str) -> Versions:
    """What becomes of a bucket's old versions; "none" also where that may not be read."""
    try:
        if (await client.get_bucket_versioning(Bucket=bucket)).get("Status") != "Enabled":
            return "none"
    except FOREIGN:
        return "none"
    try:
        rules = (await client.get_bucket_lifecycle_configuration(Bucket=bucket)).get("Rules", ())
    except FOREIGN:  # most often: there is no such configuration
        return "kept"
    ends = any(r.get("Status") == "Enabled" and r.get("NoncurrentVersionExpiration") for r in rules)
    return "expire" if ends else "kept"
