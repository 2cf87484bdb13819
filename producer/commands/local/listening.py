"""Where `serve` and `up` listen, and whether they can: checked before anything is started."""

from __future__ import annotations

import errno
import socket

from schemas.errors import DreamError


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets on an address, one for each family that its name has.

    Raises:
        DreamError: the address cannot be used; the message says what to do.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            number = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            one.bind((address[0], number, *address[2:]))
    except OSError as error:
        for one in sockets:
            one.close()
        reasons = {
            errno.EADDRINUSE: f"port {port} is taken; choose another with --port, or --port 0 for any free one",
            errno.EACCES: f"port {port} needs more rights than yours; choose one above 1023 with --port",
            errno.EADDRNOTAVAIL: f"{host} is not an address of this machine; give one that is with --host",
        }
        unknown = f"cannot listen on {host}: {error.strerror or error}; give another address with --host"
        raise DreamError(reasons.get(error.errno or 0, unknown)) from error
    return sockets


async def check_store(store: str) -> None:
    """Open the store once, so that what is wrong with it is one line. Raises `DreamError`."""
    from producer.client import AsyncClient

    async with AsyncClient(store):
        pass


def address_of(sockets: list[socket.socket], host: str) -> str:
    """The server's URL, with the port that it got."""
    port = sockets[0].getsockname()[1]
    name = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host
    return f"http://{name}" + ("" if port == 80 else f":{port}")
