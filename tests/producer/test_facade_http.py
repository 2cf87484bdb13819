"""HTTP as clients and browsers use it: HEAD, compressed bodies, slashes, Accept, Allow, and errors as pages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

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
