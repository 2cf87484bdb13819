"""What all commands share: common options, output, and errors as one line and an exit code.

0  success
1  a request did not succeed, or a stored picture is damaged
2  the command or a request is wrong as written; nothing was sent
3  the store or the queue cannot be reached or used
4  not finished in the given time
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from infra.options import DEFAULT_STORE as DEFAULT_STORE
from infra.options import StoreUrl as StoreUrl
from schemas.errors import DreamError, Rejected, StoreUnavailable, Unavailable, Unsupported

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

T = TypeVar("T")

OK, FAILED, WRONG, NO_STORE, TOO_LATE = range(5)

QueueUrl = Annotated[
    list[str] | None,
    typer.Option(
        "--queue",
        metavar="URL",
        envvar="DREAMDROP_QUEUE",
        help="URL of an SQS queue; of two, the first is the express lane.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", min=0, help="Seconds to wait; then exit with code 4, while the work goes on."
    ),
]


def run(work: Coroutine[Any, Any, T], *, as_json: bool) -> T:
    """Run a command's work; an error of this project becomes one line and an exit code."""
    with reporting_errors(as_json=as_json):
        return asyncio.run(work)


@contextlib.contextmanager
def reporting_errors(*, as_json: bool) -> Iterator[None]:
    """Print an error as one line (as JSON: an `error` object) and exit with its code."""
    try:
        yield
    except DreamError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(code_of(error)) from None
    except BrokenPipeError:
        raise  # whoever read our output has gone; `main` ends without a word
    except OSError as error:
        print_error(DreamError(sentence_of(error)), as_json=as_json)
        raise typer.Exit(WRONG) from None


def sentence_of(error: OSError) -> str:
    """An error of the operating system as a sentence with a remedy."""
    remedies = {
        errno.EACCES: "choose another place, or change its permissions",
        errno.EPERM: "choose another place, or change its permissions",
        errno.EROFS: "choose a place that can be written to",
        errno.ENOSPC: "the disk is full: make room, or choose another place",
        errno.EDQUOT: "your quota is used up: make room, or choose another place",
        errno.ENOTDIR: "a file is where a folder should be: choose another name",
        errno.EEXIST: "a file is where a folder should be: choose another name",
        errno.EISDIR: "it is a folder: give a file",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EMFILE: "too many files are open: raise the limit with `ulimit -n`",
    }
    where = f"cannot use {str(error.filename)!r}: " if error.filename is not None else ""
    why = error.strerror or str(error) or type(error).__name__
    return (
        f"{where}{why}; {remedies.get(error.errno or 0, 'check the path, and the disk or network behind it')}"
    )


def require_folder(out: Path) -> None:
    """Make the folder that pictures will be saved in, before anything is sent.

    Raises:
        OSError: it cannot be made, or not be written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(out)) from error


def code_of(error: DreamError) -> int:
    """The exit code for an error."""
    if isinstance(error, (Unavailable, Unsupported)):
        return NO_STORE
    if isinstance(error, TimeoutError):
        return TOO_LATE
    return FAILED if type(error).__name__ == "Damaged" else WRONG


def print_error(error: DreamError, *, as_json: bool) -> None:
    """One line on standard error, or with `as_json` the command's answer."""
    if as_json:
        facts: dict[str, object] = {"code": type(error).__name__, "message": str(error)}
        if isinstance(error, Rejected):
            facts |= {"code": error.code, "field": error.field, "line": error.line, "column": error.column}
        print_json({"error": facts})
    else:
        say(f"dreamdrop: {error}")


def say(text: str) -> None:
    """Print a line for people, on standard error."""
    typer.echo(text, err=True)


def print_json(document: object) -> None:
    """Print the command's answer for programs."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def require_store(store: str) -> None:
    """A command that only reads must not make a directory whose name is mistyped.

    Raises:
        StoreUnavailable: there is no such directory.
        Unsupported: it looks like a URL, and is none.
    """
    if "://" not in store and not Path(store).expanduser().is_dir():
        from infra.stores.open import open_store

        open_store(store)  # raises where it is a mistyped URL
        raise StoreUnavailable(
            f"there is no store {store!r}: give its directory or bucket with --store or DREAMDROP_STORE; "
            "`dreamdrop worker` and `dreamdrop submit` make a directory when they start"
        )
