"""Files of any size to and from S3: uploads in parts, and downloads that go on where they broke off.

The object of an upload appears when its parts are joined (CompleteMultipartUpload), which has the same condition
and the same nonce as a small `create`: so a lost answer is settled in the same way.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from infra.aws import FOREIGN, code_of, status_of
from infra.backoff import backoff
from infra.stores.files import PIECE, expect_content, local
from infra.stores.s3_answers import NONCE, is_ours
from infra.stores.s3_errors import is_final, unsupported
from infra.stores.store import SHA256
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    import random
    from io import FileIO
    from pathlib import Path

    from infra.stores.store import Progress, Store

PART = 16 << 20  # bytes; a smaller file is one PUT, a larger one is sent in parts of this size
_MOST_PARTS = 9_000  # of an upload; S3 allows 10,000
_ABREAST = 4  # parts that are in memory and being sent
_ATTEMPTS = 3  # uploads that are begun, where the store asks to begin anew
_ABORT_TIMEOUT = 10.0  # seconds for removing the parts of an upload that has failed
_BROKEN = 4  # downloads that may break off in a row without a byte


@dataclass(frozen=True)
class Upload:
    """One file on its way to a key. Raises the errors of `infra.aws.FOREIGN`."""

    client: Any  # which repeats what may be repeated
    once: Any  # which sends a request once
    place: dict[str, str]  # Bucket and Key
    url: str  # of the store
    path: Path
    sha256: str
    on_aws: bool
    patience: float  # seconds for which the parts are tried to be joined
    rng: random.Random
    progress: Progress | None

    async def run(self) -> bool:
        """See `Store.create_file`."""
        with contextlib.suppress(*FOREIGN):  # the condition decides; this only saves the way
            await self.client.head_object(**self.place)
            return False
        for attempt in range(_ATTEMPTS):
            outcome = await self._attempt(last=attempt == _ATTEMPTS - 1)
            if outcome is not None:
                return outcome
        raise AssertionError("unreachable")

    async def _attempt(self, *, last: bool) -> bool | None:
        """Whether the object is ours; None when the store asks to begin anew."""
        nonce = secrets.token_hex(16)
        checks = {"ChecksumAlgorithm": "SHA256"} if self.on_aws else {}
        metadata = {NONCE: nonce, SHA256: self.sha256}
        begun = await self.client.create_multipart_upload(**self.place, Metadata=metadata, **checks)
        upload = {**self.place, "UploadId": begun["UploadId"]}
        outcome = None
        try:
            parts = await self._send(upload)
            outcome = await self._join(upload, parts, nonce, last=last)
        finally:
            if not outcome:  # nothing was made of the parts, which cost money until they are removed
                with contextlib.suppress(*FOREIGN, TimeoutError):
                    async with asyncio.timeout(_ABORT_TIMEOUT):
                        await self.client.abort_multipart_upload(**upload)
        return outcome

    async def _send(self, upload: dict[str, str]) -> list[dict[str, Any]]:
        """Send the parts, a few at a time; returns what joins them."""
        size = max(PART, -(-self.path.stat().st_size // _MOST_PARTS))
        digest, numbers, reading = hashlib.sha256(), itertools.count(1), asyncio.Lock()
        parts: list[dict[str, Any]] = []
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                async with reading:  # in order, for the hash of the whole
                    with local(self.path):
                        part = await asyncio.to_thread(stream.read, size)
                    await asyncio.to_thread(digest.update, part)
                    number = next(numbers)
                if not part:
                    return
                check = _check(part, on_aws=self.on_aws)
                answer = await self.client.upload_part(**upload, PartNumber=number, Body=part, **check)
                joined = {k: v for k, v in check.items() if k.startswith("Checksum")}
                parts.append({"PartNumber": number, "ETag": answer["ETag"], **joined})
                sent += len(part)
                if self.progress is not None:
                    self.progress(sent)

        with local(self.path):
            stream = self.path.open("rb")
        with stream:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(_ABREAST):
                        group.create_task(send())
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        expect_content(digest.hexdigest(), self.sha256, self.path)
        return sorted(parts, key=lambda part: part["PartNumber"])

    async def _join(
        self, upload: dict[str, str], parts: list[dict[str, Any]], nonce: str, *, last: bool
    ) -> bool | None:
        give_up = time.monotonic() + self.patience
        for wait in backoff(0.05, 2.5, self.rng):
            try:
                await self.once.complete_multipart_upload(
                    **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
                )
                return True
            except FOREIGN as error:
                if is_final(error) or unsupported(error, self.url):
                    raise
                ours = await is_ours(self.client, self.place, nonce)
                if ours is not None:
                    return ours
                if status_of(error) == 409 and not last:
                    return None
                if code_of(error) == "NoSuchUpload" or time.monotonic() + wait > give_up:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")


def _check(part: bytes, *, on_aws: bool) -> dict[str, str]:
    """A part's checksum: off AWS the older one, because some servers refuse the newer headers (R2)."""
    if on_aws:
        return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(part).digest()).decode()}
    return {"ContentMD5": base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()}


def is_small(path: Path) -> bool:
    """Whether a file is sent in one piece. Raises `DiskTrouble`."""
    with local(path):
        return path.stat().st_size <= PART


async def create_small(store: Store, key: str, path: Path, sha256: str, progress: Progress | None) -> bool:
    """See `Store.create_file`; for a file that `is_small`."""
    with local(path):
        body = await asyncio.to_thread(path.read_bytes)
    expect_content(hashlib.sha256(body).hexdigest(), sha256, path)
    created = await store.create(key, body, metadata={SHA256: sha256})
    if progress is not None:
        progress(len(body))
    return created


def _write(target: FileIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[target.write(rest) :]


async def download(client: Any, place: dict[str, str], path: Path, progress: Progress | None) -> str:
    """See `Store.fetch_file`. Raises the errors of `infra.aws.FOREIGN`, and `StoreUnavailable`."""
    digest, size, etag, broken = hashlib.sha256(), 0, "", 0
    with local(path):
        target = path.open("wb", buffering=0)
    with target:
        while True:
            begun = size
            try:
                rest = {"Range": f"bytes={size}-", "IfMatch": etag} if size else {}
                answer = await client.get_object(**place, **rest)
                if size and "ContentRange" not in answer:  # a server without ranges: from the beginning
                    target.seek(0)
                    target.truncate()
                    digest, size = hashlib.sha256(), 0
                etag, whole = answer["ETag"], size + int(answer["ContentLength"])
                async with answer["Body"] as stream:
                    while piece := await stream.read(PIECE):
                        with local(path):
                            await asyncio.to_thread(_write, target, piece)
                        digest.update(piece)
                        size += len(piece)
                        if progress is not None:
                            progress(size)
                if size == whole:
                    return digest.hexdigest()
            except FOREIGN as error:
                if status_of(error) in (412, 416):
                    raise StoreUnavailable(f"{place['Key']!r} was replaced while it was read") from error
                broken = broken + 1 if size <= begun else 0
                if isinstance(error, ClientError) or broken == _BROKEN:
                    raise
            else:
                broken += 1
                if broken == _BROKEN:
                    raise StoreUnavailable(f"{place['Key']!r} breaks off each time that it is read")
