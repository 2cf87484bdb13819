"""Results that end a request without pictures."""

from __future__ import annotations

from schemas.errors import Rejected
from schemas.result import Failure, Frozen, Result


def ended(body: bytes, **facts: object) -> Result:
    return Result.ended("cat", "canceled", None, request=Frozen.of(body), fingerprint="f", **facts)


def test_a_failure_says_where_the_request_is_wrong():
    """A refusal's code, message and place reach the author of the request unchanged."""
    error = Rejected("invalid_json", "it breaks off", field="steps", line=3, column=7)

    assert Failure.of(error) == Failure(
        code="invalid_json", message="it breaks off", field="steps", line=3, column=7
    )


def test_a_result_without_pictures_echoes_the_metadata():
    """The metadata comes from the frozen request, unless the caller gives another."""
    body = b'{"prompt": "a cat", "metadata": {"user": 7}}'

    assert ended(body).metadata == {"user": 7}
    assert ended(body, metadata={}).metadata == {}


def test_metadata_that_cannot_be_read_is_empty():
    """A request that is broken, cut or has metadata of another type still gets its result."""
    for body in (b"", b"{", b"\xff", b'{"metadata": 5}', b'{"a": 1}\n{"a": 2}'):
        assert ended(body).metadata == {}
    assert Frozen.of(b'{"metadata": {"a": 1}}', keep=10).metadata() == {}


def test_a_result_ends_now_unless_told_when():
    """A simulation passes its own time, which may be empty."""
    assert ended(b"{}").finished_at.endswith("Z")
    assert ended(b"{}", finished_at="").finished_at == ""
