"""The announced event: a valid CloudEvent, the same whenever it is made again, and silent about prompts."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import layout
from schemas.completion import MAX_BYTES, Completion, completion, event_id
from schemas.export import documents
from schemas.result import BatchCounts, BatchResult, Failure, Frozen, ImageResult, Result, Timings

SECRET = "a portrait of my neighbour"
VALIDATOR = jsonschema.Draft202012Validator(
    documents()["completion"], format_checker=jsonschema.FormatChecker()
)


def image(index: int = 0, id: str = "cats/a") -> ImageResult:
    return ImageResult(
        index=index,
        key=f"results/{id}/{index}.png",
        seed=5 + index,
        width=64,
        height=64,
        bytes=100,
        sha256="ab" * 32,
        content_type="image/png",
    )


def result(**facts: Any) -> Result:
    """A result with everything in it."""
    defaults: dict[str, Any] = {
        "id": "cats/a",
        "status": "succeeded",
        "task": "text2img",
        "images": (image(),),
        "metadata": {"order": 7},
        "parameters": {"prompt": SECRET},
        "timings": Timings(total=1.5),
        "worker": "host-1",
        "finished_at": "2026-01-31T12:00:00.000Z",
        "fingerprint": "cd" * 32,
        "request": Frozen.of(json.dumps({"prompt": SECRET}).encode()),
    }
    return Result(**defaults | facts)


def said(result: Result) -> dict[str, Any]:
    """The event as a receiver reads it; checked against the exported schema."""
    document: dict[str, Any] = json.loads(completion(result, source="s3://bucket").to_json())
    VALIDATOR.validate(document)
    return document


def test_an_event_says_what_came_of_a_request_and_where():
    """Every required attribute of CloudEvents 1.0, and data enough to fetch the pictures."""
    event = said(result())
    assert event["specversion"] == "1.0"
    assert event["type"] == "dreamdrop.request.succeeded"
    assert event["source"] == "s3://bucket"
    assert event["subject"] == event["data"]["id"] == "cats/a"
    assert event["time"] == "2026-01-31T12:00:00.000Z"
    assert event["datacontenttype"] == "application/json"
    assert event["data"]["result"] == "results/cats/a/result.json"
    assert event["data"]["images"] == [image().model_dump()]
    assert event["data"]["metadata"] == {"order": 7}
    assert event["data"]["timings"]["total"] == 1.5


@pytest.mark.parametrize("status", ["succeeded", "partial", "failed", "canceled", "expired"])
def test_every_ending_has_its_type(status: str):
    """The type alone tells how it ended, so a subscription can filter by it."""
    assert said(result(status=status))["type"] == f"dreamdrop.request.{status}"


def test_the_same_result_is_the_same_event():
    """Made again by another process, from the stored bytes, it has the same id and the same bytes."""
    first = result()
    again = Result.model_validate_json(first.to_json())
    assert completion(first, source="x").to_json() == completion(again, source="x").to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"id": "cats/b"},
        {"fingerprint": "ef" * 32},
        {"status": "failed"},
        {"finished_at": "2026-02-01T00:00:00Z"},
        {"worker": "host-2"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_result_is_another_event(change: dict[str, str]):
    """A request that was made anew is announced anew: a receiver must not take it for a repeat."""
    assert event_id(result(**change)) != event_id(result())


def test_no_event_repeats_a_prompt():
    """Prompts are private: neither the request nor the plan is told, nor a failure that quotes them."""
    quoting = Failure(code="invalid_manifest", message=f"prompt is ['{SECRET}']", field="prompt.0")
    raised = Failure(code="render_error", message=f"cannot draw {SECRET}")
    for failure in (None, quoting, raised):
        event = completion(result(status="failed", failure=failure), source="x")
        assert SECRET.encode() not in event.to_json()


def test_a_harmless_reason_is_told():
    """Code, place and words of a failure help whoever reads the event."""
    failure = Failure(code="invalid_json", message="a comma is missing", line=3, column=9)
    told = said(result(status="failed", failure=failure, images=()))["data"]["failure"]
    assert (told["code"], told["message"], told["line"], told["column"]) == (
        "invalid_json",
        "a comma is missing",
        3,
        9,
    )


def test_a_batch_tells_how_its_rows_ended():
    """One event for the batch, with its counts and the keys of its files."""
    batch = BatchResult(counts=BatchCounts(total=3, succeeded=3), results="r", errors="e", gallery="g")
    data = said(result(task="batch", images=(), batch=batch))["data"]
    assert data["task"] == "batch"
    assert data["batch"]["counts"]["succeeded"] == 3


def test_an_event_always_fits_into_a_message():
    """What makes it too long is left out, and it says so; the result has it all."""
    large = result(images=tuple(image(i) for i in range(2000)))
    event = said(large)
    assert event["data"]["images"] == []
    assert event["data"]["omitted"] == ["images"]
    huge = result(metadata={"note": "x" * 2 * MAX_BYTES})
    assert said(huge)["data"]["omitted"] == ["images", "metadata"]
    assert event["id"] == event_id(large)


@pytest.mark.parametrize("time", ["", "yesterday", "2026-01-31", "2026-01-31T12:00:00"])
def test_a_time_that_is_none_is_left_out(time: str):
    """CloudEvents wants RFC 3339 or nothing; null is not allowed."""
    assert "time" not in said(result(finished_at=time))


@given(
    path=st.text(max_size=600),
    status=st.sampled_from(["succeeded", "partial", "failed", "canceled", "expired"]),
    metadata=st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.booleans(), max_size=5),
    message=st.text(max_size=2000),
)
def test_any_id_and_any_words_make_a_valid_event(
    path: str, status: str, metadata: dict[str, Any], message: str
):
    """ASCII JSON that its own model reads back, with an id of 32 hex digits, whatever people name things."""
    id = layout.safe_id(path)
    failure = Failure(code="unknown_model", message=message) if status == "failed" else None
    made = completion(result(id=id, status=status, metadata=metadata, failure=failure), source="x")
    body = made.to_json()
    assert body.isascii()
    assert len(body) <= MAX_BYTES
    VALIDATOR.validate(json.loads(body))
    assert Completion.model_validate_json(body) == made
    assert len(made.id) == 32
    assert set(made.id) <= set("0123456789abcdef")
