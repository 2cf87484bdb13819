"""AWS credentials that may change while a process runs, and for how long every call has been denied.

The SDK reads a shared file, a mounted secret or an environment once and keeps what it found. Here what was
denied is read again before the next call, so that renewed credentials are used without a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiobotocore.credentials import AioCredentials

if TYPE_CHECKING:
    from aiobotocore.session import AioSession

BETWEEN_READS = 2.0  # seconds; an object that stays denied must not cost a read for every call
#: Codes that the services send with other statuses than 401 and 403.
_DENIED = (
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)


class Access:
    """Whether the calls of a session are allowed, by their latest answers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.doubtful = False  # whether a call was denied since the credentials were read
        self._clock = clock
        self._denied_since: float | None = None  # the first denied call after the last that was allowed

    @property
    def denied_for(self) -> float:
        """Seconds for which every call that got an answer was denied; 0 when the last one was not."""
        return 0.0 if self._denied_since is None else self._clock() - self._denied_since

    def deny(self) -> None:
        self.doubtful = True
        if self._denied_since is None:
            self._denied_since = self._clock()

    def on_answer(self, parsed: dict[str, Any], **_: Any) -> None:
        """Note an answer of the service; called by the SDK."""
        status = int(parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(parsed.get("Error", {}).get("Code", "")).rpartition("#")[2]
        if status in (401, 403) or code in _DENIED:
            self.deny()
        elif 0 < status < 500:
            self._denied_since = None


class CurrentCredentials(AioCredentials):  # type: ignore[misc]
    """The credentials that are there now: read again after a denied call."""

    def __init__(
        self,
        access: Access,
        read: Callable[[], Awaitable[Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            read: finds credentials by the SDK's rules; None when there are none.
        """
        super().__init__("", "", method="current")
        self._access = access
        self._read = read
        self._clock = clock
        self._lock = asyncio.Lock()
        self._found: Any = None
        self._next_read = 0.0  # by our clock

    async def load_credentials(self) -> CurrentCredentials:
        """Return itself: the SDK asks its credential provider once, and keeps the answer."""
        return self

    async def get_frozen_credentials(self) -> Any:
        """What the next request is signed with; None when there are no credentials."""
        try:
            async with self._lock:
                due = self._found is None or self._access.doubtful
                if due and self._clock() >= self._next_read:
                    self._next_read = self._clock() + BETWEEN_READS
                    # A file that is just being replaced may be empty: then the old ones are kept.
                    self._found = await self._read() or self._found
                    self._access.doubtful = False
            frozen = await self._found.get_frozen_credentials() if self._found is not None else None
        except Exception:
            self._access.deny()
            raise
        if frozen is None:
            self._access.deny()
        return frozen

    async def get_account_id(self) -> Any:
        return None if self._found is None else await self._found.get_account_id()


def follow(session: AioSession, access: Access, read: Callable[[], Awaitable[Any]]) -> None:
    """Let a session's clients use current credentials, and note in `access` what they are answered."""
    session.register_component("credential_provider", CurrentCredentials(access, read))
    session.register("after-call", access.on_answer, unique_id="dreamdrop-access")
