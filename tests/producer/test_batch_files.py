"""Batches as people write them: names in the caller's own words, line numbers of their file, slips that are named."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin

import httpx
import pytest

from producer import bulk
from schemas.batch import MAX_NAME_CHARS, split_rows
from schemas.errors import Rejected
from schemas.layout import is_id
from schemas.limits import Limits
from tests.producer.facade import facade

Cli = Callable[..., subprocess.CompletedProcess[str]]
NAMES = [
    "a red circle",
    "a/b",
    "a_b",
    "../x",
    "赤い円",
    "😀",
    "x" * MAX_NAME_CHARS,
    "0.png",
    "000001",
    ".",
    "\n",
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_rows_name_is_the_callers_own_text(tmp_path: Path, dreamdrop_process: Cli):
    """Any text comes back in results and errors as it was given, beside the error's line in the file."""
    rows: list[object] = [
        {"custom_id": name, "prompt": "a", "steps": 2, "width": 64, "height": 64} for name in NAMES
    ]
    rows.append({"custom_id": "no model", "prompt": "a", "model": "nonesuch"})
    text = "\n\n" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + '\n{"prompt": "half'
    (tmp_path / "store/requests").mkdir(parents=True)
    (tmp_path / "store/requests/names.jsonl").write_text(text, encoding="utf-8")
    done = dreamdrop_process("worker", "--store", "store", "--renderer", "null", "--once")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "store/results/names"
    assert sorted(line["custom_id"] for line in lines(folder / "results.jsonl")) == sorted(NAMES)
    failed, broken = lines(folder / "errors.jsonl")
    assert (failed["custom_id"], failed["error"]["line"]) == ("no model", 3 + len(NAMES))
    assert (broken["custom_id"], broken["error"]["line"]) == (None, 4 + len(NAMES))
    assert f"at line {4 + len(NAMES)}, column" in broken["error"]["message"]


def test_names_have_ids_of_their_own():
    """Names that differ in a single character never meet in one key, and plain names keep theirs."""
    body = "\n".join(json.dumps({"custom_id": name, "prompt": "a"}) for name in [*NAMES, "plain-1.x"])
    rows = split_rows("b", body.encode(), Limits())
    assert len({row.id for row in rows}) == len(rows)
    assert all(is_id(row.id) for row in rows)
    assert rows[-1].id == "b/plain-1.x"


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME_CHARS + 1), 5, ["a"], True])
def test_what_is_not_a_name_is_refused_with_its_line(name: object):
    """The whole batch, as its answers could not be matched."""
    with pytest.raises(Rejected, match=r"^line 2: the name .* should be a text of 1 to 500") as caught:
        split_rows("b", b"\n" + json.dumps({"custom_id": name, "prompt": "a"}).encode(), Limits())
    assert caught.value.line == 2


DOCUMENT = {"prompt": "a red circle", "output": {"format": "png"}, "loras": []}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(DOCUMENT, indent=2),
        json.dumps([DOCUMENT, DOCUMENT], indent=2),
        "\ufeff\n" + json.dumps(DOCUMENT, indent=2).replace("\n", "\r\n"),
        '{"prompt": "a",\n"steps": 2}',
        json.dumps(DOCUMENT, indent=2) + "\n" + json.dumps(DOCUMENT, indent=2),
        json.dumps(DOCUMENT, indent=2).replace('"png"', "png"),
        "[\n" + ",\n".join([json.dumps(DOCUMENT)] * 3) + "\n]",
    ],
    ids=["object", "list", "windows", "two lines", "two objects", "with a fault", "rows in a list"],
)
def test_a_pretty_printed_document_is_named_as_such(text: str, tmp_path: Path, dreamdrop: Cli):
    """One sentence instead of a failed row for each of its lines."""
    with pytest.raises(Rejected, match="one JSON document over several lines"):
        split_rows("b", text.encode(), Limits())
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    done = dreamdrop("submit", "a.jsonl")
    assert (done.returncode, "one JSON document over several lines" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "text", ['{"prompt": "a", \n{"prompt": "b"}', 'x\n{"prompt": "b"}', '[1]\n{"prompt": "b"}', '{"a":1}{\n}']
)
def test_a_broken_first_line_is_a_broken_row(text: str):
    """Only that row fails."""
    assert len(split_rows("b", text.encode(), Limits())) == 2


def test_the_lines_of_a_table_are_the_lines_of_its_batch():
    """Below the header, after blank lines, and behind a cell of several lines."""
    table = b'custom_id,prompt\na,one\n\nb,"two\nlines"\nc,three\n'
    rows = split_rows("b", bulk.from_csv(table), Limits())
    assert [(row.custom_id, row.line) for row in rows] == [("a", 2), ("b", 5), ("c", 6)]


def test_a_batchs_grid_and_gallery_are_in_the_order_of_its_file(tmp_path: Path, dreamdrop_process: Cli):
    """Not in the order of its names; and every link of the gallery leads to a picture where it is served."""
    names = ["10", "9", "s4-cfg3", "s8 cfg3", "a"]
    rows = [{"custom_id": name, "prompt": name, "steps": 2, "width": 64, "height": 64} for name in names]
    (tmp_path / "store/requests").mkdir(parents=True)
    (tmp_path / "store/requests/sweep.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = dreamdrop_process("worker", "--store", "store", "--renderer", "null", "--once")
    assert done.returncode == 0, done.stderr
    prompts = re.compile(r'alt="([^"]*)"')
    folder = tmp_path / "store/results/sweep"
    page = (folder / "gallery.html").read_text()
    assert prompts.findall(page) == names
    links = re.findall(r'href="([^"#]+)"', page)
    assert [(folder / unquote(link)).is_file() for link in links] == [True] * len(names)
    places = set(re.findall(r'id="([^"]+)"', page))
    assert {link for link in re.findall(r'href="#([^"]+)"', page)} <= places, "these work in a mailed copy"
    with facade(tmp_path / "store") as address:
        grid = httpx.get(f"{address}/b/sweep", headers={"Accept": "text/html"}).text
        assert [name for name in prompts.findall(grid) if name in names] == names
        at = f"{address}/batches/sweep/files/gallery"
        assert httpx.get(at).text == page
        for link in links:
            answer = httpx.get(urljoin(at, link))
            assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
            assert answer.content == (folder / unquote(link)).read_bytes()
        for other in ("files/%2e%2e/0.png", "files/10/result.json", "files/11/0.png"):
            assert httpx.get(f"{address}/batches/sweep/{other}").status_code == 404
