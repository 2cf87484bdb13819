"""The end of a child's stderr, kept for error reports, and a redacted form of it for the log.

An error's text may repeat what it was given, such as somebody's prompt; and logs are copied, shipped
and kept. So a log at its usual level says `ValueError at pipelines.py:71 in draw`; the text itself
is logged at the level debug, which an operator asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque

from infra.logs import code_location

log = logging.getLogger(__name__)

_KEPT = 20  # lines
_LONGEST = 500  # characters of a line
_FRAME = re.compile(r'^File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>[\w<>]+)$')
_KIND = re.compile(
    r"^(?:\w+\.)*(?P<kind>[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Unavailable|Rejected))(?=:|$)"
)


class StderrTail:
    """The last lines of one child's stderr, and the parent's own notes about that child."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Add what the parent itself knows. It must quote nothing that came from a request."""
        self._notes.append(text)

    async def listen(self, stderr: asyncio.StreamReader) -> None:
        """Read until the end: a full pipe would block the child. Progress bars end lines with a carriage return."""
        rest = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await stderr.read(1 << 16):
                *lines, rest = re.split(rb"[\r\n]+", rest[-4096:] + chunk)
                for line in lines:
                    self._add(line)
        self._add(rest)

    def _add(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()[-_LONGEST:]
        if text:
            self._lines.append(text)
            log.debug("renderer stderr", extra={"line": text})

    @property
    def whole(self) -> str:
        """Everything, word for word."""
        return "\n".join([*self._lines, *self._notes])

    @property
    def last(self) -> str:
        """The last line; if there is none, the last note of the parent."""
        return (self._lines or self._notes or [""])[-1]

    @property
    def redacted(self) -> str:
        """The kind and place of the last error, and the notes: safe for any log."""
        place = kind = ""
        for line in self._lines:
            if frame := _FRAME.match(line):
                place, kind = code_location(frame["file"], frame["line"], frame["function"]), ""
            elif place and not kind and (match := _KIND.match(line)):
                kind = match["kind"]
        return "; ".join(([f"{kind or 'an error'} at {place}"] if place else []) + self._notes)
