"""Batches: many requests in one file, one JSON document per line.

A row is a manifest, with `custom_id` or `id` as its name within the batch: any text. Blank lines are skipped.
A name that is used twice is refused with both line numbers, because results are matched by name.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.errors import Rejected, TooLarge
from schemas.layout import row_id
from schemas.limits import Limits
from schemas.text.strictjson import load_object

MAX_NAME_CHARS = 500  # of a row's custom_id
_DOCUMENT_MAX = 32 << 20  # bytes in which a JSON document over several lines is looked for


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a batch, as a request of its own."""

    line: int  # from 1
    custom_id: str | None  # the caller's own text
    id: str  # below the batch's; with a safe name in the place of a custom_id that cannot be part of a key
    body: bytes  # the manifest without the row's name; a line that is not an object stays as it is


def numbered(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a file's lines that are not blank, with their numbers from 1.

    A list of all lines could be many times as large as the file: it may have 200 million blank lines.
    """
    for line, raw in enumerate(io.BytesIO(body.removeprefix(b"\xef\xbb\xbf")), start=1):
        if stripped := raw.strip():
            yield line, stripped


def expect_lines(body: bytes, first: bytes) -> None:
    """Refuse one JSON document over several lines, whose lines would all fail.

    Args:
        first: the first line that is not blank.

    Raises:
        Rejected: `invalid_json`.
    """
    if first[:1] not in (b"{", b"[") or len(first) > _DOCUMENT_MAX:
        return
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        pass
    else:
        return
    text = body[:_DOCUMENT_MAX].decode("utf-8-sig", "replace").lstrip()
    try:
        end = json.JSONDecoder().raw_decode(text)[1]
        looks_so = "\n" in text[:end]
    except (ValueError, RecursionError):
        looks_so = first in (b"{", b"[", b"[{")  # as a pretty-printed document begins, also one with a fault
    if not looks_so:
        return
    raise Rejected(
        "invalid_json",
        "this looks like one JSON document over several lines; write each request on a line of its own, or name a "
        "file that holds a single request .json",
        line=1,
        column=1,
    )


def split_rows(batch: str, body: bytes, limits: Limits) -> list[Row]:
    """Split a .jsonl file into its rows, in order.

    A row that is not valid JSON keeps its bytes and is named by its line number: only that row will fail.

    Raises:
        Rejected: the file is too large, has too many rows or none, or uses a name twice.
    """
    if len(body) > limits.max_batch_bytes:
        raise TooLarge("the batch", len(body), limits.max_batch_bytes)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for line, raw in numbered(body):
        if len(rows) == limits.max_batch_rows:
            raise Rejected("too_large", f"the batch has more than {limits.max_batch_rows:,} rows; split it")
        if not rows:
            expect_lines(body, raw)
        row = _row(batch, line, raw)
        if row.id in seen:
            name = row.custom_id or row.id.rsplit("/", 1)[-1]
            raise Rejected(
                "invalid_manifest",
                f"the name {name!r} is used in lines {seen[row.id]} and {line}; each row needs its own custom_id",
                field="custom_id",
                line=line,
            )
        seen[row.id] = line
        rows.append(row)
    if not rows:
        raise Rejected(
            "invalid_json", "the batch has no rows; write one JSON object per line", line=1, column=1
        )
    return rows


def _row(batch: str, line: int, raw: bytes) -> Row:
    try:
        document = load_object(raw, what="a row")
    except Rejected:
        return Row(line, None, row_id(batch, None, line), raw)
    names = [document[key] for key in ("custom_id", "id") if document.get(key) is not None]
    name = names[0] if names else None
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS):
        raise Rejected(
            "invalid_manifest",
            f"line {line}: the name {str(name)[:60]!r} should be a text of 1 to {MAX_NAME_CHARS} characters",
            field="custom_id",
            line=line,
        )
    if not names:
        return Row(line, None, row_id(batch, None, line), raw)
    document.pop("custom_id", None)
    document.pop("id", None)
    return Row(line, name, row_id(batch, name, line), json.dumps(document, ensure_ascii=False).encode())
