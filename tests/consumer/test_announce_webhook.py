"""Webhooks against a real server on loopback: signed, bounded, never led astray."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import pytest

from consumer.announce.allow_list import Hosts
from consumer.announce.outbox import Gone, Outbox, Patience, Undelivered
from consumer.announce.targets import targets
from consumer.announce.webhook import Secrets, Webhook, seconds_until
from schemas.completion import Completion, completion
from schemas.errors import Unsupported
from schemas.result import Frozen, Result
from tests.servers.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.anyio

KEYS = [bytes(range(32)), bytes(range(100, 140))]
SECRETS = [f"whsec_{base64.b64encode(key).decode()}" for key in KEYS]
NOW = 1_700_000_000.5  # seconds since 1970
PATH = "/hooks/T0PS3CRET?token=hush"


def event(id: str = "cats/a") -> Completion:
    made = Result(id=id, status="succeeded", fingerprint="ab", request=Frozen(text="{}"))
    return completion(made, source="s3://bucket")


def signatures(key: bytes, id: str, timestamp: str, body: bytes) -> bytes:
    """HMAC-SHA256 by its definition (RFC 2104), so that the test shares no code with what it tests."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + f"{id}.{timestamp}.".encode() + body).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).digest()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as server:
        yield server


def webhook(receiver: Receiver, *, secrets: str = SECRETS[0], url: str = "") -> Webhook:
    hosts = Hosts(f"127.0.0.1:{receiver.port} localhost:{receiver.port}")
    return Webhook(url or receiver.url + PATH, Secrets(secrets), hosts, now=lambda: NOW)


@pytest.fixture
async def hook(receiver: Receiver) -> AsyncIterator[Webhook]:
    made = webhook(receiver)
    yield made
    await made.close()


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
    told: dict[str, Any] = {}
    exec(in_the_docs("python")[0], told)
    is_genuine = told["is_genuine"]
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
    patience = Patience(first=0.001, longest=0.01, limit=0.2)
    outbox = Outbox(hook, event_of, lambda id, _: over.append(id), loop.time, random.Random(1), patience)
    outbox.put("cats/a")
    runs = asyncio.create_task(outbox.run())
    async with asyncio.timeout(10):
        await outbox.quiet.wait()
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
    ("url", "hosts"),
    [
        ("https://hooks.example.com/x", ""),
        ("https://hooks.example.com/x", "other.example.com"),
        ("https://hooks.example.com:8443/x", "hooks.example.com"),
        ("https://sub.hooks.example.com/x", "hooks.example.com"),
        ("https://hooks.example.com.evil.com/x", "hooks.example.com"),
        ("https://hooks.example.com@evil.com/x", "hooks.example.com"),
        ("https://user:pw@hooks.example.com/x", "hooks.example.com"),
        ("https://evil.com\\@hooks.example.com/x", "hooks.example.com"),
        ("https://hooks.example.com /x", "hooks.example.com"),
        ("https://hooks.example.com/x\r\nHost: evil", "hooks.example.com"),
        ("https://hooks.example.com/#x", "hooks.example.com"),
        ("https://höoks.example.com/x", "hooks.example.com"),
        ("http://hooks.example.com/x", "hooks.example.com:80"),
        ("http://hooks.example.com:443/x", "hooks.example.com"),
        ("http://10.0.0.5:80/x", "10.0.0.5:80"),
        ("http://127.0.0.1:8080/x", "127.0.0.1:8081"),
        ("https://10.0.0.5/x", "10.0.0.5"),
        ("https://[::1]/x", "[::1]"),
        ("https://[::ffff:10.0.0.5]/x", "[::ffff:10.0.0.5]"),
        ("https://[64:ff9b::a00:5]/x", "[64:ff9b::a00:5]"),
        ("https://169.254.169.254/x", "169.254.169.254:443"),
        ("https://[fe80::1]/x", "[fe80::1]:443"),
        ("https://[fd00:ec2::254]/x", "[fd00:ec2::254]:443"),
        ("https://[::ffff:169.254.169.254]/x", "[::ffff:169.254.169.254]:443"),
        ("https://100.100.100.200/x", "100.100.100.200:443"),
        ("https://0.0.0.0/x", "0.0.0.0:443"),
        ("https://2130706433:8080/x", "127.0.0.1:8080"),
        ("https://0x7f.1:8080/x", "127.0.0.1:8080"),
        ("ftp://hooks.example.com/x", "hooks.example.com"),
        ("https:///x", "hooks.example.com"),
        ("https://hooks.example.com:0/x", "hooks.example.com"),
        ("https://hooks.example.com:99999/x", "hooks.example.com"),
        ("hooks.example.com/x", "hooks.example.com"),
    ],
)
def test_a_url_that_may_lead_astray_is_refused(url: str, hosts: str):
    """Refused before anything is connected to, in words without the path."""
    with pytest.raises(Unsupported) as caught:
        Webhook(url + "T0PS3CRET", Secrets(SECRETS[0]), Hosts(hosts), now=lambda: NOW)
    assert "T0PS3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("https://hooks.example.com/x?y=1", "hooks.example.com"),
        ("https://HOOKS.example.com:443/x", "a.example.com, hooks.EXAMPLE.com"),
        ("https://hooks.example.com:8443/x", "hooks.example.com:8443"),
        ("https://93.184.215.14/x", "93.184.215.14"),
        ("https://10.0.0.5:8443/x", "10.0.0.5:8443"),
        ("https://10.0.0.5/x", "10.0.0.5:443"),
        ("http://127.0.0.1:8080/x", "127.0.0.1:8080"),
        ("http://[::1]:8080/x", "[::1]:8080"),
        ("http://localhost:8080/x", "localhost:8080"),
    ],
)
def test_a_url_that_the_operator_means_is_taken(url: str, hosts: str):
    """Exact hosts; private ones with their port."""
    Webhook(url, Secrets(SECRETS[0]), Hosts(hosts), now=lambda: NOW)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "169.254.169.254"),
        *("::1", "::", "fe80::1%eth0", "fd00::1", "fd00:ec2::254", "::ffff:127.0.0.1", "64:ff9b::7f00:1"),
        *("64:ff9b:1::1", "2002:7f00:1::", "224.0.0.1", "ff02::1", "198.18.0.1", "168.63.129.16"),
    ],
)
def test_a_name_that_leads_inside_is_not_followed(address: str):
    """Checked on each address that a name resolves to, at the moment of connecting."""
    hosts = Hosts("hooks.example.com")
    url = hosts.checked("https://hooks.example.com/x")
    with pytest.raises(OSError, match="leads to"):
        hosts.check_address(url, address)


