"""HTTP as clients and browsers use it: HEAD, compressed bodies, slashes, Accept, Allow, and errors as pages."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.producer.facade import facade, ready, worker

ASK = {"prompt": "a red circle", "steps": 1, "width": 64, "height": 64}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("http") / "store"
    with worker(store), facade(store) as listening:
        ready(listening)
        yield listening


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A facade whose worker takes its time."""
    store = tmp_path_factory.mktemp("slow") / "store"
    with worker(store, "--null", json.dumps({"seconds_per_step": 0.05})), facade(store) as listening:
        ready(listening)
        yield listening


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/docs", "/sdapi/v1/options", "/v1/models", "/b", "/jobs"]
)
def test_head_is_get_without_its_body(address: str, path: str):
    """The same status and type; the connection stays usable."""
    with httpx.Client(base_url=address) as client:
        for _ in range(2):
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b"")
        got = client.get(path)
        assert head.headers["content-type"] == got.headers["content-type"]
        assert client.head("/jobs/nobody").status_code == 404


def test_head_of_a_picture_and_of_a_stream_ends(address: str):
    """The picture's type and length; a stream's headers without its endless body."""
    with httpx.Client(base_url=address, timeout=10) as client:
        id = client.post("/generate/", json=ASK).json()["id"]
        head = client.head(f"/jobs/{id}/images/0")
        assert (head.status_code, head.headers["content-type"], head.content) == (200, "image/png", b"")
        assert int(head.headers["content-length"]) == len(client.get(f"/jobs/{id}/images/0").content)
        waiting = client.post(
            "/jobs", json={**ASK, "prompt": "later", "id": "streamed", "steps": 150}
        ).json()["id"]
        assert client.head(f"/jobs/{waiting}/events").status_code == 200
        assert client.get("/livez").status_code == 200


def test_a_gzip_body_is_decompressed_within_the_limit(address: str):
    """Also in members; what is not gzip, cut off, or far too large is refused; other encodings are 415."""
    raw = json.dumps(ASK).encode()
    zipped = {"Content-Encoding": "gzip"}
    with httpx.Client(base_url=address, timeout=60) as client:
        for body in (gzip.compress(raw), gzip.compress(raw[:9]) + gzip.compress(raw[9:])):
            assert client.post("/generate/", content=body, headers=zipped).status_code == 200
        for body in (raw, gzip.compress(raw)[:-9], b"\x1f\x8b"):
            assert client.post("/generate/", content=body, headers=zipped).status_code == 422
        bomb = gzip.compress(b" " * (40 << 20))
        assert client.post("/generate/", content=bomb, headers=zipped).status_code == 413
        for path in ("/generate/", "/sdapi/v1/txt2img", "/v1/images/generations", "/jobs", "/batches"):
            refused = client.post(path, content=raw, headers={"Content-Encoding": "br"})
            assert refused.status_code == 415
            assert refused.headers["accept-encoding"] == "gzip"
            assert "Content-Encoding" in refused.text
        assert (
            client.post("/generate/", content=raw, headers={"Content-Encoding": "identity"}).status_code
            == 200
        )


@pytest.mark.parametrize(
    "path",
    [
        "/sdapi/v1/txt2img/",
        "//sdapi/v1/txt2img",
        "/sdapi//v1/txt2img",
        "/v1/images/generations/",
        "/generate",
        "//generate/",
    ],
)
def test_slashes_too_many_lead_to_the_same_place(address: str, path: str):
    """Clients join addresses with one too many."""
    body = {"prompt": "x", "steps": 1} if "v1/images" in path else ASK
    assert httpx.post(address + path, json=body, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/png;q=0.9, application/json;q=0.5", "image/png"),
        ("image/*", "image/png"),
        ("image/webp,image/*;q=0.5,*/*;q=0.1", "image/webp"),
        ("image/avif,image/webp,image/png,*/*;q=0.8", "image/png"),
        ("IMAGE/JPEG ; q=1.0", "image/jpeg"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("image/png, application/json", "application/json"),
        ("image/png;q=0.5, */*", "application/json"),
        ("*/*", "application/json"),
        ("image/png;q=0", "application/json"),
        ("text/html", "application/json"),
    ],
)
def test_accept_is_read_with_wildcards_and_q(address: str, accept: str, kind: str):
    """The picture is sent where the caller prefers it to JSON."""
    answer = httpx.post(f"{address}/generate/", json=ASK, headers={"Accept": accept}, timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/jobs/a", "DELETE, GET, HEAD, PUT"),
        ("PUT", "/jobs", "GET, HEAD, POST"),
        ("DELETE", "/v1/files", "GET, HEAD, POST"),
        ("GET", "/generate/", "POST"),
        ("GET", "/batches", "POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("POST", "/static/live.js", "GET, HEAD"),
    ],
)
def test_allow_lists_every_method_of_an_address(address: str, method: str, path: str, allowed: str):
    """Over all of its routes."""
    answer = httpx.request(method, address + path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/jobs/nobody", 404),
        ("/generate/", 405),
        ("/v1/models/none", 404),
        ("/jobs?limit=no", 422),
    ],
)
def test_a_browser_gets_errors_as_pages(address: str, path: str, status: int):
    """On any address; programs get JSON."""
    page = httpx.get(address + path, headers={"Accept": BROWSER})
    assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert "Back to the pictures" in page.text
    for accept in ("*/*", "application/json", "application/json, text/html;q=0.5"):
        assert (
            httpx.get(address + path, headers={"Accept": accept}).headers["content-type"]
            == "application/json"
        )


def test_a_browser_at_batches_is_led_to_the_page(address: str):
    """`/batches` takes files only; people mean `/b`."""
    page = httpx.get(f"{address}/batches", headers={"Accept": BROWSER})
    assert (page.status_code, page.headers["location"]) == (303, "/b")


def raw_request(address: str, body: str) -> socket.socket:
    """A connection on which a whole request was sent."""
    host, port = address.removeprefix("http://").split(":")
    caller = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /generate/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    caller.sendall((head + body).encode())
    return caller


def test_a_caller_that_closes_its_half_gets_its_answer(slow: str):
    """As `nc -N` does; it was taken for one that had hung up."""
    with raw_request(slow, json.dumps(ASK | {"steps": 20})) as caller:
        caller.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: caller.recv(1 << 16), b""))
    assert b"HTTP/1.1 200 OK" in answer
    assert answer.endswith(b"}")


@pytest.mark.parametrize("half_first", [False, True])
def test_a_caller_that_hangs_up_still_cancels_its_request(slow: str, half_first: bool):
    """Whether or not it had closed its half before."""
    caller = raw_request(slow, json.dumps(ASK | {"steps": 150, "number_of_images": 8}))
    with httpx.Client(base_url=slow) as client:
        until(lambda: client.get("/jobs").json()["processing"])
        id = client.get("/jobs").json()["processing"][0]["id"]
        if half_first:
            caller.shutdown(socket.SHUT_WR)
        caller.close()
        until(lambda: client.get(f"/jobs/{id}").json()["status"] == "canceled")


def until(check: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)
