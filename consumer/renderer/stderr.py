"""What may be said redacted of an error: its kind and where it happened, not its words.

An error's text may repeat what it was given, such as somebody's prompt; and logs are copied, shipped
and kept. So a log at its usual level says `ValueError at pipelines.py:71 in draw`; the words themselves
are for a log at the level debug, which an operator asks for.
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
    """What a child said on its stderr, and what its parent saw of it, from its start to its end."""

    def __init__(self) -> None:
        self._heard: deque[str] = deque(maxlen=_KEPT)
        self._seen: list[str] = []

    def saw(self, text: str) -> None:
        """Note what the parent knows by itself; it must quote nothing."""
        self._seen.append(text)

    async def listen(self, stderr: asyncio.StreamReader) -> None:
        """Read on whatever comes, or the child would block; progress bars end no line."""
        rest = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await stderr.read(1 << 16):
                *lines, rest = re.split(rb"[\r\n]+", rest[-4096:] + chunk)
                for line in lines:
                    self._hear(line)
        self._hear(rest)

    def _hear(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()[-_LONGEST:]
        if text:
            self._heard.append(text)
            log.debug("renderer says", extra={"line": text})

    @property
    def whole(self) -> str:
        """Everything, word for word."""
        return "\n".join([*self._heard, *self._seen])

    @property
    def last(self) -> str:
        """The last line that the child said; if it said none, what was seen of it."""
        return (self._heard or self._seen or [""])[-1]

    @property
    def redacted(self) -> str:
        """What may stand in any log."""
        place = kind = ""
        for line in self._heard:
            if frame := _FRAME.match(line):
                place, kind = code_location(frame["file"], frame["line"], frame["function"]), ""
            elif place and not kind and (named := _KIND.match(line)):
                kind = named["kind"]
        return "; ".join(([f"{kind or 'an error'} at {place}"] if place else []) + self._seen)