def test_a_name_of_this_machine_that_leads_elsewhere_is_not_spoken_to_in_the_clear():
    """Plain http is for loopback, whatever a hosts file makes of its name."""
    hosts = Hosts("localhost:8080")
    url = hosts.checked("http://localhost:8080/x")
    hosts.check_address(url, "127.0.0.1")
    for address in ("10.0.0.5", "93.184.215.14"):
        with pytest.raises(OSError, match="not this machine"):
            hosts.check_address(url, address)


async def test_a_listed_name_without_its_port_does_not_open_this_machine():
    """The real resolver says that localhost is 127.0.0.1; nothing is connected to."""
    secrets, hosts = Secrets(SECRETS[0]), Hosts("localhost")
    hook = Webhook("https://localhost/x", secrets, hosts, now=lambda: NOW)
    with pytest.raises(Undelivered, match="private address"):
        await hook.deliver(event())
    await hook.close()


async def test_a_listed_name_with_its_port_opens_this_machine(receiver: Receiver):
    """By name, through the checked resolver."""
    hook = webhook(receiver, url=f"http://localhost:{receiver.port}/x")
    await hook.deliver(event())
    await hook.close()
    assert len(receiver.received) == 1


async def test_a_name_is_looked_up_outside_of_the_workers_threads(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    """A name server that hangs holds one thread of the webhook's, however many deliveries wait for it."""
    asked, answer, real = [], Event(), socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        asked.append(current_thread())
        answer.wait(10)
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    hook = webhook(receiver, url=f"http://localhost:{receiver.port}/x")
    deliveries = [asyncio.create_task(hook.deliver(event(f"r{i}"))) for i in range(8)]
    while not asked:
        await asyncio.sleep(0.001)
    await asyncio.gather(*(asyncio.to_thread(int) for _ in range(100)))  # pictures are still encoded
    answer.set()
    await asyncio.gather(*deliveries)
    await hook.close()
    assert len(receiver.received) == 8
    assert all(thread.daemon for thread in asked)
    assert len(asked) < 8


async def test_a_name_that_does_not_exist_is_a_trouble_to_try_again():
    """`.invalid` never resolves (RFC 2606)."""
    hook = Webhook("https://hooks.invalid/x", Secrets(SECRETS[0]), Hosts("hooks.invalid"), now=lambda: NOW)
    with pytest.raises(Undelivered, match="no connection"):
        await hook.deliver(event())
    await hook.close()


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += [
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
    ]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def test_a_server_that_nobody_vouches_for_hears_nothing(tmp_path: Path):
    """An event goes only to who the address names, not to who answers there."""
    async with receiving(self_signed(tmp_path)) as receiver:
        hook = webhook(receiver)
        with pytest.raises(Undelivered, match="Certificate"):
            await hook.deliver(event())
        await hook.close()
    assert receiver.received == []


async def test_an_authority_of_ones_own_is_believed(tmp_path: Path):
    """SSL_CERT_FILE names it, as the docs say; it is read when a process starts."""
    code = (
        "import asyncio, sys, time\n"
        "from consumer.announce.allow_list import Hosts\n"
        "from consumer.announce.webhook import Secrets, Webhook\n"
        "from schemas.completion import Completion\n"
        "async def main(url, secret, host, event):\n"
        "    hook = Webhook(url, Secrets(secret), Hosts(host), now=time.time)\n"
        "    await hook.deliver(Completion.model_validate_json(event))\n"
        "    await hook.close()\n"
        "asyncio.run(main(*sys.argv[1:]))"
    )
    async with receiving(self_signed(tmp_path)) as receiver:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, receiver.url, SECRETS[0], f"127.0.0.1:{receiver.port}"),
            event().to_json().decode(),
            cwd=Path(__file__).parents[2],
            env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "certificate.pem")},
        )
        assert await process.wait() == 0
    assert [got.body for got in receiver.received] == [event().to_json()]


async def test_a_proxy_in_the_environment_is_not_used(
    receiver: Receiver, hook: Webhook, monkeypatch: pytest.MonkeyPatch
):
    """It would connect to addresses that were never checked."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await hook.deliver(event())
    assert len(receiver.received) == 1


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


@pytest.mark.parametrize(
    "word", ["*", "*.example.com", "a/b", "https://a", "a:0", "a:x", "u@a", "a?b", "a\\b"]
)
def test_an_entry_that_is_no_host_is_refused(word: str):
    """Exact hosts only: a pattern opens more than one thinks."""
    with pytest.raises(Unsupported, match="is no host"):
        Hosts(word)
