"""Host and origin checks, and the security headers of every response."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Scripts and styles only from this server; `data:` and `blob:` for previews and for pictures that users drop.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


class Guard:
    """ASGI middleware against CSRF and DNS rebinding.

    A page of another site must not use a visitor's address or password to draw here (CSRF), and must not reach
    this server by a host name of its own that resolves to this machine (DNS rebinding).

    Args:
        hosts: host names that the server answers to; "*" for any.
        origins: other sites whose pages may call the server.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], origins: Collection[str] = ()) -> None:
        self.app, self.hosts, self.origins = app, {host.lower() for host in hosts}, set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if headers.get("access-control-allow-origin"):
                    headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if "*" not in self.hosts and _name(host) not in self.hosts:
            text = f"this server does not serve the host name {host[:100]!r}: allow it with --allow-host"
            return JSONResponse({"detail": text}, 421)
        origin = headers.get("origin")
        if method in SAFE_METHODS or origin is None or origin in self.origins:
            return None
        if headers.get("sec-fetch-site") in ("same-origin", "none") or origin.partition("://")[2] == host:
            return None
        text = f"pages of {origin[:100]!r} may not call this server: allow that site with --allow-origin"
        return JSONResponse({"detail": text}, 403)


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
