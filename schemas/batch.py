"""Many requests in one file: a JSON document a line.

A row is a manifest, with `custom_id` or `id` as its name within the batch. Blank lines are
skipped; a name given twice is refused with both line numbers, because answers are matched by it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.errors import Rejected, TooLarge
from schemas.layout import CHOSEN_ID, row_id
from schemas.limits import Limits
from schemas.strictjson import load_object


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a batch, ready to be dropped as a request of its own."""

    line: int  # from 1
    custom_id: str | None
    id: str  # below the batch's
    body: bytes  # the manifest without the row's name; a line that is not an object stays as it is


def numbered(body: bytes) -> Iterator[tuple[int, bytes]]:
    """A file's lines that are not blank, with their numbers from 1; never all at once.

    A file of 200 MB may have as many blank lines, and a list of them would be many times as large.
    """
    for line, raw in enumerate(io.BytesIO(body.removeprefix(b"\xef\xbb\xbf")), start=1):
        if stripped := raw.strip():
            yield line, stripped


def split_rows(batch: str, body: bytes, limits: Limits) -> list[Row]:
    """Cut a .jsonl file into its rows, in order.

    A row that is not valid JSON keeps its bytes and its line-number name: it will fail alone.

    Raises:
        Rejected: the file is too large, has too many rows or none, or repeats a name.
    """
    if len(body) > limits.max_batch_bytes:
        raise TooLarge("the batch", len(body), limits.max_batch_bytes)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for line, raw in numbered(body):
        if len(rows) == limits.max_batch_rows:
            raise Rejected(
                "too_large", f"the batch has more than {limits.max_batch_rows:,} rows; cut it in parts"
            )
        row = _row(batch, line, raw)
        if row.id in seen:
            name = row.custom_id or row.id.rsplit("/", 1)[-1]
            raise Rejected(
                "invalid_manifest",
                f"the name {name!r} is given on lines {seen[row.id]} and {line}; each row needs its own custom_id",
                field="custom_id",
                line=line,
            )
        seen[row.id] = line
        rows.append(row)
    if not rows:
        raise Rejected(
            "invalid_json", "the batch has no rows; write one JSON object a line", line=1, column=1
        )
    return rows


def _row(batch: str, line: int, raw: bytes) -> Row:
    try:
        document = load_object(raw, what="a row")
    except Rejected:
        return Row(line, None, row_id(batch, None, line), raw)
    names = [document[key] for key in ("custom_id", "id") if document.get(key) is not None]
    name = names[0] if names else None
    if name is not None and not (isinstance(name, str) and CHOSEN_ID.fullmatch(name)):
        raise Rejected(
            "invalid_manifest",
            f"line {line}: the name {str(name)[:60]!r} may hold letters, digits, '.', '_' and '-' only, begins with a "
            "letter or digit, and has at most 100 characters",
            field="custom_id",
            line=line,
        )
    if not names:
        return Row(line, None, row_id(batch, None, line), raw)
    document.pop("custom_id", None)
    document.pop("id", None)
    return Row(line, name, row_id(batch, name, line), json.dumps(document, ensure_ascii=False).encode())
