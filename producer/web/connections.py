"""HTTP/1.1 for callers that close their half of the connection after the request and wait for the answer.

To TCP such a caller looks like one that has hung up: both send FIN. So it is asked, by the interim response 100,
which every client skips (RFC 9110, section 15.2). A caller that has hung up answers the first with a reset, and the
next write fails; then its request is canceled, as before.
"""

from __future__ import annotations

from uvicorn.protocols.http.h11_impl import H11Protocol

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
FIRST, NEXT = 0.3, 30.0  # seconds after which a caller is asked again


class HalfCloseProtocol(H11Protocol):
    """uvicorn's protocol, which answers callers that closed their half."""

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection open for an answer that was not begun; asyncio closes it for None."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_started:
            return None
        if cycle.scope["http_version"] != "1.1":  # may not be sent interim responses, so it cannot be asked
            return None
        cycle.keep_alive = False
        self._ask(FIRST)
        return True

    def _ask(self, pause: float) -> None:
        if not (self.transport.is_closing() or self.cycle.response_started):
            self.transport.write(INTERIM)
            self.loop.call_later(pause, self._ask, NEXT)
