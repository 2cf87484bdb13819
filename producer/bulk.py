"""Converts tables (CSV) and lists of prompts (text) into a batch: JSON Lines, one request a line.

The header of a CSV file names manifest fields. A cell becomes a number where the field is one; an empty
cell leaves the field out. In a text file every line is a prompt.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas import manifest_parts
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import DEFAULT_LIMITS, validate_manifest

PICTURES = {place for place in manifest_parts.PICTURES if "*" not in place}
INTEGERS = {
    *("steps", "number_of_images", "seed", "width", "height", "clip_skip"),
    *("output.quality", "upscale.steps"),
}
NUMBERS = {
    *("cfg_scale", "strength", "ip_adapter.scale"),
    *("upscale.scale", "upscale.strength", "refiner.at"),
}
BOOLEANS = {"strict"}
#: A cell of JSON.
DOCUMENTS = {"loras", "output", "metadata", "controlnet", "ip_adapter", "upscale", "refiner"}
NAMES = {"custom_id", "id"}
_YES, _NO = {"true", "yes", "1"}, {"false", "no", "0"}


def from_text(body: bytes) -> bytes:
    """A batch from a text with one prompt a line. Lines that begin with # are comments.

    Comments become blank lines, so that line numbers stay those of the text.

    Raises:
        Rejected: there is no prompt, or the text is not UTF-8.
    """
    lines = [line.strip() for line in _decoded(body).splitlines()]
    if not any(line and not line.startswith("#") for line in lines):
        raise Rejected("invalid_manifest", "the file holds no prompts; write one prompt per line")
    return _joined(None if not line or line.startswith("#") else {"prompt": line} for line in lines)


def from_csv(body: bytes, *, folder: Path = Path(), limits: Limits = DEFAULT_LIMITS) -> bytes:
    """A batch from a table with one request a row. Every row is checked.

    Args:
        folder: where the paths of pictures start, also inside a cell of JSON; files are embedded.

    Raises:
        Rejected: with the row's line in the file.
    """
    text = _decoded(body)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header)
        rows: list[dict[str, Any] | None] = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows += [None] * (reader.line_num - len(rows) - 1)  # so that line numbers stay the table's
                rows.append(_row(header, cells, reader.line_num, folder, limits))
    except csv.Error as error:
        raise _wrong(reader.line_num, f"this is not CSV: {error}") from error
    if not rows:
        raise Rejected("invalid_manifest", "the table has a header but no rows")
    return _joined(rows)


def _joined(documents: Any) -> bytes:
    lines = ("" if d is None else json.dumps(d, ensure_ascii=False) for d in documents)
    return "\n".join(lines).encode() + b"\n"


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise _wrong(line, f"byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _delimiter(text: str) -> str:
    """Comma, semicolon or tab: whichever the header has most of (spreadsheets differ by country)."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def _check_header(header: list[str]) -> None:
    if "prompt" not in header:
        raise _wrong(
            1, "the first line must name the columns, and one of them must be `prompt`", field="prompt"
        )
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise _wrong(1, f"the column {min(repeated)!r} appears twice; keep one")
    if "" in header:
        raise _wrong(1, f"column {header.index('') + 1} has no name; name it or remove it")


def _row(header: list[str], cells: list[str], line: int, folder: Path, limits: Limits) -> dict[str, Any]:
    if len(cells) > len(header):
        raise _wrong(
            line,
            f"has {len(cells)} cells for {len(header)} columns; put quotes around text that contains commas",
        )
    document: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=False):
        if cell.strip():
            value = _value(name, cell, line, folder)
            _place(document, name, _with_files(name, value, line, folder))
    unnamed: Mapping[str, Any] = {k: v for k, v in document.items() if k not in NAMES}
    try:
        validate_manifest(unnamed, limits)
    except Rejected as fault:
        raise _wrong(line, fault.message, field=fault.field, code=fault.code) from fault
    return document


def _place(document: dict[str, Any], name: str, value: Any) -> None:
    """Set a field. A name such as `output.format` or `metadata.anything` sets a field of an object."""
    outer, dot, inner = name.partition(".")
    if dot:
        document.setdefault(outer, {})[inner] = value
    else:
        document[name] = value


def _value(name: str, cell: str, line: int, folder: Path) -> Any:
    text = cell.strip()
    kinds: list[tuple[set[str], Callable[[str], Any], str]] = [
        (INTEGERS, int, "a whole number"),
        (NUMBERS, float, "a number"),
        (BOOLEANS, _boolean, "true or false"),
        (DOCUMENTS, json.loads, "JSON"),
    ]
    for names, read, expected in kinds:
        if name in names:
            try:
                return read(text)
            except ValueError as error:
                raise _wrong(line, f"{name} is {text[:60]!r}; it should be {expected}", field=name) from error
    if name in PICTURES:
        return _picture(name, text, line, folder)
    return cell if name == "prompt" else text


def _with_files(path: str, value: Any, line: int, folder: Path) -> Any:
    """A cell of JSON with the pictures that it names as files in base64; `path` is its dotted name."""
    if isinstance(value, list):
        return [_with_files(f"{path}.{place}", one, line, folder) for place, one in enumerate(value)]
    if isinstance(value, dict):
        return {name: _with_files(f"{path}.{name}", one, line, folder) for name, one in value.items()}
    is_inner = isinstance(value, str) and path not in PICTURES and manifest_parts.is_picture(path)
    return _picture(path, value, line, folder) if is_inner else value


def _boolean(text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise ValueError(text)
    return text.lower() in _YES


def _picture(name: str, text: str, line: int, folder: Path) -> str:
    """The named file in base64. Text that names no file stays as it is: a key, or base64."""
    if len(text) > 1000:
        return text
    path = folder / Path(text).expanduser()
    if path.is_file():
        return embedded(path)
    if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"} and "/" not in text:
        raise _wrong(line, f"{name} names {text!r}, but there is no such file beside the table", field=name)
    return text


def embedded(path: Path) -> str:
    """A picture file as it stands in a manifest. Raises `Rejected` when it cannot be read."""
    try:
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise Rejected("invalid_image", f"cannot read the picture {str(path)!r}: {error.strerror}") from error


def pictures(images: Sequence[Path], mask: Path | None) -> dict[str, str | list[str]]:
    """Picture files as fields of a manifest. Raises `Rejected`."""
    found: dict[str, str | list[str]] = {"image": [embedded(path) for path in images]} if images else {}
    if len(images) == 1:  # as text, so that workers of any version read it
        found["image"] = embedded(images[0])
    return found if mask is None else {**found, "mask_image": embedded(mask)}


def _wrong(line: int, text: str, *, field: str | None = None, code: str = "invalid_manifest") -> Rejected:
    return Rejected(code, f"line {line}: {text}", field=field, line=line)
