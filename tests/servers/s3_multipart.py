"""Uploads in parts, for the S3 server of the tests: begun, sent, joined under a condition, or removed."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from hashlib import md5
from typing import TYPE_CHECKING

from aiohttp import web

from tests.servers import s3_answers as answers

if TYPE_CHECKING:
    from infra.stores.store import Store


@dataclass
class Uploads:
    """The uploads under way."""

    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)  # by upload and number
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)  # by upload

    async def answer(
        self, request: web.Request, store: Store, full: str, query: dict[str, list[str]], body: bytes
    ) -> web.Response:
        """Answer a request about an upload to the object `full`."""
        if "uploads" in query:
            return self.begin(answers.own_metadata(request))
        upload = query["uploadId"][0]
        if request.method == "PUT":
            return self.take(request, upload, int(query["partNumber"][0]), body)
        if request.method == "DELETE":
            self.end(upload)
            return web.Response(status=204)
        whole = self.joined(upload, body)
        if whole is None:
            return answers.error(404, "NoSuchUpload")
        tag = md5(whole, usedforsecurity=False).hexdigest()
        assert request.headers.get("If-None-Match") == "*"
        if not await store.create(full, whole, metadata={**self.metadata[upload], "content-md5": tag}):
            return answers.error(412, "PreconditionFailed")
        self.end(upload)
        joined = f"<ETag>&quot;{tag}&quot;</ETag>"
        return answers.xml(f"<CompleteMultipartUploadResult>{joined}</CompleteMultipartUploadResult>")

    def begin(self, metadata: dict[str, str]) -> web.Response:
        name = secrets.token_hex(8)
        self.parts[name], self.metadata[name] = {}, metadata
        upload = f"<UploadId>{name}</UploadId>"
        return answers.xml(f"<InitiateMultipartUploadResult>{upload}</InitiateMultipartUploadResult>")

    def take(self, request: web.Request, name: str, number: int, body: bytes) -> web.Response:
        if name not in self.parts:
            return answers.error(404, "NoSuchUpload")
        assert "Content-MD5" in request.headers or "x-amz-checksum-sha256" in request.headers
        self.parts[name][number] = body
        headers = {"ETag": f'"{md5(body, usedforsecurity=False).hexdigest()}"'}
        return web.Response(headers=headers)

    def joined(self, name: str, document: bytes) -> bytes | None:
        """The whole body; None when there is no such upload."""
        if name not in self.parts:
            return None
        numbers = [int(n) for n in re.findall(rb"<PartNumber>(\d+)</PartNumber>", document)]
        assert numbers == sorted(self.parts[name])
        return b"".join(self.parts[name][number] for number in numbers)

    def end(self, name: str) -> None:
        self.parts.pop(name, None)
        self.metadata.pop(name, None)
