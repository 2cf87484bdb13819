"""Log lines: one line per event, with its facts as key=value or as a JSON object."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import PurePath
from typing import Literal

_AGAIN = 60.0  # seconds between two lines about one cause that stays
_CAUSES = 1000  # remembered
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9]+")
#: Libraries whose tracebacks are worth printing at the level debug.
LIBRARIES = ("asyncio", "botocore", "aiobotocore", "urllib3", "uvicorn", "watchfiles")


class Line(logging.Formatter):
    """`12:00:01 info  request ended id=cat status=succeeded`: an event and its facts.

    Args:
        own: loggers whose tracebacks are printed. Libraries log errors that are handled elsewhere, too, so of
            theirs there is only `error=ValueError at pipelines.py:71 in draw`.
    """

    def __init__(self, own: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._own = own

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{k}={_plain(v)}" for k, v in _facts(record).items())
        when, level = self.formatTime(record, "%H:%M:%S"), record.levelname.lower()
        text = f"{when} {level:<7} {_plain(record.getMessage(), 2000)}"
        line = f"{text} {facts}".rstrip()
        if not record.exc_info:
            return line
        if record.name.partition(".")[0] in self._own:
            return f"{line}\n{self.formatException(record.exc_info)}"
        error = record.exc_info[1]
        return f"{line} error={redacted(error)}" if error is not None else line


class JsonLine(logging.Formatter):
    """`{"time": "2026-01-31T12:00:01.234Z", "level": "info", "logger": "...", "event": "request ended", "id": "cat"}`.

    Numbers stay numbers; of an error there is what `Line` prints. A fact with the name of one of the first four
    fields has an underscore after it.
    """

    def __init__(self, own: tuple[str, ...] = ()) -> None:
        """
        Args:
            own: loggers whose tracebacks are printed, as for `Line`.
        """
        super().__init__()
        self._own = own

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _short(record.getMessage(), 2000),
        }
        fixed = set(line)
        line |= {f"{k}_" if k in fixed else k: _json_value(v) for k, v in _facts(record).items()}
        if record.exc_info and record.name.partition(".")[0] in self._own:
            line["traceback"] = self.formatException(record.exc_info)
        elif record.exc_info and record.exc_info[1] is not None:
            line["error"] = redacted(record.exc_info[1])
        return json.dumps(line)  # in ASCII, so that nothing in it can end the line or forge another


class Fold(logging.Filter):
    """Lets one warning a minute pass for each cause that stays, such as a store that became read-only.

    The next one that passes says how many did not. The cause is the fact `why` without its numbers and
    quoted names. Warnings about one message of a queue all pass: nothing else names it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._causes: dict[tuple[str, str], tuple[float, int]] = {}  # when last shown, how many since

    def filter(self, record: logging.LogRecord) -> bool:
        facts = record.__dict__
        if record.levelno != logging.WARNING or "why" not in facts or {"message_id", "code"} & facts.keys():
            return True
        cause = (record.getMessage(), _VARYING.sub("*", str(facts["why"])))
        now, (last, dropped) = self._clock(), self._causes.get(cause) or (float("-inf"), 0)
        if len(self._causes) >= _CAUSES:
            self._causes.clear()
        if now - last < _AGAIN:
            self._causes[cause] = (last, dropped + 1)
            return False
        self._causes[cause] = (now, 0)
        if dropped:
            record.not_shown = dropped
        return True


def _facts(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`."""
    usual = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime", "taskName"}
    return {name: value for name, value in record.__dict__.items() if name not in usual}


def _plain(value: object, longest: int = 300) -> str:
    """One line, printable and short, so that quoted text cannot forge a log entry."""
    return _short("".join(c if c.isprintable() else "?" for c in str(value)), longest)


def _short(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _json_value(value: object) -> object:
    """A value as JSON has it; what it does not have, and NaN, as text."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [_json_value(one) for one in value[:100]]
    return _short(str(value))


def log_lines(level: str, *names: str, style: Literal["text", "json"] = "text") -> None:
    """Log these loggers to stderr from a level on; of all others, warnings and errors only."""
    handler = logging.StreamHandler(sys.stderr)
    every = level.upper() == "DEBUG"
    own = names if not every else (*names, *LIBRARIES)
    handler.setFormatter(JsonLine(own) if style == "json" else Line(own))
    if not every:
        handler.addFilter(Fold())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in names:
        logging.getLogger(name).setLevel(level.upper())


def redacted(error: BaseException) -> str:
    """An error's kind and place, without its message, such as `ValueError at pipelines.py:71 in draw`.

    A message may repeat its input, such as a prompt, and logs are copied, shipped and kept. The message
    itself is logged at the level debug, which an operator has to ask for.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"{type(error).__name__} at an unknown place"
    return (
        f"{type(error).__name__} at {code_location(frames[-1].filename, frames[-1].lineno, frames[-1].name)}"
    )


def code_location(file: str, line: object, function: str) -> str:
    """`pipelines.py:71 in draw`, without the folder."""
    return f"{PurePath(file).name}:{line} in {function}"
