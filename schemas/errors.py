"""The errors of this project, by who can correct them.

    DreamError
    ├── Rejected       the client: the manifest can never succeed as written; answer it once, do not retry
    │   └── TooLarge, TooManyPixels   (raised by schemas, the model registry and the decoders)
    ├── Unavailable    nobody: something that the manifest needs is missing at the moment; retry later
    │   └── StoreUnavailable, QueueUnavailable   (raised by the stores and queues)
    ├── Unsupported    the operator: this store or queue can never work; choose another one
    └── NotFound       no object has this key

A worker answers a `Rejected` and waits for an `Unavailable`. A `Rejected` has the facts that the `failed`
result shows to the request's author: what is wrong, where, and what to do.
"""

from __future__ import annotations


class DreamError(Exception):
    """Every error that this project raises on purpose."""


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
    """The manifest is valid, but something that it needs is missing at the moment: retry later."""


class StoreUnavailable(Unavailable):
    """The store did not answer in time, or cannot serve the call at the moment."""


class QueueUnavailable(Unavailable):
    """The queue did not answer in time, or cannot serve the call at the moment."""


class Unsupported(DreamError):
    """The store or queue lacks a guarantee or a right that is needed; the message says which."""


class NotFound(DreamError):
    """No object has this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no object {key!r}")
        self.key = key


class TooLarge(Rejected):
    """An object or a body is larger than its limit."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__("too_large", f"{what} is {size:,} bytes; the limit is {limit:,} bytes")
        self.size = size
        self.limit = limit


class TooManyPixels(Rejected):
    """An image to draw is larger than its model's bound."""

    def __init__(self, size: tuple[int, int], model: str, native: tuple[int, int], limit: int) -> None:
        """
        Args:
            size: (width, height) asked for, pixels.
            native: (width, height) that the model is made for, pixels.
            limit: pixels that this worker draws with this model.
        """
        made_for = f"model {model!r} is made for {native[0]} x {native[1]}"
        text = f"width x height is {size[0]} x {size[1]}; {made_for}, and at most {limit:,} pixels are drawn with it"
        super().__init__(
            "invalid_manifest", f"{text}; ask for a smaller picture or another model", field="width"
        )
        self.pixels = size[0] * size[1]
        self.native = native
