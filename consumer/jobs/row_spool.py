"""What the summary of a batch needs of each ended row, on the disk: rows end in any order, and there may be 50,000."""

from __future__ import annotations

import contextlib
import json
import tempfile
from typing import TYPE_CHECKING, Any, Self

from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_MEMORY = 1 << 20  # bytes; a batch with a shorter spool needs no file


class RowSpool:
    """JSON documents by line number, in a temporary file that has no name.

    Every method raises `StoreUnavailable` when the disk is full.
    """

    def __init__(self) -> None:
        # It is closed by `close`; a file without a name is gone with its process in any case.
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._places: dict[int, int] = {}  # line to the document's first byte

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, line: int) -> bool:
        return line in self._places

    def add(self, line: int, document: dict[str, Any]) -> None:
        with telling_of_the_disk():
            self._places[line] = self._file.seek(0, 2)
            self._file.write(json.dumps(document).encode() + b"\n")

    def __getitem__(self, line: int) -> dict[str, Any]:
        with telling_of_the_disk():
            self._file.seek(self._places[line])
            document: dict[str, Any] = json.loads(self._file.readline())
        return document


@contextlib.contextmanager
def telling_of_the_disk() -> Iterator[None]:
    """Turn an error at a temporary file into `StoreUnavailable`, so that the batch waits for its operator."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"the rows of a batch cannot be kept in the temporary folder {tempfile.gettempdir()} "
            f"({error.strerror or error}): free some space there, or set TMPDIR"
        ) from error
