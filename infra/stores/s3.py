"""A store in an S3-compatible bucket, through aiobotocore.

The difficult call is `create`: an answer can be lost after the write was done. So every object has a
*nonce* in its metadata, and an outcome that is not a plain yes or no is settled by reading the nonce back.
All other calls are retried by the SDK as usual.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import ClientError

from infra.aws import (
    FOREIGN,
    READ_TIMEOUT,
    LazyClient,
    code_of,
    config_for,
    is_on_aws,
    new_session,
    region_of,
    status_of,
)
from infra.backoff import backoff
from infra.credentials import Access
from infra.stores.keys import (
    MAX_KEY_BYTES,
    BucketKey,
    check_key,
    check_metadata,
    check_prefix,
    check_size,
    is_key,
    key_of_bucket,
)
from infra.stores.s3_answers import (
    NONCE,
    body_fields,
    info_of,
    is_folder,
    is_ours,
    is_surely_unwritten,
    listed_info,
    read,
    versions_of,
)
from infra.stores.s3_errors import is_final, translated, unsupported
from infra.stores.s3_files import Upload, create_small, download, is_small
from infra.stores.s3_location import usable_location
from infra.stores.store import Info, InvalidKey, Progress, Stored, Versions
from schemas.errors import NotFound, StoreUnavailable, Unsupported
from schemas.layout import REQUESTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path


class S3Store:
    """Keys below `s3://bucket/prefix`; belongs to the event loop that first uses it.

    Endpoint, region, profile and credentials are those that boto3 would use (`AWS_PROFILE`,
    `AWS_ENDPOINT_URL_S3`, `~/.aws/config`, instance roles, ...).
    """

    shows_partial_files = False
    is_remote = True

    def __init__(
        self,
        url: str,
        *,
        patience: float = 30.0,
        rng: random.Random | None = None,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        location = usable_location(url)
        self.bucket, self._prefix = location.bucket, location.prefix
        self.url = location.url
        self._patience = patience  # seconds for which a create is tried
        self._read_timeout = read_timeout  # seconds without a byte
        self._rng = rng or random.Random()
        self._access = Access()
        self._session = cache(lambda: new_session(self._access))  # both clients share the credentials
        self._client = LazyClient(lambda: self._new_client(tries=4))
        self._once = LazyClient(
            lambda: self._new_client(tries=1)
        )  # for creates: a retry would hide lost answers
        self._on_aws = True
        self._conditional_delete = True  # until the store refuses one

    async def open(self) -> None:
        """Connect, and check early that we can use the bucket. Raises `StoreUnavailable`."""
        client = await self._connected()
        try:
            await client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)
        except FOREIGN as error:
            if code_of(error) != "AccessDenied":  # a client may be allowed to write and not to list
                reason = self._translated(error, "open the store")  # before closing: it names the endpoint
                await self.close()  # here, because `async with` closes only what was opened
                raise reason from error

    @property
    def denied_for(self) -> float:
        return self._access.denied_for

    async def versions(self) -> Versions:
        return await versions_of(await self._connected(), self.bucket)

    async def close(self) -> None:
        await self._once.close()
        await self._client.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        full = self._full(key)
        client = await self._connected()
        for last in (False, False, True):  # the SDK does not retry a body that breaks off
            try:
                stored = await read(client, self.bucket, full, key, max_bytes)
                if isinstance(key, BucketKey) and key.has_dots:
                    await self._expect_same(stored.info)
                return stored
            except FOREIGN as error:
                if code_of(error) == "NoSuchKey":
                    raise NotFound(key) from error
                if last or isinstance(error, ClientError):
                    raise self._translated(error, f"read {key!r}", of_object=True) from error
        raise AssertionError("unreachable")

    async def is_being_written(self, key: str) -> bool:
        return False

    async def head(self, key: str) -> Info | None:
        full = self._full(key)
        client = await self._connected()
        if isinstance(key, BucketKey) and key.has_dots:
            return await self._listed(key)
        try:
            answer = await client.head_object(Bucket=self.bucket, Key=full)
        except FOREIGN as error:
            if status_of(error) == 404:
                return None
            raise self._translated(error, f"look at {key!r}", of_object=True) from error
        return info_of(key, answer)

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        """See `Store.create`. Each try writes the same nonce, so one that takes effect late counts as ours."""
        check_key(key)
        full = self._full(key)
        check_metadata(metadata or {})
        client = await self._connected(self._once)
        nonce = secrets.token_hex(16)
        fields = {
            "Metadata": {**(metadata or {}), NONCE: nonce},
            **body_fields(body, content_type, on_aws=self._on_aws),
        }
        give_up = time.monotonic() + self._patience
        waits = backoff(0.05, 2.5, self._rng)
        while True:
            try:
                await client.put_object(Bucket=self.bucket, Key=full, IfNoneMatch="*", **fields)
                return True
            except FOREIGN as error:
                # First, errors that every further try would meet again: nothing was written.
                self._raise_if_final(error, key)
                # Then read back: after any other error the write may have been done, by us or by another.
                if not is_surely_unwritten(error):
                    ours = await is_ours(client, {"Bucket": self.bucket, "Key": full}, nonce)
                    if ours is not None:
                        return ours
                # Only then again: the outcome is still open, and the same nonce makes another try safe.
                wait = next(waits)
                if time.monotonic() + wait > give_up:
                    raise self._translated(error, f"create {key!r}") from error
            await asyncio.sleep(wait)

    async def create_file(
        self, key: str, path: Path, *, sha256: str, progress: Progress | None = None
    ) -> bool:
        check_key(key)
        place = {"Bucket": self.bucket, "Key": self._full(key)}
        if is_small(path):
            return await create_small(self, key, path, sha256, progress)
        client, once = await self._connected(), await self._connected(self._once)
        upload = Upload(
            client, once, place, self.url, path, sha256, self._on_aws, self._patience, self._rng, progress
        )
        try:
            return await upload.run()
        except FOREIGN as error:
            self._raise_if_final(error, key)
            raise self._translated(error, f"create {key!r}") from error

    async def fetch_file(self, key: str, path: Path, *, progress: Progress | None = None) -> str:
        place = {"Bucket": self.bucket, "Key": self._full(key)}
        try:
            return await download(await self._connected(), place, path, progress)
        except FOREIGN as error:
            if code_of(error) == "NoSuchKey":
                raise NotFound(key) from error
            raise self._translated(error, f"read {key!r}", of_object=True) from error

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        check_key(key)
        full = self._full(key)
        client = await self._connected()
        try:
            fields = body_fields(body, content_type, on_aws=self._on_aws)
            await client.put_object(Bucket=self.bucket, Key=full, **fields)
        except FOREIGN as error:
            raise self._translated(error, f"write {key!r}") from error

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        check_prefix(prefix)
        client = await self._connected()
        after = {"StartAfter": self._prefix + start_after} if start_after else {}
        pages = client.get_paginator("list_objects_v2")
        try:
            async for page in pages.paginate(Bucket=self.bucket, Prefix=self._prefix + prefix, **after):
                for entry in page.get("Contents", ()):
                    key = key_of_bucket(str(entry["Key"])[len(self._prefix) :])
                    if is_key(key) or (isinstance(key, BucketKey) and not is_folder(entry)):
                        yield listed_info(key, entry)
        except FOREIGN as error:
            raise self._translated(error, f"list {prefix!r}") from error

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        """See `Store.delete`. Off AWS the condition may be ignored, so there the etag is compared first."""
        full = self._full(key)
        client = await self._connected()
        if etag is not None and not (self._on_aws and self._conditional_delete):
            info = await self.head(key)
            if info is None or info.etag != etag:
                return
        condition = {"IfMatch": f'"{etag}"'} if etag is not None and self._conditional_delete else {}
        try:
            await client.delete_object(Bucket=self.bucket, Key=full, **condition)
        except FOREIGN as error:
            if status_of(error) == 404 and code_of(error) != "NoSuchBucket":
                return
            if condition and status_of(error) in (409, 412):
                return  # it is another version now
            if condition and status_of(error) in (400, 501):
                self._conditional_delete = False
                await self.delete(key, etag=etag)
                return
            raise self._translated(error, f"delete {key!r}") from error

    async def _connected(self, client: LazyClient | None = None) -> Any:
        try:
            return await (client or self._client)()
        except FOREIGN as error:
            raise self._translated(error, "connect") from error

    def _new_client(self, *, tries: int) -> Any:
        session = self._session()
        self._on_aws = is_on_aws(session)
        config = config_for(session, tries=tries, read_timeout=self._read_timeout)
        return session.create_client("s3", region_name=region_of(session), config=config)

    def _raise_if_final(self, error: Exception, key: str) -> None:
        """Raise at once if another try would fail in the same way."""
        if why := unsupported(error, self.url):
            raise Unsupported(why) from error
        if is_final(error):
            raise self._translated(error, f"create {key!r}") from error

    async def _listed(self, key: str) -> Info | None:
        """An object's entry in a listing: a path with dots may name another object, and a prefix does not."""
        client = await self._connected()
        try:
            page = await client.list_objects_v2(Bucket=self.bucket, Prefix=self._full(key), MaxKeys=1)
        except FOREIGN as error:
            raise self._translated(error, f"look at {key!r}") from error
        entries = [e for e in page.get("Contents", ()) if e["Key"] == self._full(key)]
        return listed_info(key, entries[0]) if entries else None

    async def _expect_same(self, info: Info) -> None:
        """Raise unless what was read under a key with dots is the object that is listed under it."""
        listed = await self._listed(info.key)
        if listed is None:
            raise NotFound(info.key)
        if listed.etag != info.etag:
            raise StoreUnavailable(
                f"the key {info.key!r} names another object when it is read: this server resolves '.' and '..' "
                "in keys; rename the object"
            )

    def _full(self, key: str) -> str:
        if isinstance(key, BucketKey) and key.startswith(REQUESTS):
            check_size(key)
        else:
            check_key(key)
        full = self._prefix + key
        if len(full.encode()) > MAX_KEY_BYTES:
            raise InvalidKey(
                f"the key {key[:60]!r}... with the store's prefix is more than {MAX_KEY_BYTES:,} bytes"
            )
        return full

    def _translated(self, error: Exception, verb: str, *, of_object: bool = False) -> StoreUnavailable:
        endpoint = self._client.endpoint or self._once.endpoint
        what = f"cannot {verb} in {self.url}"
        return translated(error, what, self.bucket, endpoint, of_object=of_object)
