"""Where a store lies in S3: how `s3://bucket/prefix` is written, and which keys of the bucket are its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket, and the prefix of the store's keys in it: "" or with its slash."""

    bucket: str
    prefix: str = ""

    @classmethod
    def of(cls, url: str) -> Self | None:
        """The location that a store's URL names; None when the store is not on S3."""
        if not url.startswith("s3://"):
            return None
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return cls(bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "")

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def inside(self, key: str) -> str | None:
        """The store's key for a key of the bucket; None when it lies outside the prefix."""
        return key.removeprefix(self.prefix) if key.startswith(self.prefix) else None


def key_in_store(location: S3Location | None, key: str) -> str | None:
    """The store's key for a reference: a key, or `s3://bucket/key`; None when it lies elsewhere."""
    if not key.startswith("s3://"):
        return key
    bucket, _, rest = key.removeprefix("s3://").partition("/")
    return location.inside(rest) if location is not None and bucket == location.bucket else None
