"""API keys: who is calling, what they may see, how much they may ask for at once.

A key is 256 random bits, so its plain SHA-256 is kept and nothing slower is needed. The settings hold a
line for each key, made by `dreamdrop keys new`:

    alice=<SHA-256 in hex>[;prefix=team-a][;room=20]

A caller with a prefix has names to itself: what it calls `cat` is `team-a.cat` in the store, and it sees nothing else;
of the pictures that a request may name, it may name those under `uploads/team-a/`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import DreamError, Rejected
from schemas.layout import UPLOADS

_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # no dot: that is where it ends
PICTURES = ("image", "mask_image")
_MARK = "dd_"  # so that scanners for leaked secrets can find one


class BadKey(DreamError):
    """A line of the settings is no key."""


@dataclass(frozen=True, slots=True)
class Key:
    """One caller, as the settings name it."""

    name: str
    hash: str = ""  # SHA-256 of the key, in hex
    prefix: str = ""  # its ids begin with this and a dot; "" for all
    room: int = 0  # unfinished synchronous requests at once; 0 for as many as the lane takes

    def id(self, id: str) -> str:
        """What the caller calls `id`, in the store; its full name is right, too."""
        return id if self.sees(id) else self.begin + id

    @property
    def begin(self) -> str:
        """What all its ids begin with."""
        return f"{self.prefix}." if self.prefix else ""

    def sees(self, id: str) -> bool:
        return id.startswith(self.begin)

    def make_sure_it_may_read(self, document: Mapping[str, Any]) -> None:
        """Look at the pictures that a request names instead of holding them. Raises `Rejected`."""
        if not self.prefix:
            return
        own = f"{UPLOADS}{self.prefix}/"
        for field in PICTURES:
            value = document.get(field)
            if not isinstance(value, str) or value.startswith("data:"):
                continue
            if "." not in value and "://" not in value:  # base64, which has neither
                continue
            if not value.startswith(own) or ".." in value:
                text = f"{field} names a picture; your key may name those under {own}, or send it in base64"
                raise Rejected("invalid_manifest", text, field=field)


NOBODY = Key("anonymous")  # the caller where no keys are asked for


def new_key(name: str, *, prefix: str = "", room: int = 0) -> tuple[str, str]:
    """A fresh key, and its line for the settings. Raises `BadKey`."""
    if not _NAME.fullmatch(name):
        raise BadKey(f"the name {name[:64]!r} may hold letters, digits, '.', '_' and '-' only, at most 64")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise BadKey(
            f"the prefix {prefix[:40]!r} may hold letters, digits, '_' and '-' only, begins with a letter or digit, "
            "and has at most 40 characters"
        )
    key = _MARK + secrets.token_urlsafe(32)
    line = f"{name}={hashlib.sha256(key.encode()).hexdigest()}"
    line += f";prefix={prefix}" if prefix else ""
    line += f";room={room}" if room else ""
    return key, line


def read_keys(text: str) -> tuple[Key, ...]:
    """The keys of a setting, separated by white space or commas. Raises `BadKey`; never repeats the text."""
    keys = tuple(_read(line) for line in re.split(r"[\s,]+", text) if line)
    names = [key.name for key in keys]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadKey(f"DREAMDROP_API_KEYS names {', '.join(sorted(twice))} twice: give each key its own name")
    return keys


def _read(line: str) -> Key:
    head, *options = line.split(";")
    name, _, digest = head.partition("=")
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(digest):
        raise BadKey(
            "DREAMDROP_API_KEYS holds something that is not <name>=<SHA-256 in hex>: "
            "make a key with `dreamdrop keys new NAME` and put the line that it prints there"
        )
    facts = dict(option.partition("=")[::2] for option in options)
    prefix, room = facts.pop("prefix", ""), facts.pop("room", "0")
    if facts or (prefix and not _PREFIX.fullmatch(prefix)) or not room.isdecimal():
        raise BadKey(
            f"DREAMDROP_API_KEYS: {name} may have ;prefix=<letters, digits, _ and -> and ;room=<requests at once>, "
            "and nothing else"
        )
    return Key(name, digest, prefix, int(room))


def given(headers: Mapping[str, str]) -> str | None:
    """The key in a request's headers: a bearer token, `X-API-Key`, or a Basic password."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return headers.get("x-api-key")


def whose(key: str | None, keys: Iterable[Key]) -> Key | None:
    """The caller that a key belongs to. Every key is compared, in constant time."""
    digest = hashlib.sha256((key or "").encode("utf-8", "surrogatepass")).hexdigest()
    found = None
    for known in keys:
        if hmac.compare_digest(digest, known.hash):
            found = known
    return found
