"""A small S3 server whose creates are atomic, and which misbehaves on demand.

It stands over any of our stores (memory by default) and speaks the part of S3 that the project
uses: PUT, GET, HEAD and DELETE of objects with conditions, ListObjectsV2. A `Fault` makes the
next matching requests go wrong in one of the ways that real stores do.

As a process of its own: `python -m tests.servers.s3_front [--root DIRECTORY] [--port 9000]`.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from aiohttp import web

from infra.stores.directory.store import DirectoryStore
from infra.stores.memory import MemoryStore
from schemas.errors import NotFound
from tests.servers import s3_answers as answers
from tests.servers.loopback import Doors
from tests.servers.s3_answers import KINDS
from tests.servers.s3_multipart import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.stores.store import Info


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of `method` ("any" for all) whose key begins with `prefix`."""

    kind: str  # one of `KINDS`
    method: str = "PUT"
    prefix: str = ""
    times: int = 1 << 30
    seconds: float = 0.0
    status: int = 400
    code: str = ""
    text: str = "on demand"

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"{self.kind} is none of {sorted(KINDS)}"


@dataclass
class S3Front:
    """The server's state; the HTTP part lives in a thread of its own."""

    store: MemoryStore | DirectoryStore = field(default_factory=lambda: MemoryStore(clock=time.time))
    buckets: set[str] = field(default_factory=lambda: {"bucket"})
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)  # (method, bucket/key), as they came
    markers: list[str] = field(default_factory=list)  # "folders" (keys ending in "/") that listings show
    refused_keys: dict[str, tuple[int, str]] = field(default_factory=dict)  # access key to (status, code)
    versioned: bool = False
    uploads: Uploads = field(default_factory=Uploads)
    page: int = 1000  # keys of a listing's page, at most
    url: str = ""
    _late: set[asyncio.Task[None]] = field(default_factory=set)
    _is_away: bool = False
    _doors: Doors | None = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Refuse connections, and cut those that are open, until the block ends."""
        assert self._doors is not None, "it is running"
        self._is_away = True
        self._doors.move("close")
        try:
            yield
        finally:
            self._is_away = False
            self._doors.move("open")

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", r"/{path:[\s\S]*}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = unquote(request.rel_url.raw_path.lstrip("/"))
        bucket, _, key = path.partition("/")
        if self._is_away:
            return answers.cut(request)
        self.requests.append((request.method, path))
        if bucket not in self.buckets:
            return answers.error(404, "NoSuchBucket")
        try:
            body = await request.read()
        except ConnectionError:  # it broke off: nothing is done
            return answers.cut(request)
        if refusal := answers.refusal(request, self.refused_keys):
            return refusal
        fault = self._fault(request.method, key)
        match fault.kind if fault else "":
            case "slow_down":
                return answers.error(503, "SlowDown")
            case "conflict":
                return answers.error(409, "ConditionalRequestConflict")
            case "broken":
                return answers.error(500, "InternalError")
            case "denied":
                return answers.error(403, "AccessDenied")
            case "object_lock" if "Content-MD5" not in request.headers:
                return answers.no_checksum()
            case "refused":
                assert fault is not None
                return answers.error(fault.status, fault.code, fault.text)
            case "cut":
                return answers.cut(request)
            case "unsupported" if answers.conditions(request):
                return answers.error(501, "NotImplemented")
            case "late":
                self._do_later(request, bucket, key, body, fault)
                return answers.cut(request)
            case "delay":
                assert fault is not None
                await asyncio.sleep(fault.seconds)
        answer = await self._answer(request, bucket, key, body, fault)
        match fault.kind if fault else "":
            case "broken_after":
                return answers.error(500, "InternalError")
            case "cut_after":
                return answers.cut(request)
            case "half":
                return await answers.half(request, answer)
        return answer

    def _fault(self, method: str, key: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method in (method, "any") and key.startswith(fault.prefix):
                fault.times -= 1
                return fault
        return None

    def _do_later(
        self, request: web.Request, bucket: str, key: str, body: bytes, fault: Fault | None
    ) -> None:
        assert fault is not None
        seconds = fault.seconds

        async def act() -> None:
            await asyncio.sleep(seconds)
            await self._answer(request, bucket, key, body, None)

        task = asyncio.create_task(act())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _answer(
        self, request: web.Request, bucket: str, key: str, body: bytes, fault: Fault | None
    ) -> web.Response:
        if (setting := request.rel_url.raw_query_string) in ("versioning", "lifecycle"):
            return answers.setting(setting, versioned=self.versioned)
        if not key:
            return await self._list(
                bucket, parse_qs(request.rel_url.raw_query_string, keep_blank_values=True)
            )
        full = f"{bucket}/{key}"
        query = parse_qs(request.rel_url.raw_query_string, keep_blank_values=True)
        if "uploads" in query or "uploadId" in query:
            return await self.uploads.answer(request, self.store, full, query, body)
        match request.method:
            case "PUT":
                return await self._put(request, full, body, fault.kind if fault else "")
            case "GET":
                return await self._get(request, full)
            case "HEAD":
                return await self._head(full)
            case "DELETE":
                return await self._delete(request, full, fault.kind if fault else "")
        return answers.error(405, "MethodNotAllowed")

    async def _put(self, request: web.Request, full: str, body: bytes, fault: str) -> web.Response:
        metadata = answers.own_metadata(request)
        metadata["content-md5"] = tag = md5(body, usedforsecurity=False).hexdigest()
        conditional = request.headers.get("If-None-Match") == "*" and fault != "ignore_condition"
        if conditional and fault != "check_then_act":
            if not await self.store.create(full, body, metadata=metadata):
                return answers.error(412, "PreconditionFailed")
            return web.Response(headers={"ETag": f'"{tag}"'})
        if conditional:
            taken = await self.store.head(full)
            await asyncio.sleep(0.02)
            if taken is not None:
                return answers.error(412, "PreconditionFailed")
        # A plain PUT in our stores keeps no metadata, so it is a delete and a create here.
        while not await self.store.create(full, body, metadata=metadata):
            await self.store.delete(full)
        return web.Response(headers={"ETag": f'"{tag}"'})

    async def _get(self, request: web.Request, full: str) -> web.Response:
        try:
            found = await self.store.get(full)
        except NotFound:
            return answers.error(404, "NoSuchKey")
        return answers.content(request, found)

    async def _head(self, full: str) -> web.Response:
        info = await self.store.head(full)
        if info is None:
            return web.Response(status=404)
        headers = {**answers.headers(info.metadata, info.modified), "Content-Length": str(info.size)}
        return web.Response(headers=headers)

    async def _delete(self, request: web.Request, full: str, fault: str) -> web.Response:
        wanted = request.headers.get("If-Match")
        if wanted and fault != "ignore_condition":
            info = await self.store.head(full)
            if info is None:
                return answers.error(404, "NoSuchKey")
            if wanted.strip('"') != info.metadata["content-md5"]:
                return answers.error(412, "PreconditionFailed")
        await self.store.delete(full)
        return web.Response(status=204)

    async def _list(self, bucket: str, query: dict[str, list[str]]) -> web.Response:
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        limit = min(self.page, int(query.get("max-keys", ["1000"])[0]))
        found: list[Info] = []
        more = False
        async for info in self.store.list(f"{bucket}/{prefix}", start_after=f"{bucket}/{after}"):
            if len(found) == limit:
                more = True
                break
            found.append(info)
        entries, last = (
            [answers.entry(key, 0, "d41d8cd98f00b204e9800998ecf8427e", 0.0) for key in self.markers],
            "",
        )
        for info in found:
            whole = await self.store.head(info.key)
            last = info.key.removeprefix(f"{bucket}/")
            if whole is None:
                continue
            entries.append(answers.entry(last, info.size, whole.metadata["content-md5"], info.modified))
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return answers.xml(
            f"<ListBucketResult><Name>{bucket}</Name><EncodingType>url</EncodingType>"
            f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{''.join(entries)}</ListBucketResult>"
        )


@contextmanager
def running(front: S3Front, port: int = 0) -> Iterator[S3Front]:
    """Serve on loopback in a thread until the block ends; `front.url` says where."""
    started: Future[str] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        runner = web.AppRunner(front.app(), access_log=None, handler_cancellation=False, shutdown_timeout=0.1)
        await runner.setup()
        doors = front._doors = Doors(runner, loop, port)
        await doors.open()
        started.set_result(f"http://127.0.0.1:{doors.port}")
        await stop.wait()
        await runner.cleanup()
        await front.store.close()

    def main() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    thread = threading.Thread(target=main, name="s3-front", daemon=True)
    thread.start()
    front.url = started.result(timeout=120)
    try:
        yield front
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, help="keep objects in this directory, else in memory")
    parser.add_argument("--port", type=int, default=9000, help="0 for any free one")
    parser.add_argument("--bucket", default="bucket")
    options = parser.parse_args()
    if options.root:
        options.root.mkdir(parents=True, exist_ok=True)
    store = DirectoryStore(options.root) if options.root else MemoryStore(clock=time.time)
    with running(S3Front(store, {options.bucket}), options.port) as front:
        print(front.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
