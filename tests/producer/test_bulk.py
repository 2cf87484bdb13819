"""Tables and lists of prompts become batches, and a fault names its line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer import bulk
from schemas.batch import split_rows
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import parse_manifest


def rows(jsonl: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in jsonl.splitlines() if line.strip()]


def test_a_table_becomes_requests():
    """Numbers are parsed, empty cells are left out, dotted columns make inner fields."""
    table = (
        "prompt,steps,cfg_scale,strict,output.format,metadata.shelf,custom_id\n"
        '"a cat, asleep",20,7.5,yes,jpeg,3,tom\n'
        "a dog,,,,,,\n"
        ",,,,,,\n"
    )
    assert rows(bulk.from_csv(table.encode())) == [
        {
            "prompt": "a cat, asleep",
            "steps": 20,
            "cfg_scale": 7.5,
            "strict": True,
            "output": {"format": "jpeg"},
            "metadata": {"shelf": "3"},
            "custom_id": "tom",
        },
        {"prompt": "a dog"},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_of_every_country_are_read(delimiter: str):
    """Comma, semicolon or tab, with a byte order mark and Windows line ends."""
    table = f"prompt{delimiter}seed\r\na cat{delimiter}5\r\n".encode("utf-8-sig")
    assert rows(bulk.from_csv(table)) == [{"prompt": "a cat", "seed": 5}]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("prompt,steps\na,many\n", "line 2: steps is 'many'; it should be a whole number"),
        ("prompt,cfg_scale\na,x\n", "line 2: cfg_scale is 'x'; it should be a number"),
        ("prompt,cfg_scale\na,nan\n", "line 2: cfg_scale is not a finite number"),
        ("prompt,strict\na,maybe\n", "line 2: strict is 'maybe'; it should be true or false"),
        ("prompt,loras\na,[\n", "line 2: loras is '['; it should be JSON"),
        ("prompt,stepps\na,3\n", "line 2: stepps is an unknown field; did you mean 'steps'?"),
        ('prompt,width\n"two\nlines",9\n', "line 3: width is 9"),
        ("steps\n3\n", "one of them must be `prompt`"),
        ("", "one of them must be `prompt`"),
        ("prompt,prompt\na,b\n", "the column 'prompt' appears twice"),
        ("prompt,\na,b\n", "column 2 has no name"),
        ("prompt\na,b\n", "line 2: has 2 cells for 1 columns"),
        ("prompt,steps\n", "a header but no rows"),
        ('prompt\n"a\n', "this is not CSV"),
        ("prompt,image\na,cat.png\n", "there is no such file beside the table"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(table: str, text: str):
    """The line in the file, the column, what is wrong and what it should be."""
    with pytest.raises(Rejected) as caught:
        bulk.from_csv(table.encode())
    assert text in caught.value.message


def test_text_that_is_not_utf8_is_refused_with_its_line():
    """Both forms say on which line the bytes are."""
    for read in (bulk.from_csv, bulk.from_text):
        with pytest.raises(Rejected, match="line 2: byte 7 is not UTF-8"):
            read(b"prompt\n\xe9\n")


def test_pictures_beside_a_table_are_embedded(tmp_path: Path):
    """A path becomes the file's content; a key or base64 stays."""
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    table = b"prompt,image\na,cat.png\nb,inputs/dog.png\n"
    found = rows(bulk.from_csv(table, folder=tmp_path))
    assert base64.b64decode(found[0]["image"]) == b"\x89PNG"
    assert found[1]["image"] == "inputs/dog.png"


def test_every_line_of_a_text_is_a_prompt():
    """Comments and blank lines are left out, and line numbers stay those of the text."""
    jsonl = bulk.from_text(b"# my prompts\na cat\n\n  a dog  \n")
    assert rows(jsonl) == [{"prompt": "a cat"}, {"prompt": "a dog"}]
    assert [row.line for row in split_rows("b", jsonl, Limits())] == [2, 4]
    with pytest.raises(Rejected, match="holds no prompts"):
        bulk.from_text(b"# nothing\n\n")


@given(st.lists(st.text(min_size=1).filter(lambda s: s.strip() and "\0" not in s), min_size=1, max_size=5))
def test_any_prompt_survives_a_table(prompts: list[str]):
    """Quotes, commas, line ends and every alphabet come through CSV as they are."""
    import csv
    import io

    out = io.StringIO(newline="")
    csv.writer(out).writerows([["prompt"], *([p] for p in prompts)])
    try:
        body = out.getvalue().encode()
    except UnicodeEncodeError:
        return  # lone surrogates are in no file
    jsonl = bulk.from_csv(body)
    found = [parse_manifest(row.body).prompt for row in split_rows("b", jsonl, Limits())]
    assert found == prompts


def test_pictures_of_guides_are_embedded_too(tmp_path: Path):
    """In a column of their own, and inside a cell of JSON; what is no picture's place stays as it is."""
    for name in ("edges.png", "face.png"):
        (tmp_path / name).write_bytes(name.encode())
    nets = json.dumps(
        [{"name": "canny", "image": "edges.png"}, {"name": "face.png", "image": "uploads/a.png"}]
    )
    quoted = nets.replace('"', '""')
    table = f'prompt,controlnet,ip_adapter.image,ip_adapter.scale\na,"{quoted}",face.png,0.5\n'
    line = bulk.from_csv(table.encode(), folder=tmp_path).splitlines()[-1]
    row = json.loads(line)
    edges, face = (base64.b64encode(name).decode() for name in (b"edges.png", b"face.png"))
    assert row["controlnet"] == [
        {"name": "canny", "image": edges},
        {"name": "face.png", "image": "uploads/a.png"},
    ]
    assert row["ip_adapter"] == {"image": face, "scale": 0.5}
    with pytest.raises(
        Rejected, match=r"line 2: controlnet.0.image names 'none.png', but there is no such file"
    ):
        bulk.from_csv(table.replace("edges", "none").encode(), folder=tmp_path)


def test_picture_files_become_fields(tmp_path: Path):
    """One as text, as workers of any version read it, and several as a list in their order."""
    for name in ("a", "b", "m"):
        (tmp_path / name).write_bytes(name.encode())
    a, b, m = (base64.b64encode(name.encode()).decode() for name in ("a", "b", "m"))
    assert bulk.pictures([tmp_path / "a"], tmp_path / "m") == {"image": a, "mask_image": m}
    assert bulk.pictures([tmp_path / "b", tmp_path / "a"], None) == {"image": [b, a]}
    assert bulk.pictures([], None) == {}
