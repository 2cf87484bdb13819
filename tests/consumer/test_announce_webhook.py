"""Webhooks against a real server on loopback: signed, bounded, tried again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import random
import re
import socket
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from consumer.announce.allow_list import Hosts
from consumer.announce.outbox import Gone, Outbox, RetryPolicy, Undelivered
from consumer.announce.targets import targets
from consumer.announce.webhook import Secrets, Webhook, seconds_until
from schemas.completion import Completion
from schemas.errors import Unsupported
from tests.servers.webhook_receiver import Receiver
from tests.webhooks import KEYS, NOW, PATH, SECRETS, event, webhook

pytestmark = pytest.mark.anyio


def signatures(key: bytes, id: str, timestamp: str, body: bytes) -> bytes:
    """HMAC-SHA256 by its definition (RFC 2104), so that the test shares no code with what it tests."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + f"{id}.{timestamp}.".encode() + body).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).digest()


async def test_a_delivery_is_signed_as_standard_webhooks_says(receiver: Receiver, hook: Webhook):
    """Id, time and body are under the signature; the body is the event and nothing else."""
    await hook.deliver(event())
    (got,) = receiver.received
    assert got.path == PATH
    assert got.body == event().to_json()
    assert got.headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    assert got.headers["webhook-id"] == got.event["id"] == event().id
    assert got.headers["webhook-timestamp"] == "1700000000"
    version, _, signed = got.headers["webhook-signature"].partition(",")
    assert version == "v1"
    assert base64.b64decode(signed) == signatures(KEYS[0], event().id, "1700000000", got.body)


async def test_while_a_secret_is_replaced_both_sign(receiver: Receiver):
    """The receiver may know the old one or the new one."""
    hook = webhook(receiver, secrets=" ".join(SECRETS))
    await hook.deliver(event())
    await hook.close()
    (got,) = receiver.received
    signed = [word.removeprefix("v1,") for word in got.headers["webhook-signature"].split(" ")]
    expected = [signatures(key, event().id, "1700000000", got.body) for key in KEYS]
    assert [base64.b64decode(word) for word in signed] == expected


def test_the_signature_is_the_specifications():
    """A value computed with Python's own HMAC from the specification's recipe."""
    secrets = Secrets("whsec_" + base64.b64encode(b"k" * 24).decode())
    content = b"msg_1.1614265330.{}"
    expected = base64.b64encode(hmac.new(b"k" * 24, content, hashlib.sha256).digest()).decode()
    assert secrets.signature("msg_1", 1614265330, b"{}") == f"v1,{expected}"


def in_the_docs(language: str) -> list[str]:
    """The examples of one language that docs/completion.md shows."""
    page = (Path(__file__).parents[2] / "docs" / "completion.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


async def test_the_documented_receiver_believes_us_and_nobody_else(receiver: Receiver):
    """The example that people will copy tells a genuine event from a changed, a forged and an old one."""
    namespace: dict[str, Any] = {}
    exec(in_the_docs("python")[0], namespace)
    is_genuine = namespace["is_genuine"]
    for secrets, now in ((" ".join(SECRETS), time.time), (SECRETS[0], lambda: time.time() - 600)):
        hosts = Hosts(f"127.0.0.1:{receiver.port}")
        hook = Webhook(receiver.url, Secrets(secrets), hosts, now=now)
        await hook.deliver(event())
        await hook.close()
    fresh, old = receiver.received
    assert all(is_genuine(fresh.headers, fresh.body, secret) for secret in SECRETS)
    assert not is_genuine(fresh.headers, fresh.body + b" ", SECRETS[0])
    assert not is_genuine(fresh.headers, fresh.body, "whsec_" + base64.b64encode(bytes(24)).decode())
    assert not is_genuine(dict(fresh.headers) | {"webhook-id": "other"}, fresh.body, SECRETS[0])
    assert not is_genuine(old.headers, old.body, SECRETS[0])


def test_the_documented_event_is_one():
    """It has every field that an event has, and no other."""
    shown = json.loads(in_the_docs("json")[0])
    made = Completion.model_validate(shown)
    assert json.loads(made.to_json()) == shown


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_is_a_yes(receiver: Receiver, hook: Webhook, status: int):
    """The receiver's own way to say thanks."""
    receiver.always = status
    await hook.deliver(event())
    assert len(receiver.received) == 1


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 413, 429, 500, 502, 503])
async def test_anything_else_is_tried_again(receiver: Receiver, hook: Webhook, status: int):
    """Also 4xx: a receiver that is being repaired or redeployed answers so."""
    receiver.always = status
    with pytest.raises(Undelivered, match=str(status)) as caught:
        await hook.deliver(event())
    assert not isinstance(caught.value, Gone)


