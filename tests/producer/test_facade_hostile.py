"""Hostile and broken input: it is refused with a message at once, and neither breaks nor delays the server."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from producer.web.a1111 import fields
from producer.web.openai.batch_input import read_lines
from schemas.batch import split_rows
from schemas.manifest import DEFAULT_LIMITS
from tests.producer.facade import facade, ready, worker
from tests.producer.openai_calls import line

ORIENTATION, RESOLUTION, EXIF_BLOCK, USER_COMMENT = 0x0112, 0x011A, 0x8769, 0x9286


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("hostile") / "store"
    with worker(store), facade(store) as listening:
        ready(listening)
        yield listening


def photograph(exif: bytes | Image.Exif = b"") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(out, "JPEG", exif=exif)
    return out.getvalue()


def edit(address: str, charset: str = "", picture: bytes = b"", **fields: str) -> httpx.Response:
    """OpenAI's form, with a picture; `charset` is put behind the form's type."""
    form = httpx.Request(
        "POST", f"{address}/v1/images/edits", data=fields, files={"image": picture or photograph()}
    )
    headers = {"Content-Type": form.headers["content-type"] + charset}
    return httpx.post(form.url, content=form.read(), headers=headers)


@pytest.mark.parametrize("value", [[], "", 0, False, [["a", "b"]]], ids=repr)
def test_the_metadata_of_a_batch_are_an_object_or_refused(address: str, value: object):
    """Also empty values that are not objects."""
    requests = httpx.post(
        f"{address}/v1/files", data={"purpose": "batch"}, files={"file": str(line("a")).encode()}
    )
    fields = {"endpoint": "/v1/images/generations", "completion_window": "24h", "metadata": value}
    answer = httpx.post(f"{address}/v1/batches", json={"input_file_id": requests.json()["id"], **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")


@pytest.mark.parametrize(
    ("field", "value"),
    [("metadata", '{"a": "\\ud800"}'), ("loras", '[{"name": "\\udfff"}]'), ("metadata", '{"a": 1, "a": 2}')],
)
def test_json_in_a_form_is_as_strict_as_a_body(address: str, field: str, value: str):
    """An unpaired surrogate cannot be stored or returned."""
    answer = edit(address, prompt="x", **{field: value})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "idna", "punycode"])
def test_a_form_is_utf8(address: str, charset: str):
    """Python has charsets that produce unpaired surrogates, and some that take quadratic time."""
    answer = edit(address, f"; charset={charset}", prompt="\\ud800 +2AA- a..b \x81")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "the body")
    assert edit(address, "; charset=UTF-8", prompt="ä", steps="1").status_code == 200


def test_a_title_of_blanks_is_read_at_once():
    """A body's worth of them took hours, on the event loop."""
    title = "a" + " " * 1_000_000 + "b"
    assert fields.checkpoint(title) == title
    assert fields.checkpoint(" sd15  [0123abcdef] ") == "sd15"


def test_a_photograph_with_odd_exif_is_drawn_from_or_refused(address: str):
    """Rotating it rewrites its EXIF, which fails for some EXIF data."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[RESOLUTION] = 6, 72.0
    right = exif.tobytes()
    at = right.index(RESOLUTION.to_bytes(2, "big")) + 2
    for kind in range(13):
        odd = right[:at] + kind.to_bytes(2, "big") + right[at + 2 :]
        answer = edit(address, picture=photograph(odd), prompt="x", steps="1")
        assert answer.status_code in (200, 400), (kind, answer.text)


def test_a_comment_that_is_no_text_is_no_recipe(address: str):
    """EXIF's fields may have any type."""
    exif = Image.Exif()
    exif.get_ifd(EXIF_BLOCK)[USER_COMMENT] = 5
    coded = base64.b64encode(photograph(exif)).decode()
    answer = httpx.post(f"{address}/sdapi/v1/png-info", json={"image": coded})
    assert (answer.status_code, answer.json()["info"]) == (200, "")


def test_blank_lines_of_a_batch_cost_no_memory():
    """A file of 200 MB of them made gigabytes of empty lines."""
    blank, request = b" \t\n" * 200_000, b'{"prompt": "x"}'
    row = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "x"}}
    tracemalloc.start()
    try:
        rows = split_rows("b", blank + request, DEFAULT_LIMITS)
        parsed = read_lines(blank + json.dumps(row).encode(), DEFAULT_LIMITS, 1_999_999_999)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ([row.line for row in rows], len(parsed.rows), parsed.faults) == ([200_001], 1, [])
    assert most < 4 * len(blank)


@pytest.mark.parametrize("path", ["/generate/", "/jobs", "/batches"])
def test_a_form_is_told_what_to_send_instead(address: str, path: str):
    """Clients send fields as a form by mistake; the JSON parser's message would name a column."""
    for form in (
        httpx.Request("POST", address, data={"prompt": "a red circle"}),
        httpx.Request("POST", address, files={"file": b"{}"}),
    ):
        kind = {"Content-Type": form.headers["content-type"]}
        answer = httpx.post(f"{address}{path}", content=form.read(), headers=kind)
        assert answer.status_code == 422
        assert "the body is a form; send" in answer.json()["detail"][0]["msg"]


def test_rows_whose_line_ends_were_lost_are_told_so(address: str):
    """`curl -d @FILE` joins the lines of a file."""
    fault = httpx.post(f"{address}/batches", content=b'{"prompt": "a"}{"prompt": "b"}').json()["detail"][0]
    assert fault["msg"] == "line 1, column 16: there is more text after the object; a request is one object"
