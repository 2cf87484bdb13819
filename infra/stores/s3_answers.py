"""Reads what S3 answers: an object's facts, a listing's entries, and whether a write was surely not done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.aws import code_of, status_of
from infra.stores.store import Info

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


def content_type_field(content_type: str) -> dict[str, str]:
    return {"ContentType": content_type} if content_type else {}


def is_folder(entry: Mapping[str, Any]) -> bool:
    """Whether it stands for a folder, as consoles create them."""
    return str(entry["Key"]).endswith("/") and not int(entry["Size"])


def info_of(key: str, answer: Mapping[str, Any]) -> Info:
    metadata = {k: v for k, v in answer.get("Metadata", {}).items() if k != NONCE}
    modified = answer["LastModified"].timestamp()
    return Info(key, int(answer["ContentLength"]), answer["ETag"].strip('"'), modified, metadata)


def listed_info(key: str, entry: Mapping[str, Any]) -> Info:
    return Info(key, int(entry["Size"]), entry["ETag"].strip('"'), entry["LastModified"].timestamp())
