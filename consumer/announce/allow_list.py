"""The hosts that a worker may send events to: an operator's allow-list, and addresses that no list can allow.

An entry is `host` (port 443) or `host:port`. Only an entry with a port allows an address inside a
private network, and only such an entry allows plain http, to this machine itself. The link-local
addresses, where clouds offer a machine's credentials, are never allowed.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from yarl import URL

from schemas.errors import Unsupported

Address = IPv4Address | IPv6Address

#: An IPv4 address in the last 32 bits: NAT64, NAT64 inside one network, compatible, translated.
_WITH_IPV4 = [IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")]
_NAT64 = _WITH_IPV4[0]
_ISATAP = (0x00005EFE, 0x02005EFE)  # the third word of an address that ends in an IPv4 address
#: All that is given out in the internet so far, without what documents use. `is_global` says yes to far more.
_GLOBAL, _DOCUMENTATION = IPv6Network("2000::/3"), IPv6Network("3fff::/20")
#: Metadata services of clouds outside the link-local range.
_METADATA = [
    *map(ip_network, ("fd00:ec2::/32", "fd20:ce::254/128", "100.100.100.200/32")),
    *map(ip_network, ("168.63.129.16/32", "192.0.0.192/32")),
]


class Refused(OSError):
    """A host name leads to an address that must not be connected to."""


class Hosts:
    """The allow-list."""

    def __init__(self, text: str = "") -> None:
        """Read entries that are separated by commas or spaces. Raises `Unsupported`."""
        self._entries: dict[tuple[str, int], bool] = {}  # by (host, port): whether the port was written
        for entry in text.replace(",", " ").split():
            host, port, with_port = _parsed_entry(entry)
            self._entries[host, port] = with_port or self._entries.get((host, port), False)

    def checked(self, text: str) -> URL:
        """A webhook's URL, if it may be used.

        Use the returned URL as it is: a second parser could read the text in another way.

        Raises:
            Unsupported: it may not be used; the message leaves out the path, which may be a secret.
        """
        url = _parsed(text)
        host, port = _name(url), url.port or 0
        where = f"{url.scheme}://{host}:{port}"
        if (host, port) not in self._entries:
            raise Unsupported(
                f"the webhook at {where} is not on the allow-list: to allow it, add "
                f"{host if port == 443 else f'{host}:{port}'} to DREAMDROP_WEBHOOK_HOSTS"
            )
        literal = _literal(host)
        if url.scheme == "http" and not (host == "localhost" or (literal and _is_loopback(literal))):
            raise Unsupported(
                f"the webhook at {where} is not https; plain http is allowed to this machine only"
            )
        if literal is not None:
            try:
                self.check_address(url, host)
            except Refused as error:
                raise Unsupported(str(error)) from error
        return url

    def check_address(self, url: URL, address: str) -> None:
        """Raises `Refused` when the webhook's host must not be reached at this address."""
        host, port = _name(url), url.port or 0
        ip = ip_address(address.partition("%")[0])
        inside = [ip, *_contained(ip)]  # it may be reached by any of them
        if any(_is_never_allowed(one) for one in inside):
            raise Refused(f"the webhook's host {host} leads to a link-local or reserved address")
        if url.scheme == "http" and not _is_loopback(ip):
            raise Refused(f"the webhook's host {host} is not this machine; use https")
        private = not all(_is_public(one) for one in inside)
        if private and not self._entries.get((host, port), False):
            raise Refused(
                f"the webhook's host {host} leads to a private address; to allow it, "
                f"write it with its port in DREAMDROP_WEBHOOK_HOSTS: {host}:{port}"
            )


def _parsed(text: str) -> URL:
    """A URL without anything that two parsers could read differently."""
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise Unsupported(
            "a webhook's address must not contain blanks, backslashes or characters outside ASCII"
        )
    try:
        url = URL(text)
        port, host = url.port, url.host
    except ValueError as error:
        raise Unsupported("a webhook's address cannot be read as a URL") from error
    if url.scheme not in ("https", "http") or not host or not port:
        raise Unsupported("a webhook's address must begin with https:// and name a host")
    if url.user is not None or url.password is not None or url.fragment:
        raise Unsupported(
            f"the webhook at {host} has a user, a password or a fragment in its address; leave them out"
        )
    return url


def _parsed_entry(entry: str) -> tuple[str, int, bool]:
    """(host, port, whether the port was written)."""
    try:
        url = URL(f"https://{entry}")
        host, port, with_port = _name(url), url.port, url.explicit_port is not None
        plain = url.raw_path == "/" and not (url.query_string or url.fragment or url.user)
    except ValueError:
        host, port, with_port, plain = "", 0, False, False
    if not host or not plain or not port or "*" in entry or "\\" in entry:
        raise Unsupported(
            f"{entry[:80]!r} in DREAMDROP_WEBHOOK_HOSTS is not a host: write hooks.example.com or 10.0.0.5:8443"
        )
    return host, port, with_port


def _name(url: URL) -> str:
    return (url.raw_host or "").lower().rstrip(".")


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _contained(address: Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 address contains, in every way that a network may read one."""
    if isinstance(address, IPv4Address):
        return []
    last, word = IPv4Address(int(address) & 0xFFFFFFFF), int(address) >> 32 & 0xFFFFFFFF
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    small = int(address) < 2**16  # :: and ::1 are no IPv4 addresses
    if word in _ISATAP or (any(address in net for net in _WITH_IPV4) and not small):
        found.append(last)
    return [one for one in found if one is not None]


def _is_public(address: Address) -> bool:
    """Whether it may be an address of the internet, or stands for one that is checked beside it."""
    if isinstance(address, IPv4Address):
        return address.is_global
    if address.ipv4_mapped is not None or address.sixtofour is not None or address in _NAT64:
        return True
    return address.is_global and address in _GLOBAL and address not in _DOCUMENTATION


def _is_loopback(address: Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _is_never_allowed(address: Address) -> bool:
    reserved = address.is_link_local or address.is_multicast or address.is_unspecified
    return reserved or _is_metadata(address)


def _is_metadata(address: Address) -> bool:
    return any(address in network for network in _METADATA)
