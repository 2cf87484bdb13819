"""A network that fails: an HTTP proxy on loopback between the workers and the S3 or SQS server.

It reads each call whole, asks its rules what is to go wrong with it, and does that with real
sockets: waits, answers of its own, resets before, within and after the call, bodies that break
off, silence. What the server behind it does is left alone, so a lost answer is a write that did
take effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from tests.servers.loopback import serving

KINDS = {
    "latency": "it is done after `seconds`",
    "slow_down": "503 SlowDown, nothing done",
    "broken": "500 InternalError, nothing done",
    "conflict": "409 ConditionalRequestConflict, nothing done; only where there is a condition",
    "reset": "the connection is reset, nothing done",
    "cut_request": "the connection breaks in the middle of the request's body",
    "hang": "silence for `seconds`, then a reset; nothing done",
    "late": "the connection is reset, and it is done `seconds` later",
    "lost": "it is done, then the connection is reset before the answer",
    "hang_after": "it is done, then silence for `seconds` and a reset",
    "broken_after": "it is done, but the answer is 500",
    "truncated": "the answer's body breaks off in the middle",
}

When = Literal["before", "after"]


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    verb: str  # the HTTP method, or the action of a queue call, such as "ReceiveMessage"
    key: str  # of an object, without the bucket; or the queue's name
    path: str  # decoded, with the bucket
    head: list[bytes]  # request line and headers
    body: bytes

    @property
    def conditional(self) -> bool:
        return any(line.lower().startswith((b"if-none-match:", b"if-match:")) for line in self.head)


@dataclass
class Rule:
    """What goes wrong with calls of `verb` whose key begins with `prefix`."""

    kind: str  # one of `KINDS`
    chance: float = 1.0
    verb: str = ""  # "" for any
    prefix: str = ""
    at: tuple[int, ...] = ()  # only the k-th matching calls, counted from 1
    seconds: float = 0.0
    seen: int = 0

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"{self.kind} is none of {sorted(KINDS)}"

    def strikes(self, call: Call, rng: random.Random) -> bool:
        if self.verb not in ("", call.verb) or not call.key.startswith(self.prefix):
            return False
        if self.kind == "conflict" and not call.conditional:
            return False
        self.seen += 1
        return self.seen in self.at if self.at else rng.random() < self.chance


class Cut(Exception):
    """The connection to the client ends here, without another word."""

    def __init__(self, *, gently: bool = False) -> None:
        super().__init__()
        self.gently = gently  # what was sent is still read


@dataclass
class FaultProxy:
    """The proxy's state; `rules` may be changed at any time."""

    upstream: str  # URL of the server behind it
    rules: list[Rule] = field(default_factory=list)
    seed: int = 0
    watch: Callable[[Call, When], None] = lambda _call, _when: None  # told before and after the server has it
    injected: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)  # by verb
    url: str = ""
    _late: set[asyncio.Task[None]] = field(default_factory=set)
    _open: int = 0  # calls being done or answered
    _talks: set[Any] = field(default_factory=set)  # tasks that nothing else may hold on to

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    @property
    def underway(self) -> int:
        """Calls that the server may yet get, or has not answered."""
        return len(self._late) + self._open

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, limit=1 << 24)
        host, port = server.sockets[0].getsockname()[:2]
        try:
            yield f"http://{host}:{port}"
        finally:
            server.close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await asyncio.sleep(0.05)  # seconds in which the connections close

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, and one of ours to the server beside it."""
        self._talks.add(asyncio.current_task())
        line = Upstream(self.upstream)
        gently = False
        try:
            while True:
                call = await _read_call(reader, writer)
                self.calls[call.verb] += 1
                self._open += 1
                try:
                    answer = await self._answer(call, line, writer)
                finally:
                    self._open -= 1
                writer.write(answer)
                await writer.drain()
        except Cut as cut:
            gently = cut.gently
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the client went away, or we did
        finally:
            self._talks.discard(asyncio.current_task())
            line.close()
            with contextlib.suppress(OSError):
                writer.close() if gently else _reset(writer)

    async def _answer(self, call: Call, line: Upstream, writer: asyncio.StreamWriter) -> bytes:
        rule = next((rule for rule in self.rules if rule.strikes(call, self._rng)), None)
        kind = rule.kind if rule else ""
        if rule is not None:
            self.injected[kind] += 1
        match kind:
            case "slow_down":
                return _refusal(503, "SlowDown")
            case "broken":
                return _refusal(500, "InternalError")
            case "conflict":
                return _refusal(409, "ConditionalRequestConflict")
            case "reset":
                raise Cut
            case "cut_request":
                await line.send_half(call)
                raise Cut
            case "late":
                assert rule is not None
                self._do_later(call, rule.seconds)
                raise Cut
            case "latency" | "hang":
                assert rule is not None
                await asyncio.sleep(rule.seconds)
                if kind == "hang":
                    raise Cut
        self.watch(call, "before")
        answer = await line.ask(call)
        self.watch(call, "after")
        match kind:
            case "lost":
                raise Cut
            case "hang_after":
                assert rule is not None
                await asyncio.sleep(rule.seconds)
                raise Cut
            case "broken_after":
                return _refusal(500, "InternalError")
            case "truncated":
                head, _, body = answer.partition(b"\r\n\r\n")
                writer.write(head + b"\r\n\r\n" + body[: len(body) // 2])
                raise Cut(gently=True)
        return answer

    def _do_later(self, call: Call, seconds: float) -> None:
        async def act() -> None:
            await asyncio.sleep(seconds)
            line = Upstream(self.upstream)
            with contextlib.suppress(Cut, OSError, EOFError):
                await line.ask(call)
            line.close()

        task = asyncio.create_task(act())
        self._late.add(task)
        task.add_done_callback(self._late.discard)


@dataclass
class Upstream:
    """A connection to the server, made when it is needed and kept while it lasts."""

    url: str
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None

    async def ask(self, call: Call) -> bytes:
        """Send a call, and read its answer whole."""
        for last in (False, True):
            fresh = await self._connected()
            assert self._reader is not None
            assert self._writer is not None
            try:
                self._writer.write(b"\r\n".join(call.head) + b"\r\n\r\n" + call.body)
                await self._writer.drain()
                return await _read_answer(self._reader, call.verb == "HEAD")
            except (OSError, EOFError):
                self.close()
                if last or fresh:  # an old connection may have been closed just now; then it was not done
                    raise
        raise AssertionError("unreachable")

    async def send_half(self, call: Call) -> None:
        await self._connected()
        assert self._writer is not None
        whole = b"\r\n".join(call.head) + b"\r\n\r\n" + call.body
        self._writer.write(whole[: len(whole) - max(1, len(call.body) // 2)])
        with contextlib.suppress(OSError):
            await self._writer.drain()
        self.close()

    async def _connected(self) -> bool:
        """Whether the connection had to be made."""
        if self._writer is not None:
            return False
        parts = urlsplit(self.url)
        self._reader, self._writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
        return True

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def _read_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call:
    head = await _read_head(reader)
    verb, target, _ = head[0].decode("latin-1").split(" ", 2)
    if _header(head, "expect").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = [line for line in head if not line.lower().startswith(b"expect:")]
    body = await reader.readexactly(int(_header(head, "content-length") or 0))
    path = unquote(urlsplit(target).path.lstrip("/"))
    _, _, key = path.partition("/")
    action = _header(head, "x-amz-target").rpartition(".")[2]
    if action:
        key = str(json.loads(body or b"{}").get("QueueUrl", "")).rpartition("/")[2]
    return Call(action or verb, key, path, head, body)


async def _read_answer(reader: asyncio.StreamReader, headless: bool) -> bytes:
    head = await _read_head(reader)
    raw = b"\r\n".join(head) + b"\r\n\r\n"
    status = int(head[0].split(b" ", 2)[1])
    if headless or status in (204, 304):
        return raw
    if _header(head, "transfer-encoding").lower() == "chunked":
        while True:
            size = await reader.readuntil(b"\r\n")
            raw += size + await reader.readexactly(int(size, 16) + 2)
            if int(size, 16) == 0:
                return raw
    length = _header(head, "content-length")
    return raw + (await reader.readexactly(int(length)) if length else await reader.read())


async def _read_head(reader: asyncio.StreamReader) -> list[bytes]:
    return (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")


def _header(head: Sequence[bytes], name: str) -> str:
    start = name.encode() + b":"
    return next(
        (line[len(start) :].strip().decode("latin-1") for line in head[1:] if line.lower().startswith(start)),
        "",
    )


def _refusal(status: int, code: str) -> bytes:
    """In the XML of a store; a queue's client is content with the status."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>on demand</Message></Error>'.encode()
    head = f"HTTP/1.1 {status} Fault\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a broken network does, not with the FIN of somebody who has finished."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def failing(proxy: FaultProxy) -> Iterator[FaultProxy]:
    """Stand between until the block ends; `proxy.url` says where."""
    with serving(proxy.serve, "fault-proxy") as proxy.url:
        yield proxy
