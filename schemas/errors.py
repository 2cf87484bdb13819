"""Who can put it right: the error tree.

    DreamError
    ├── Rejected       the manifest can never succeed as written: answer it once, do not retry
    │   └── (every code below; raised by schemas, the model registry and the decoders)
    ├── Unavailable    the manifest is fine, the world is not: leave it to a retry
    │   └── StoreUnavailable, QueueUnavailable   (raised by the stores and queues)
    ├── Unsupported    this store or queue can never do it: an operator has to choose another
    └── NotFound       no object has this key

A worker answers the first branch and waits for the second. A `Rejected` carries the facts that the
`failed` result shows to its author: what, where, and what to do.
"""

from __future__ import annotations


class DreamError(Exception):
    """Anything this project raises on purpose."""


class Rejected(DreamError):
    """The manifest can never succeed as written: answer it once, do not retry."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        line: int | None = None,
        column: int | None = None,
        unfinished: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code  # one of `schemas.result.FailureCode`
        self.message = message
        self.field = field  # dotted path in the manifest, such as "output.quality"
        self.line = line  # from 1
        self.column = column  # from 1
        self.unfinished = unfinished  # the text ends too early: its file may still be being written

    @staticmethod
    def of_field(field: str, text: str, code: str = "invalid_manifest") -> Rejected:
        """A refusal of one field; the message is the field's name and `text`: "size should be ..."."""
        return Rejected(code, f"{field} {text}", field=field)


class Unavailable(DreamError):
    """The manifest is fine, something that it needs is missing just now: leave it to a retry."""


class StoreUnavailable(Unavailable):
    """The store did not answer in time, or answered that it cannot just now."""


class QueueUnavailable(Unavailable):
    """The queue did not answer in time, or answered that it cannot just now."""


class Unsupported(DreamError):
    """The store cannot keep the promises that the protocol needs; the message says which."""


class NotFound(DreamError):
    """No object has this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no object {key!r}")
        self.key = key


class TooLarge(Rejected):
    """An object or a body is larger than the limit it was read with."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__("too_large", f"{what} is {size:,} bytes; the limit is {limit:,} bytes")
        self.size = size
        self.limit = limit
