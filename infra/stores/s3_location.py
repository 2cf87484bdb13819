"""Where a store lies in S3: how `s3://bucket/prefix` is written, and which keys of the bucket are its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from infra.stores.keys import check_prefix
from schemas.errors import Unsupported

MAX_PREFIX_BYTES = 500  # so that our longest keys fit behind it


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


def usable_location(url: str) -> S3Location:
    """The location of a store's URL. Raises `Unsupported` or `InvalidKey` where no store can be."""
    location = S3Location.of(url)
    if location is None or not location.bucket:
        raise Unsupported(f"{url!r} does not name a bucket: write s3://bucket or s3://bucket/prefix")
    if location.bucket.endswith("--x-s3"):
        raise Unsupported(
            f"{location.bucket} is an S3 directory bucket, which does not list in order; "
            "use a general purpose bucket"
        )
    check_prefix(location.prefix)
    if len(location.prefix.encode()) > MAX_PREFIX_BYTES:
        raise Unsupported(
            f"the prefix in {url[:60]!r}... is longer than {MAX_PREFIX_BYTES} bytes; shorten it"
        )
    return location
