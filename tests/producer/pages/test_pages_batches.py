"""The pages of batches: upload, list and grid."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests.producer.browser import QUICK, expect

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_batch_is_uploaded_watched_and_compared(page: Page, tmp_path: Path):
    """Upload a file, watch pictures appear, then compare them in a grid by what differs."""
    rows = [QUICK | {"custom_id": f"row{n}", "cfg_scale": n, "steps": 10} for n in (1, 2, 10)]
    bad = {"custom_id": "bad", "prompt": "x", "model": "nothing"}
    file = tmp_path / "wall.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*rows, bad]))
    page.goto("/b")
    page.get_by_label("File").set_input_files(file)
    page.get_by_label("Name").fill("wall")
    page.get_by_role("button", name="Upload and draw").click()
    page.wait_for_url("**/b/wall")
    expect(page.locator(".status")).to_have_text("partly finished")
    expect(page.locator("#summary")).to_contain_text("3 finished · 1 failed")
    expect(page.locator("#failed li")).to_contain_text("no model named 'nothing'")
    assert page.locator("#grid .fact-cfg_scale dd").all_inner_texts() == ["1", "2", "10"]
    expect(page.locator("#grid .fact-seed").first).to_be_hidden()
    page.get_by_label("seed").check()
    expect(page.locator("#grid .fact-seed").first).to_be_visible()
    page.get_by_label("Columns").select_option("3")
    columns = page.locator("#grid").evaluate("(grid) => getComputedStyle(grid).gridTemplateColumns")
    assert len(columns.split()) == 3
    page.goto("/b")
    expect(page.get_by_role("row").filter(has_text="wall")).to_contain_text("4 of 4")


def test_a_wrong_line_is_named_once(page: Page, tmp_path: Path):
    """`Line 2: line 2: ...` it said."""
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"prompt": "a"}\n{"prmpt": "b"}\n')
    page.goto("/b")
    page.get_by_label("File").set_input_files(file)
    page.get_by_role("button", name="Upload and draw").click()
    problem = page.locator("#problem")
    expect(problem).to_contain_text("line 2: ")
    assert problem.inner_text().lower().count("line 2") == 1


def test_a_batch_that_ends_stays_in_the_list(address: str):
    """For a moment it was neither among the unfinished nor among the finished batches."""
    row = json.dumps(QUICK | {"steps": 20})
    httpx.get(f"{address}/").raise_for_status()  # what is remembered of the queue ages from now on,
    httpx.post(f"{address}/batches?id=steady", content=row).raise_for_status()
    time.sleep(0.5)  # and what is remembered of the ended from here
    seen: list[bool] = []
    end = time.monotonic() + 240
    while "finished" not in (page := listed(address, "steady")):
        seen.append(bool(page))
        assert time.monotonic() < end
        time.sleep(0.05)
    assert sorted(seen) == seen, "it was in the list, and then it was not"


def listed(address: str, batch: str) -> str:
    """A batch's row in the list; "" if there is none."""
    return httpx.get(f"{address}/b").text.partition(f'id="batch-{batch}"')[2].partition("</tr>")[0]
