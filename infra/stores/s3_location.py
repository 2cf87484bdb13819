"""The bucket that a store lies in: how messages name its objects, and what the store calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class S3Location:
    """A store on S3: its bucket, and the prefix of its keys with the slash, or ""."""

    bucket: str
    prefix: str

    @classmethod
    def of(cls, url: str) -> Self | None:
        """The home of a store; None of one that is not on S3."""
        if not url.startswith("s3://"):
            return None
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return cls(bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "")

    def inside(self, key: str) -> str | None:
        """A bucket's key as the store's; None when it lies outside."""
        return key.removeprefix(self.prefix) if key.startswith(self.prefix) else None


def key_in_store(home: S3Location | None, key: str) -> str | None:
    """A claim check's key as the store's: it is written with or without the bucket."""
    if not key.startswith("s3://"):
        return key
    bucket, _, rest = key.removeprefix("s3://").partition("/")
    return home.inside(rest) if home is not None and bucket == home.bucket else None
