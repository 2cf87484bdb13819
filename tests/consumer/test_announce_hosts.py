"""Where a webhook may lead: the allow-list, names that resolve to inner addresses, certificates, proxies."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import pytest

from consumer.announce.allow_list import Hosts
from consumer.announce.outbox import Undelivered
from consumer.announce.webhook import Secrets, Webhook
from schemas.errors import Unsupported
from tests.servers.webhook_receiver import Receiver, receiving
from tests.webhooks import NOW, SECRETS, event, webhook

pytestmark = pytest.mark.anyio


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
        *("::10.0.0.5", "::7f00:1", "::ffff:0:10.0.0.5", "::2", "fec0::1", "fec0::1%2", "1::1", "4000::1"),
        *("3fff::1", "5f00::1", "100::1", "2001:db8::1", "2607:f8b0::5efe:10.0.0.5", "2001:0:a00:5::1"),
        *("2607:f8b0::200:5efe:10.0.0.5", "::ffff:127.0.0.1%eth0", "2001:0:5db8:d70e:8000:0:f5ff:fffa"),
        *("64:ff9b:1::1", "2002:7f00:1::", "224.0.0.1", "ff02::1", "198.18.0.1", "168.63.129.16"),
    ],
)
def test_a_name_that_leads_inside_is_not_followed(address: str):
    """Checked on each address that a name resolves to, at the moment of connecting."""
    hosts = Hosts("hooks.example.com")
    url = hosts.checked("https://hooks.example.com/x")
    with pytest.raises(OSError, match="leads to"):
        hosts.check_address(url, address)


@pytest.mark.parametrize(
    "address",
    [
        *("::169.254.169.254", "::ffff:0:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe"),
        *(
            "2002:a9fe:a9fe::1",
            "2607:f8b0::200:5efe:169.254.169.254",
            "2001:0:a9fe:a9fe::1",
            "::ffff:a9fe:a9fe%1",
        ),
        *("2001:0:5db8:d70e:8000:0:5601:5601", "fd20:ce::254", "fd00:ec2::254"),
    ],
)
def test_no_spelling_of_a_metadata_service_can_be_allowed(address: str):
    """Also where the operator has written the host with its port, which allows private addresses."""
    hosts = Hosts("hooks.example.com:443")
    url = hosts.checked("https://hooks.example.com/x")
    with pytest.raises(OSError, match="reserved"):
        hosts.check_address(url, address)


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14",
        "2606:2800:220:1::1",
        "2002:5db8:d70e::1",
        "64:ff9b::5db8:d70e",
        "::ffff:93.184.215.14",
    ],
)
def test_an_address_of_the_internet_is_followed(address: str):
    """However it is written."""
    hosts = Hosts("hooks.example.com")
    hosts.check_address(hosts.checked("https://hooks.example.com/x"), address)


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
    threads, answer, real = [], Event(), socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        threads.append(current_thread())
        answer.wait(120)
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    hook = webhook(receiver, url=f"http://localhost:{receiver.port}/x")
    deliveries = [asyncio.create_task(hook.deliver(event(f"r{i}"))) for i in range(8)]
    while not threads:
        await asyncio.sleep(0.001)
    await asyncio.gather(*(asyncio.to_thread(int) for _ in range(100)))  # pictures are still encoded
    answer.set()
    await asyncio.gather(*deliveries)
    await hook.close()
    assert len(receiver.received) == 8
    assert all(thread.daemon for thread in threads)
    assert len(threads) < 8


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
    subprocess.run(command, check=True, capture_output=True, timeout=120)
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
    "word", ["*", "*.example.com", "a/b", "https://a", "a:0", "a:x", "u@a", "a?b", "a\\b"]
)
def test_an_entry_that_is_no_host_is_refused(word: str):
    """Exact hosts only: a pattern opens more than one thinks."""
    with pytest.raises(Unsupported, match="is not a host"):
        Hosts(word)
