"""The failing network is itself looked at: each fault does what it says, and is counted."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.servers.fault_proxy import Call, FaultProxy, Rule, When, failing
from tests.servers.s3_front import S3Front, running

BODY = b"0123456789" * 100


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A proxy before an S3 server with one bucket."""
    with running(S3Front()) as front, failing(FaultProxy(front.url)) as between:
        yield between


def ask(url: str, method: str, key: str, body: bytes = b"", timeout: float = 120) -> tuple[int, bytes]:
    """(status, body), or (0, what had come) when the connection broke."""
    parts = urlsplit(url)
    line = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        line.request(method, f"/bucket/{key}", body, {"If-None-Match": "*"} if method == "PUT" else {})
        answer = line.getresponse()
        return answer.status, answer.read()
    except http.client.IncompleteRead as error:
        return 0, error.partial
    except OSError:
        return 0, b""
    finally:
        line.close()


def test_without_rules_nothing_changes(proxy: FaultProxy):
    """Bodies, conditions and refusals pass."""
    assert ask(proxy.url, "PUT", "a", BODY)[0] == 200
    assert ask(proxy.url, "PUT", "a", b"other")[0] == 412
    assert ask(proxy.url, "GET", "a") == (200, BODY)
    assert ask(proxy.url, "GET", "b")[0] == 404
    assert ask(proxy.url, "HEAD", "a") == (200, b"")
    assert ask(proxy.url, "DELETE", "a")[0] == 204
    assert proxy.calls == {"PUT": 2, "GET": 2, "HEAD": 1, "DELETE": 1}


@pytest.mark.parametrize(
    ("kind", "status", "done"),
    [
        ("slow_down", 503, False),
        ("broken", 500, False),
        ("conflict", 409, False),
        ("reset", 0, False),
        ("cut_request", 0, False),
        ("hang", 0, False),
        ("latency", 200, True),
        ("lost", 0, True),
        ("hang_after", 0, True),
        ("broken_after", 500, True),
    ],
)
def test_a_fault_does_what_it_says(proxy: FaultProxy, kind: str, status: int, done: bool):
    """What the client hears, and whether the write took effect."""
    proxy.rules.append(Rule(kind, verb="PUT", prefix="results/", at=(1,), seconds=0.05))
    assert ask(proxy.url, "PUT", "results/a", BODY)[0] == status
    assert ask(proxy.url, "GET", "results/a")[0] == (200 if done else 404)
    assert ask(proxy.url, "PUT", "results/b", BODY)[0] == 200
    assert proxy.injected == {kind: 1}


def test_a_late_write_lands_after_its_client_has_given_up(proxy: FaultProxy):
    """It meets what was written in between, and loses."""
    proxy.rules.append(Rule("late", verb="PUT", at=(1,), seconds=0.1))
    assert ask(proxy.url, "PUT", "a", b"late") == (0, b"")
    while ask(proxy.url, "GET", "a")[0] == 404:
        pass
    assert ask(proxy.url, "PUT", "a", BODY)[0] == 412
    assert ask(proxy.url, "GET", "a") == (200, b"late")


def test_a_body_that_breaks_off_is_not_taken_for_whole(proxy: FaultProxy):
    """The client sees that half is missing."""
    ask(proxy.url, "PUT", "a", BODY)
    proxy.rules.append(Rule("truncated", verb="GET"))
    assert ask(proxy.url, "GET", "a") == (0, BODY[:500])


def test_who_watches_sees_each_call_on_both_sides(proxy: FaultProxy):
    """Which is how a worker is killed between a write and its answer."""
    seen: list[tuple[str, str, When]] = []

    def watch(call: Call, when: When) -> None:
        seen.append((call.verb, call.key, when))

    proxy.watch = watch
    ask(proxy.url, "PUT", "claims/a/000001", BODY)
    assert seen == [("PUT", "claims/a/000001", "before"), ("PUT", "claims/a/000001", "after")]


def test_chance_repeats_with_its_seed():
    """The same calls meet the same faults."""
    histories = []
    for _ in range(2):
        with (
            running(S3Front()) as front,
            failing(FaultProxy(front.url, [Rule("broken", 0.5)], seed=3)) as proxy,
        ):
            histories.append([ask(proxy.url, "GET", "a")[0] for _ in range(20)])
    assert histories[0] == histories[1]
    assert set(histories[0]) == {404, 500}
