"""The response of a caller that still waits when the server shuts down."""

from __future__ import annotations

import asyncio
import json

from starlette.types import Message, Receive, Scope, Send

from producer.web.shutdown import ShutdownMiddleware


async def _cancelled_call(begun: bool) -> tuple[list[Message], bool]:
    """The messages of a call that is cancelled while it waits, and whether the cancellation went on."""
    sent: list[Message] = []
    waiting = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        waiting.set()
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    call = asyncio.create_task(ShutdownMiddleware(app)({"type": "http"}, receive, send))
    await waiting.wait()
    call.cancel()
    await asyncio.wait({call})
    return sent, call.cancelled()


def test_a_caller_who_waits_when_the_server_stops_is_told_to_ask_again() -> None:
    """A cancelled call answers 503 with a sentence, where it was a bare 500 and a traceback."""
    sent, cancelled = asyncio.run(_cancelled_call(begun=False))
    assert not cancelled
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"5") in sent[0]["headers"]
    assert "being stopped" in json.loads(sent[1]["body"])["detail"]


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    """After the first bytes there is nothing to be told: the cancellation goes on."""
    sent, cancelled = asyncio.run(_cancelled_call(begun=True))
    assert cancelled
    assert [message["type"] for message in sent] == ["http.response.start"]
