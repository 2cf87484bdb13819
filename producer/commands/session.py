"""What every command shares: the store's option, and errors in one line with an exit code.

0  everything asked for was done
1  a request ended without success, or a stored picture is damaged
2  the command or a request is wrong as written; nothing was sent
3  the store or the queue cannot be reached or used
4  not over when the given time was
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from schemas.errors import DreamError, Rejected, StoreUnavailable, Unavailable, Unsupported

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

T = TypeVar("T")

OK, FAILED, WRONG, NO_STORE, TOO_LATE = range(5)
DEFAULT_STORE = "./dreamdrop-data"

StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="DREAMDROP_STORE",
        help="A directory, s3://bucket or s3://bucket/prefix (credentials as AWS tools know them).",
        show_default=True,
    ),
]
QueueUrl = Annotated[
    list[str] | None,
    typer.Option(
        "--queue",
        envvar="DREAMDROP_QUEUE",
        help="URL of an SQS queue; of two, the first is the express lane.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
Timeout = Annotated[
    float | None,
    typer.Option(min=0, help="Stop waiting after so many seconds (exit code 4); the work goes on."),
]


def run(work: Coroutine[Any, Any, T], *, as_json: bool) -> T:
    """Run a command's work; what goes wrong on purpose becomes one line and an exit code."""
    with spoken(as_json=as_json):
        return asyncio.run(work)


@contextlib.contextmanager
def spoken(*, as_json: bool) -> Iterator[None]:
    """Tell errors in one line (as JSON: an `error` object) and leave with the code that fits."""
    try:
        yield
    except DreamError as error:
        tell(error, as_json=as_json)
        raise typer.Exit(code_of(error)) from None


def code_of(error: DreamError) -> int:
    """The exit code that fits an error."""
    if isinstance(error, (Unavailable, Unsupported)):
        return NO_STORE
    if isinstance(error, TimeoutError):
        return TOO_LATE
    return FAILED if type(error).__name__ == "Damaged" else WRONG


def tell(error: DreamError, *, as_json: bool) -> None:
    if as_json:
        facts: dict[str, object] = {"code": type(error).__name__, "message": str(error)}
        if isinstance(error, Rejected):
            facts |= {"code": error.code, "field": error.field, "line": error.line, "column": error.column}
        print_json({"error": facts})
    else:
        say(f"dreamdrop: {error}")


def say(text: str) -> None:
    """A line for people, beside the output."""
    typer.echo(text, err=True)


def print_json(document: object) -> None:
    """The command's one answer."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def existing(store: str) -> str:
    """A store that is only looked at must be there: a mistyped directory is not made.

    Raises:
        StoreUnavailable: no such directory.
    """
    if "://" not in store and not Path(store).expanduser().is_dir():
        raise StoreUnavailable(
            f"there is no store {store!r}: give its directory or bucket with --store or DREAMDROP_STORE; "
            "`dreamdrop worker` and `dreamdrop submit` make a directory when they start"
        )
    return store
