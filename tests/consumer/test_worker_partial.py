"""Requests of which some images fail: the others are kept, and the failures are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.worker_process import drop, result, worker

THREE = {"prompt": "a cat", "steps": 1, "width": 8, "height": 8, "number_of_images": 3, "seed": 20}
SECOND_FAILS = {"fail_seeds": [21]}


def test_a_request_of_which_one_image_fails_ends_as_partial(tmp_path: Path):
    """The other images keep their index; the failure names the missing one."""
    with worker(tmp_path, null=SECOND_FAILS):
        drop(tmp_path, "three.json", THREE)
        answer = result(tmp_path, "three")
    assert answer["status"] == "partial"
    assert [(image["index"], image["seed"]) for image in answer["images"]] == [(0, 20), (2, 22)]
    assert all((tmp_path / image["key"]).exists() for image in answer["images"])
    assert (answer["failure"]["code"], answer["failure"]["index"]) == ("some_images_failed", 1)
    assert "1 of 3 images failed; the first: told to fail" in answer["failure"]["message"]


def test_a_batch_tells_what_failed_of_a_row_that_has_images(tmp_path: Path):
    """A partial row is listed once, among the results, with its error; the page shows both."""
    rows = [{"custom_id": "good", **THREE, "seed": 1}, {"custom_id": "half", **THREE}]
    with worker(tmp_path, null=SECOND_FAILS):
        drop(tmp_path, "two.jsonl", "\n".join(map(json.dumps, rows)).encode())
        answer = result(tmp_path, "two")
    folder = tmp_path / "results" / "two"
    good, half = lines(folder / "results.jsonl")
    assert good["error"] is None
    assert (half["custom_id"], half["error"]["code"]) == ("half", "some_images_failed")
    assert len(half["response"]["body"]["images"]) == 2
    assert lines(folder / "errors.jsonl") == []
    page = (folder / "gallery.html").read_text()
    assert page.count('class="why">1 of 3 images failed') == 2  # beside each of the row's pictures
    assert answer["status"] == "partial"
    assert answer["failure"]["message"] == "1 of 2 rows did not succeed; results.jsonl says why"


def test_a_batch_says_where_each_kind_of_failure_is_told(tmp_path: Path):
    """Rows without any image are in one file, rows with some in the other."""
    rows = [THREE, {**THREE, "prompt": "poison"}]
    with worker(tmp_path, null={**SECOND_FAILS, "fail_on": "poison"}):
        drop(tmp_path, "two.jsonl", "\n".join(map(json.dumps, rows)).encode())
        answer = result(tmp_path, "two")
    assert answer["failure"]["message"].endswith(
        "errors.jsonl says why, and results.jsonl for rows with some images"
    )
    (bad,) = lines(tmp_path / "results" / "two" / "errors.jsonl")
    assert bad["error"]["code"] == "render_error"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