async def test_410_means_never_again(receiver: Receiver, hook: Webhook):
    """The one answer that ends it."""
    receiver.always = 410
    with pytest.raises(Gone):
        await hook.deliver(event())


async def test_a_redirect_is_not_followed(receiver: Receiver, hook: Webhook):
    """A redirect would lead past the allow-list, and take the signature with it."""
    receiver.always = "elsewhere"
    with pytest.raises(Undelivered, match="redirects are not followed"):
        await hook.deliver(event())
    assert [got.path for got in receiver.received] == [PATH]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_heard(receiver: Receiver, hook: Webhook, status: int):
    """In seconds or as a date."""
    receiver.answers.append((status, {"Retry-After": "120"}))
    receiver.answers.append((status, {"Retry-After": formatdate(NOW + 300, usegmt=True)}))
    waits = []
    for _ in range(2):
        with pytest.raises(Undelivered) as caught:
            await hook.deliver(event())
        waits.append(round(caught.value.retry_after))
    assert waits[0] == 120
    assert waits[1] in (299, 300)


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e9", "²", "NaN", "Wed, 99 Nonsense 2026"])
def test_a_retry_after_that_says_nothing_is_none(text: str):
    """Strangers write headers."""
    assert seconds_until(text, NOW) == 0.0


async def test_a_body_without_end_is_not_read(receiver: Receiver, hook: Webhook):
    """Its status says all; the connection is closed on the rest."""
    receiver.always = "drip"
    await hook.deliver(event())
    await hook.deliver(event())
    assert len(receiver.received) == 2


async def test_a_broken_connection_is_a_trouble_to_try_again(receiver: Receiver, hook: Webhook):
    """Whether the event arrived is unknown: the repeat has the same id."""
    receiver.answers.append("cut")
    with pytest.raises(Undelivered, match="no connection"):
        await hook.deliver(event())
    await hook.deliver(event())
    assert len({got.headers["webhook-id"] for got in receiver.received}) == 1


async def test_nobody_listening_is_a_trouble_to_try_again():
    """The message says so without the path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hook = Webhook(
        f"http://127.0.0.1:{port}{PATH}", Secrets(SECRETS[0]), Hosts(f"127.0.0.1:{port}"), now=lambda: NOW
    )
    with pytest.raises(Undelivered) as caught:
        await hook.deliver(event())
    await hook.close()
    assert "T0PS3CRET" not in str(caught.value)


async def test_an_outbox_gets_its_event_through_a_server_that_fails(
    receiver: Receiver, hook: Webhook, caplog: pytest.LogCaptureFixture
):
    """Two failures, a hang, a cut and a redirect later it is there; the log holds no secret."""
    caplog.set_level(logging.DEBUG)
    receiver.answers.extend([500, 503, "hang", "cut", "elsewhere"])
    over: list[str] = []

    async def event_of(id: str) -> Completion:
        return event(id)

    loop = asyncio.get_running_loop()
    policy = RetryPolicy(first=0.001, longest=0.01, limit=2.0)
    outbox = Outbox(hook, event_of, lambda id, _: over.append(id), loop.time, random.Random(1), policy)
    outbox.put("cats/a")
    runs = asyncio.create_task(outbox.run())
    async with asyncio.timeout(120):
        await outbox.idle.wait()
    runs.cancel()
    await asyncio.gather(runs, return_exceptions=True)
    assert over == ["cats/a"]
    assert len(receiver.received) == 6
    assert len({(got.headers["webhook-id"], got.body) for got in receiver.received}) == 1
    logged = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    for secret in (SECRETS[0], SECRETS[0][6:], "T0PS3CRET", "hush", "never to be logged"):
        assert secret not in logged
    assert f"127.0.0.1:{receiver.port}" in logged


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "whsec_",
        "whsec_hunter2",
        "whsec_" + base64.b64encode(b"short").decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        SECRETS[0] + " hunter2",
        SECRETS[0].removeprefix("whsec_"),
    ],
)
def test_a_bad_secret_is_refused_and_not_repeated(text: str):
    """The message says how to make a good one."""
    with pytest.raises(Unsupported, match="openssl rand") as caught:
        Secrets(text)
    assert not any(word in str(caught.value) for word in text.split() if word != "whsec_")


def test_secrets_are_never_shown():
    """Not even where somebody logs the object."""
    assert repr(Secrets(" ".join(SECRETS))) == "<2 secrets>"
    assert not Secrets("")


def test_a_webhook_needs_a_secret():
    """An unsigned event could be anybody's."""
    with pytest.raises(Unsupported, match="DREAMDROP_WEBHOOK_SECRET"):
        targets(["https://hooks.example.com/x"], secrets="", hosts="hooks.example.com", now=lambda: NOW)
