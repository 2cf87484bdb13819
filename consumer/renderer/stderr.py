"""The end of a child's stderr: why it did not start, and a redacted form for the log.

An error's text may repeat what it was given, such as somebody's prompt; and logs are copied, shipped
and kept. So a log at its usual level says `ValueError at pipelines.py:71 in draw`; the text itself
is logged at the level debug, which an operator asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
from collections import deque
from collections.abc import Iterable

from infra.logs import code_location

log = logging.getLogger(__name__)

_KEPT = 20  # lines
_LONGEST = 500  # characters of a line
_FRAME = re.compile(r'^File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>[\w<>]+)$')
_KIND = re.compile(
    r"^(?:\w+\.)*(?P<kind>[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Unavailable|Rejected))(?=:|$)"
)
_ERROR = re.compile(
    r"^(?:\w+\.)*(?P<line>[A-Z]\w+(?:: .*)?)$"
)  # the first line of an error, below its traceback
_ABORT = "Fatal Python error"  # what follows is a dump of threads, and says nothing about the cause
_MISSING = re.compile(r"^ModuleNotFoundError: No module named '(?P<name>\w+)")
_REMEDIES = {
    "No usable temporary directory": "set TMPDIR to a folder that can be written to",
    "cannot open shared object file": "install the package or the GPU driver that has it, or use --devices cpu",
    "No space left on device": "make room, or set TMPDIR and HF_HOME to folders on another disk",
}


def last_words(lines: Iterable[str], status: int | None) -> str:
    """Why a child ended that had no request, in one line, with a remedy where one is known.

    Args:
        lines: the end of its stderr.
        status: its exit status; negative for a signal.
    """
    said = [line.strip() for line in lines if line.strip()]
    abort = next((i for i, line in enumerate(said) if line.startswith(_ABORT)), len(said))
    before, after = said[:abort], said[abort:]
    trace = next((i for i, line in enumerate(before) if line.startswith("Traceback")), len(before))
    errors = [match["line"] for line in before[trace:] if (match := _ERROR.match(line))]
    words = (errors[-1:] or after[:1] or before[-1:] or [_how(status)])[0]
    if missing := _MISSING.match(words):
        return f"{missing['name']} is not installed; a worker needs: pip install 'dreamdrop[consumer]'"
    remedy = next((remedy for text, remedy in _REMEDIES.items() if text in words), "")
    return f"{words}; {remedy}" if remedy else words


def _how(status: int | None) -> str:
    if status == -signal.SIGKILL:
        return "it was killed before it said anything; most often the machine has too little memory"
    if status is not None and status < 0:
        return f"it was ended by {signal.Signals(-status).name} and said nothing"
    return f"it ended with exit status {status} and said nothing" if status is not None else ""


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

    def last_words(self, status: int | None) -> str:
        """Why the child did not start, see `last_words`; before a child's silence go the parent's own notes."""
        notes = [note for note in self._notes if not note.startswith("exit status")]
        return "; ".join(notes) if notes and not self._lines else last_words(self._lines, status)

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
